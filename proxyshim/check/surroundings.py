"""What ``check`` looks at besides the configuration: the lists' own lines, this host's users."""

import pwd
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final

from proxyshim.config import Config, read_text

Network = IPv4Network | IPv6Network

# Debian's UID_MIN and UID_MAX (login.defs): people, not services.
_PEOPLE: Final = range(1000, 60_001)
_NO_LOGIN: Final = ("nologin", "false")

_V4_MAPPED: Final = IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class ListEntry:
    """A line of a list of proxies; *place* is its file and number."""

    place: str
    network: Network


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The entries of each listener's list, by its name; and who can log in here."""

    lists: dict[str, tuple[ListEntry, ...]]
    users: tuple[str, ...]


def look_around(config: Config) -> Surroundings:
    """Read the lists once more, for their line numbers.  Raises ConfigError."""
    lists = {}
    for listener in config.listeners:
        if listener.settings.haproxy_hosts is not None:
            path = config.path.parent / listener.settings.haproxy_hosts
            lists[listener.settings.name] = _read_list(path)
    return Surroundings(lists, _read_users())


def _read_list(path: Path) -> tuple[ListEntry, ...]:
    """Return a list's entries; the configuration has been loaded, so they are sound."""
    entries = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if text := line.partition("#")[0].strip():
            entries.append(ListEntry(f"{path}: line {number}", read_network(text)))
    return tuple(entries)


def read_network(text: str) -> Network:
    """Read an address or network that the configuration took, folded as it is there."""
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.subnet_of(_V4_MAPPED):
        address = network.network_address.ipv4_mapped
        return ip_network(f"{address}/{network.prefixlen - _V4_MAPPED.prefixlen}")
    return network


def _read_users() -> tuple[str, ...]:
    return tuple(
        user.pw_name
        for user in pwd.getpwall()
        if user.pw_uid in _PEOPLE and not user.pw_shell.endswith(_NO_LOGIN)
    )
