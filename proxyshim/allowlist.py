"""Is this peer a listed proxy?  And any other question of which networks hold an address.

Text goes in, no file is opened; what is wrong with it is said of all its lines in one
ConfigError.  IPv4 written as IPv6 (``::ffff:192.0.2.1``) is IPv4, in the lists as in
the addresses that are asked about.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from proxyshim.addresses import Address, fold_v4_mapped
from proxyshim.errors import ConfigError

# By their number of host bits, the network parts of the networks in the set: an address
# costs one look into each, 32 at most for IPv4 and 128 for IPv6, whatever their size.
_Tables = tuple[tuple[int, frozenset[int]], ...]

_EXPECTED = "expected an IP address or network, like 192.0.2.1 or 2001:db8::/32"

# ip_network() would take a netmask or "/08", too.
_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}")

_V4_MAPPED = int(IPv6Address("::ffff:0:0"))
_V4_MAPPED_PREFIX = 96

# A file of thousands of bad lines is the wrong file: no need to fill the log with it.
MAX_COMPLAINTS = 10
MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Networks:
    """A set of networks, asked with ``address in networks``."""

    _ipv4: _Tables = field(default=(), repr=False)
    _ipv6: _Tables = field(default=(), repr=False)

    @classmethod
    def from_entries(cls, entries: Iterable[str], source: str) -> Self:
        """Read addresses and networks, as in a list of the configuration.

        Raises ConfigError, which names *source* and the number and value of bad entries.
        """
        return cls._from_named(
            ((f"entry {n}", entry) for n, entry in enumerate(entries, 1)), source
        )

    def __contains__(self, address: Address) -> bool:
        """Is the *address*, folded and without its zone id, in one of the networks?"""
        # isinstance() takes half as long as the version's property, and a session may ask three
        # times, of lists that are empty.
        folded = (
            address if isinstance(address, IPv4Address) else fold_v4_mapped(address)
        )
        tables = self._ipv4 if isinstance(folded, IPv4Address) else self._ipv6
        if not tables:
            return False
        value = int(folded)
        # any() of a generator takes three times as long.
        for host_bits, parts in tables:  # noqa: SIM110
            if value >> host_bits in parts:
                return True
        return False

    def __len__(self) -> int:
        """Return the number of different networks."""
        return sum(len(parts) for _, parts in self._ipv4 + self._ipv6)

    @classmethod
    def _from_named(cls, entries: Iterable[tuple[str, str]], source: str) -> Self:
        tables: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        complaints = []
        for name, entry in entries:
            try:
                version, host_bits, part = _read_network(entry)
            except ValueError as error:
                complaints.append(f"{source}: {name}: {_shown(entry)}: {error}")
            else:
                tables[version].setdefault(host_bits, set()).add(part)
        if complaints:
            raise _config_error(complaints, source)
        return cls(_freeze(tables[4]), _freeze(tables[6]))


@dataclass(frozen=True, slots=True)
class Allowlist(Networks):
    """The peers that are proxies.  An empty one lists nobody."""

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Read the text of a file: one address or network a line, ``#`` begins a comment.

        Raises ConfigError, which names *source* and the number and value of bad lines.
        """
        # Not splitlines(): it ends lines where no editor does.
        lines = enumerate(text.removeprefix("\ufeff").split("\n"), 1)
        entries = ((n, line.partition("#")[0].strip(" \t\r")) for n, line in lines)
        return cls._from_named(
            ((f"line {n}", entry) for n, entry in entries if entry), source
        )

    def is_listed(self, address: Address) -> bool:
        """May this peer speak for others?"""
        return address in self


def _read_network(entry: str) -> tuple[int, int, int]:
    """Return IP version, number of host bits and network part.

    Raises ValueError with what is wrong, in words that follow the entry.
    """
    address, prefix = _read_address_and_prefix(entry)
    host_bits = address.max_prefixlen - prefix
    part = int(address) >> host_bits
    if prefix == 0:
        raise ValueError("would list every address there is")
    # Smaller parts of ::ffff:0:0/96 are IPv4 by now.
    if address.version == 6 and part == _V4_MAPPED >> host_bits:
        raise ValueError("would list every IPv4 address: it covers ::ffff:0:0/96")
    if part << host_bits != int(address):
        network = type(address)(part << host_bits)
        raise ValueError(
            f"has host bits set: write {network}/{prefix} for the network,"
            f" {address} for the one address"
        )
    return address.version, host_bits, part


def _read_address_and_prefix(entry: str) -> tuple[Address, int]:
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
            raise ValueError(
                f"expected a prefix length of 1 to {bits} behind the slash"
            )
        prefix = int(prefix_text)
    if (
        prefix > _V4_MAPPED_PREFIX
        and (folded := fold_v4_mapped(address)) is not address
    ):
        return folded, prefix - _V4_MAPPED_PREFIX
    return address, prefix


def _freeze(tables: dict[int, set[int]]) -> _Tables:
    return tuple((host_bits, frozenset(parts)) for host_bits, parts in tables.items())


def _shown(entry: str) -> str:
    return repr(entry[:MAX_SHOWN_CHARS]) + (
        "..." if len(entry) > MAX_SHOWN_CHARS else ""
    )


def _config_error(complaints: list[str], source: str) -> ConfigError:
    shown = complaints[:MAX_COMPLAINTS]
    if len(complaints) > MAX_COMPLAINTS:
        shown.append(
            f"{source}: and {len(complaints) - MAX_COMPLAINTS} more of the kind"
        )
    return ConfigError("\n".join(shown))
