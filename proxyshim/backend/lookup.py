"""The addresses of a backend's name: /etc/hosts, then the DNS, with the system's search domains.

The order and the search are glibc's, because the administrator tests the name with ``getent``.
Sources: resolv.conf(5), gai.conf(5).
"""

import asyncio
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Protocol

import dns.name
from dns.exception import DNSException
from dns.rdatatype import AAAA, A

from proxyshim.addresses import Address
from proxyshim.dns.client import DnsClient, DnsError
from proxyshim.dns.system import System

# An answer without a TTL counts for this long: one from /etc/hosts.
NO_TTL_S: Final = 5.0
# We take no more addresses of one name.
MAX_ADDRESSES: Final = 64

_KINDS: Final = {4: A, 6: AAAA}
_LOOPBACK: Final = (ip_address("127.0.0.1"), ip_address("::1"))
_DISCARD_PORT: Final = 9  # nothing is sent to it


class LookupFailed(Exception):  # noqa: N818
    """The name has no address, as far as we can find out now."""


@dataclass(frozen=True, slots=True)
class Found:
    """The addresses of a name by IP version.  A version whose lookup failed is missing."""

    by_version: Mapping[int, tuple[Address, ...]]
    ttl_s: float = NO_TTL_S


class Lookup(Protocol):
    """Looks up the addresses of a name."""

    async def find(self, name: str) -> Found:
        """Return the addresses of *name*, at least one.  Raises LookupFailed."""


class SystemLookup:
    """Looks names up as the system does."""

    def __init__(self, system: System) -> None:
        """Ask nobody yet."""
        self._system = system
        self._dns = DnsClient(system.servers)

    async def find(self, name: str) -> Found:
        """Return the addresses of *name*, at least one.  Raises LookupFailed."""
        listed = (await self._system.hosts()).addresses_of(name)
        if not listed and name.lower().rstrip(".") == "localhost":
            listed = list(_LOOPBACK)  # RFC 6761, 6.3
        if listed:
            return Found(_by_version(listed))
        try:
            # An international name is converted as IDNA 2003 has it, as in getaddrinfo.
            relative = dns.name.from_text(name, origin=None)
        except (DNSException, UnicodeError):  # no zone can contain it
            raise LookupFailed("Name or service not known") from None
        for candidate in self._system.resolv_conf().candidates(relative):
            found = await self._ask(candidate)
            if found is not None:
                return found
        raise LookupFailed("Name or service not known")

    async def _ask(self, name: dns.name.Name) -> Found | None:
        """Return what the DNS knows of an absolute name; None if it has no address."""
        answers = await asyncio.gather(
            *(self._dns.ask(name, kind) for kind in _KINDS.values()),
            return_exceptions=True,
        )
        by_version: dict[int, tuple[Address, ...]] = {}
        failures: list[DnsError] = []
        ttls = []
        for version, answer in zip(_KINDS, answers, strict=True):
            if isinstance(answer, DnsError):
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                addresses = map(_unpack, answer.addresses[:MAX_ADDRESSES])
                by_version[version] = tuple(addresses)
                ttls += [] if answer.ttl_s is None else [answer.ttl_s]
        if any(by_version.values()):
            return Found(by_version, min(ttls, default=NO_TTL_S))
        if failures:
            raise LookupFailed(failures[0].detail)
        return None


def _unpack(packed: bytes) -> Address:
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return ip_address(socket.inet_ntop(family, packed))


def _by_version(addresses: Iterable[Address]) -> dict[int, tuple[Address, ...]]:
    found: dict[int, list[Address]] = {4: [], 6: []}
    for address in addresses:
        found[address.version].append(address)
    return {version: tuple(found[version]) for version in found}


def in_order(addresses: Iterable[Address]) -> list[Address]:
    """Return the addresses in the order in which to try them: those with a route, IPv6 first."""
    return sorted(addresses, key=lambda each: (not _has_route(each), -each.version))


def _has_route(address: Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect((str(address), _DISCARD_PORT))
    except OSError:
        return False
    return True
