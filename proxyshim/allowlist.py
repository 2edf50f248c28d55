"""Which peers are listed proxies, and other questions of which networks hold an address.

The input is text; nothing here opens a file.  One ConfigError reports the mistakes of all lines.
An IPv4 address or network written as IPv6 (``::ffff:192.0.2.1``) counts as IPv4, both in the
lists and in the addresses that we look up.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, Self

from proxyshim.addresses import Address, fold_v4_mapped
from proxyshim.errors import ConfigError

Network = IPv4Network | IPv6Network

# For each number of host bits that occurs, the network parts of all networks of that size.  To
# look up an address takes one look into each, at most 32 for IPv4 and 128 for IPv6, however many
# networks there are.
_Tables = tuple[tuple[int, frozenset[int]], ...]

_EXPECTED = "expected an IP address or network, like 192.0.2.1 or 2001:db8::/32"

# ip_network() would also accept a netmask, or "/08".
_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}")

_V4_MAPPED = int(IPv6Address("::ffff:0:0"))
_V4_MAPPED_PREFIX = 96

# A file with thousands of bad lines is the wrong file, and should not fill the log.
MAX_COMPLAINTS = 10
MAX_SHOWN_CHARS = 60

# After so many entries, the caller of ``parse`` may let another thread run.
_ENTRIES_PER_SLICE = 256


class _Parsed(NamedTuple):
    """A network in the form in which the tables hold it."""

    version: int
    host_bits: int
    part: int


@dataclass(frozen=True, slots=True)
class Networks:
    """A set of networks; ``address in networks`` looks an address up."""

    _ipv4: _Tables = field(default=(), repr=False)
    _ipv6: _Tables = field(default=(), repr=False)

    @classmethod
    def from_entries(cls, entries: Iterable[str], source: str) -> Self:
        """Parse addresses and networks, as a list in the configuration has them.

        Raises ConfigError, which names *source* and the number and value of each bad entry.
        """
        named = ((f"entry {n}", entry) for n, entry in enumerate(entries, 1))
        return cls._from_parsed(parsed for _, parsed in _parse_all(named, source))

    @classmethod
    def parse(
        cls, text: str, source: str, rest: Callable[[], None] | None = None
    ) -> Self:
        """Parse a file's text: one address or network per line; ``#`` begins a comment.

        *rest* is called after each slice of the list.  Raises ConfigError, which names *source* and
        the number and value of each bad line.
        """
        lines = _parse_lines(text, source, rest)
        return cls._from_parsed(parsed for _, parsed in lines)

    def __contains__(self, address: Address) -> bool:
        """Return True if one of the networks holds *address*, whose zone id is ignored."""
        # isinstance() takes half as long as the version property, and a session may look up
        # three addresses, mostly in lists that are empty.
        folded = (
            address if isinstance(address, IPv4Address) else fold_v4_mapped(address)
        )
        tables = self._ipv4 if isinstance(folded, IPv4Address) else self._ipv6
        if not tables:
            return False
        value = int(folded)
        # any() with a generator takes three times as long.
        for host_bits, parts in tables:  # noqa: SIM110
            if value >> host_bits in parts:
                return True
        return False

    def __len__(self) -> int:
        """Return the number of different networks."""
        return sum(len(parts) for _, parts in self._ipv4 + self._ipv6)

    def single_addresses(self) -> "Networks":
        """Return the entries that are one address each."""
        return Networks(_only(self._ipv4, single=True), _only(self._ipv6, single=True))

    def larger_networks(self) -> "Networks":
        """Return the entries that hold more than one address."""
        return Networks(
            _only(self._ipv4, single=False), _only(self._ipv6, single=False)
        )

    @classmethod
    def _from_parsed(cls, networks: Iterable[_Parsed]) -> Self:
        tables: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for version, host_bits, part in networks:
            tables[version].setdefault(host_bits, set()).add(part)
        return cls(_freeze(tables[4]), _freeze(tables[6]))


@dataclass(frozen=True, slots=True)
class Allowlist(Networks):
    """The peers that are proxies.  An empty one lists nobody."""

    def is_listed(self, address: Address) -> bool:
        """Return True if this peer may state who its client is."""
        return address in self


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One line of a list: its *place*, which is file and line number, and its network."""

    place: str
    network: Network


