"""The policy routes that ``convey = "source-address"`` needs, for a set of backend addresses.

The backend answers to the client's address, and these answers must end at this host, although it
does not have that address.  A *rule* selects them, and a *route* in a table of its own delivers
them here.  How a rule can recognise an answer depends on where the backend is:

- at a loopback address of this host: by the answer's source, which nothing else uses;
- at another address of this host: by a mark, which our connection has (``source_mark``), and which
  the kernel gives to the backend's end too (``net.ipv4.tcp_fwmark_accept``).  The source would not
  do, because the backend has direct clients at that address too;
- on another host: by a mark that the packet filter gives to packets for our sockets.

The results are commands, which ``proxyshim routes`` prints or runs.

Source: ip-rule(8), ip-route(8), nft(8); Linux, Documentation/networking/tproxy and ip-sysctl.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from proxyshim.addresses import Address
from proxyshim.net.local_addresses import is_local

TABLE: Final = 123
# Before the rule of the table "main" (32766).  Rules with this preference are ours.
PREFERENCE: Final = 1_230
# The mark of the packet filter's rule, and of our connections unless ``source_mark`` is set.
DEFAULT_MARK: Final = 0x7B
NFT_TABLE: Final = "proxyshim_routes"
ACCEPT_MARK: Final = "net.ipv4.tcp_fwmark_accept"


class Place(Enum):
    """Where a backend is."""

    LOOPBACK = auto()
    OWN_ADDRESS = auto()
    OTHER_HOST = auto()


def place_of(address: Address) -> Place:
    """Return where a backend with that *address* is."""
    if address.is_loopback:
        return Place.LOOPBACK
    return Place.OWN_ADDRESS if is_local(address) else Place.OTHER_HOST


@dataclass(frozen=True, slots=True)
class Target:
    """An address of a backend, and where it is."""

    address: Address
    place: Place
    mark: int = DEFAULT_MARK  # of packets to OWN_ADDRESS, and from OTHER_HOST

    @property
    def selector(self) -> str:
        """What the rule for the answers selects, in the words of ip-rule(8)."""
        if self.place is Place.LOOPBACK:
            return f"from {self.address} iif lo"
        return f"fwmark {self.mark:#x}"


def add_rule(target: Target) -> str:
    """Return the command that adds the rule for *target*."""
    version = target.address.version
    return f"ip -{version} rule add pref {PREFERENCE} {target.selector} lookup {TABLE}"


def add_route(version: int) -> str:
    """Return the command that adds the route for an IP *version*."""
    return f"ip -{version} route replace local default dev lo table {TABLE}"


def accept_mark() -> str:
    """Return the command that makes a backend's end of a connection inherit our mark."""
    return f"sysctl -q -w {ACCEPT_MARK}=1"


def mark_answers(mark: int) -> list[str]:
    """Return the commands that make the packet filter mark the answers of other hosts."""
    chain = f"inet {NFT_TABLE} prerouting"
    return [
        f"nft add table inet {NFT_TABLE}",
        f"nft 'add chain {chain} {{ type filter hook prerouting priority mangle; }}'",
        f"nft flush chain {chain}",
        f"nft 'add rule {chain} socket transparent 1 meta mark set {mark:#x}'",
    ]


def commands_to_set(targets: Iterable[Target]) -> list[str]:
    """Return the commands that set the routes for all *targets*."""
    return list(dict.fromkeys(_to_set(list(targets))))


def _to_set(targets: list[Target]) -> Iterator[str]:
    for target in targets:
        yield add_rule(target)
    for target in targets:
        yield add_route(target.address.version)
    if any(target.place is Place.OWN_ADDRESS for target in targets):
        yield accept_mark()
    for mark in {each.mark for each in targets if each.place is Place.OTHER_HOST}:
        yield from mark_answers(mark)


def commands_to_remove() -> list[str]:
    """Return the commands that remove what ``commands_to_set`` has set, for any targets.

    Each may fail, because it may have nothing to remove.  They leave ACCEPT_MARK as it is,
    because other programs may rely on it.
    """
    removals = []
    for version in (4, 6):
        removals += [
            f"ip -{version} rule flush pref {PREFERENCE}",
            f"ip -{version} route del local default dev lo table {TABLE}",
        ]
    return [*removals, f"nft delete table inet {NFT_TABLE}"]