def read_entries(text: str, source: str) -> tuple[ListEntry, ...]:
    """Return the entries of a list, in their order.

    ``Allowlist.parse`` reads the same text; it keeps no line numbers, because a daemon with
    100,000 entries has no use for them.  Raises ConfigError.
    """
    return tuple(
        ListEntry(f"{source}: {name}", _network_of(parsed))
        for name, parsed in _parse_lines(text, source)
    )


def read_network(entry: str) -> Network:
    """Parse one address or network, and fold it.  Raises ValueError."""
    return _network_of(_parse_network(entry))


def _network_of(parsed: _Parsed) -> Network:
    version, host_bits, part = parsed
    first = part << host_bits
    if version == 4:
        return IPv4Network((first, 32 - host_bits))
    return IPv6Network((first, 128 - host_bits))


def _parse_lines(
    text: str, source: str, rest: Callable[[], None] | None = None
) -> Iterator[tuple[str, _Parsed]]:
    # Not splitlines(), which ends lines at characters where no editor does.
    lines = enumerate(text.removeprefix("\ufeff").split("\n"), 1)
    entries = ((n, line.partition("#")[0].strip(" \t\r")) for n, line in lines)
    named = ((f"line {n}", entry) for n, entry in entries if entry)
    return _parse_all(_in_slices(named, rest) if rest else named, source)


def _in_slices(
    entries: Iterable[tuple[str, str]], rest: Callable[[], None]
) -> Iterator[tuple[str, str]]:
    for number, entry in enumerate(entries, 1):
        yield entry
        if number % _ENTRIES_PER_SLICE == 0:
            rest()


def _parse_all(
    entries: Iterable[tuple[str, str]], source: str
) -> Iterator[tuple[str, _Parsed]]:
    """Yield each good entry under its name; raise ConfigError after the last, if any is bad."""
    complaints: list[str] = []
    bad = 0
    for name, entry in entries:
        try:
            parsed = _parse_network(entry)
        except ValueError as error:
            bad += 1
            if bad <= MAX_COMPLAINTS:
                complaints.append(f"{source}: {name}: {shown(entry)}: {error}")
        else:
            yield name, parsed
    if bad > MAX_COMPLAINTS:
        complaints.append(f"{source}: and {bad - MAX_COMPLAINTS} more bad entries")
    if bad:
        raise ConfigError("\n".join(complaints))


def _parse_network(entry: str) -> _Parsed:
    """Parse one entry.

    Raises ValueError, whose text states what is wrong in words that can follow the entry.
    """
    address, prefix = _parse_address_and_prefix(entry)
    host_bits = address.max_prefixlen - prefix
    part = int(address) >> host_bits
    if prefix == 0:
        raise ValueError("would list every address there is")
    # A network inside ::ffff:0:0/96 has been folded to IPv4 already.
    if address.version == 6 and part == _V4_MAPPED >> host_bits:
        raise ValueError("would list every IPv4 address: it covers ::ffff:0:0/96")
    if part << host_bits != int(address):
        network = type(address)(part << host_bits)
        raise ValueError(
            f"has host bits set: write {network}/{prefix} for the network,"
            f" or {address} for the single address"
        )
    return _Parsed(address.version, host_bits, part)


def _parse_address_and_prefix(entry: str) -> tuple[Address, int]:
    text, slash, prefix_text = entry.partition("/")
    if "%" in text:
        raise ValueError("has a zone id: write the address without it")
    try:
        address = IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError:
        raise ValueError(_EXPECTED) from None
    bits: int = address.max_prefixlen
    prefix = bits
    if slash:
        if not _PREFIX.fullmatch(prefix_text) or int(prefix_text) > bits:
            raise ValueError(f"expected a prefix length of 1 to {bits} after the slash")
        prefix = int(prefix_text)
    if (
        prefix > _V4_MAPPED_PREFIX
        and (folded := fold_v4_mapped(address)) is not address
    ):
        return folded, prefix - _V4_MAPPED_PREFIX
    return address, prefix


def _freeze(tables: dict[int, set[int]]) -> _Tables:
    return tuple((host_bits, frozenset(parts)) for host_bits, parts in tables.items())


def _only(tables: _Tables, *, single: bool) -> _Tables:
    return tuple(table for table in tables if (table[0] == 0) == single)


def shown(entry: str) -> str:
    """Return an entry as an error message shows it: quoted, and shortened."""
    return repr(entry[:MAX_SHOWN_CHARS]) + (
        "..." if len(entry) > MAX_SHOWN_CHARS else ""
    )
