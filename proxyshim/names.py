"""The client's host names from the DNS, looked up as the MTA would have done.

We ask for the PTR of the address, then for the A or AAAA records of that name, which must contain
the address.  A host name in the PTR becomes REVERSE_NAME; only if it is confirmed in this way does
it become NAME too.  The outcomes:

    confirmed                     NAME=name            REVERSE_NAME=name
    PTR, not confirmed            NAME=[UNAVAILABLE]   REVERSE_NAME=ptr
    PTR, temporary failure then   NAME=[TEMPUNAVAIL]   REVERSE_NAME=ptr
    no PTR, or no host name       NAME=[UNAVAILABLE]   REVERSE_NAME=[UNAVAILABLE]
    temporary failure             NAME=[TEMPUNAVAIL]   REVERSE_NAME=[TEMPUNAVAIL]

As for the MTA, /etc/hosts comes before the DNS.  We look names up exactly as they are, without a
search domain; otherwise a stranger's PTR of "mail" would become our own mail.example.org.

All sessions of a client share its lookup.  The lookup continues after a session has stopped
waiting for it, and its result is cached for as long as the DNS allows.  Everything is bounded: the
wait, the cache, and the lookups in flight.  Sources: Postfix XCLIENT_README, and our observations
of Postfix with direct connections (docs/explanation/what-the-mta-sees.md); RFC 1035 (PTR) and
RFC 2308 (negative answers).
"""

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import islice
from typing import Final, Literal

import aiodns
import pycares

from proxyshim.addresses import Address
from proxyshim.metrics import Metrics
from proxyshim.net.fiber import run_in_task
from proxyshim.smtp.host_names import is_host_name
from proxyshim.smtp.xclient import NO_NAMES, TEMPUNAVAIL, UNAVAILABLE, Names

# A result is cached for its TTL, within these limits, in seconds.
MIN_TTL_S: Final = 1.0
MAX_TTL_S: Final = 3_600.0
# For results without a known TTL: that of a negative answer is in a record that the resolver
# library does not expose, and /etc/hosts has none.
DEFAULT_TTL_S: Final = 60.0
# After a failure we soon ask again, but not for every session of a busy minute.
FAILURE_TTL_S: Final = 5.0

# When a lookup gives up its place in flight.  Sessions stop waiting long before.
LOOKUP_LIMIT_S: Final = 15.0
# The time limit for the first try at each server, in seconds; the library extends it for later
# tries.  glibc, which the MTA uses, tries twice, for 5 s each.
TRY_S: Final = 1.5
TRIES: Final = 3

# How many address records of one name we search for the client's address.
MAX_ADDRESS_RECORDS: Final = 1_000
# The resolver library also caches by TTL, without a bound (we measured 1.2 kB per answer with
# c-ares 1.34).  After this many lookups we replace the channel, and with it that cache.
RENEW_AFTER: Final = 20_000

# A name that is too long to be asked for (EBADNAME) does not exist either.
_NO_SUCH_RECORD: Final = frozenset(
    {
        pycares.errno.ARES_ENOTFOUND,
        pycares.errno.ARES_ENODATA,
        pycares.errno.ARES_EBADNAME,
    }
)


class Result(StrEnum):
    """How a session's question for names was answered.  The values label the metric."""

    CACHED = "cached"
    CONFIRMED = "confirmed"
    UNCONFIRMED = "unconfirmed"
    UNKNOWN = "unknown"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    OVERLOADED = "overloaded"


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """Which servers to ask, and the bounds.  No *nameservers* means those of the system."""

    nameservers: Sequence[str] = ()
    max_cached: int = 20_000
    max_in_flight: int = 100


@dataclass(frozen=True, slots=True)
class _Found:
    """The result of a lookup, and for how many seconds it is valid."""

    names: Names
    result: Result
    ttl_s: float


_NOTHING: Final = _Found(NO_NAMES, Result.UNKNOWN, DEFAULT_TTL_S)
_OVERLOAD: Final = _Found(
    Names(TEMPUNAVAIL, TEMPUNAVAIL), Result.OVERLOADED, FAILURE_TTL_S
)


class _Lookup:
    """A lookup in flight.  Any number of sessions may wait for it."""

    __slots__ = ("reverse_name", "task")

    def __init__(self) -> None:
        """Start with nothing known; the resolver sets *task*."""
        self.task: asyncio.Task[_Found]
        self.reverse_name = TEMPUNAVAIL

    def so_far(self, result: Result) -> _Found:
        """Return what is known if the lookup ends now, with that *result*."""
        return _Found(Names(TEMPUNAVAIL, self.reverse_name), result, FAILURE_TTL_S)


class Question:
    """One session's question: already asked, and answered within its time limit."""

    __slots__ = ("_deadline", "_lookup", "_metrics")

    def __init__(
        self, metrics: Metrics, lookup: _Lookup | _Found, deadline: float
    ) -> None:
        """Take a *lookup* to wait for until *deadline* (loop time), or its known result."""
        self._metrics = metrics
        self._lookup = lookup
        self._deadline = deadline

    async def answer(self) -> Names:
        """Return the names, with ``[TEMPUNAVAIL]`` for any that is not known in time."""
        found = self._lookup
        if isinstance(found, _Lookup):
            loop = asyncio.get_running_loop()
            found = await run_in_task(loop, self._wait(found))
        self._metrics.name_results[found.result] += 1
        return found.names

    async def _wait(self, lookup: _Lookup) -> _Found:
        try:
            async with asyncio.timeout_at(self._deadline):
                # Shielded, because other sessions wait for it too, or will ask the same.
                return await asyncio.shield(lookup.task)
        except TimeoutError:
            return lookup.so_far(Result.TIMED_OUT)


class Resolver:
    """All lookups of the process, and the cache of their results."""

    def __init__(
        self,
        settings: ResolverSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open nothing before the first question.  *clock* times the cache."""
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._dns: aiodns.DNSResolver | None = None
        self._lookups_of_dns = 0
        self._known: OrderedDict[Address, tuple[float, _Found]] = OrderedDict()
        self._in_flight: dict[Address, _Lookup] = {}

    def ask(self, address: Address, timeout_s: float) -> Question:
        """Start to look up the names of *address*; the answer takes *timeout_s* at most."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        found = self._recall(address) or self._in_flight.get(address)
        if found is None and len(self._in_flight) >= self._settings.max_in_flight:
            found = _OVERLOAD
        return Question(self._metrics, found or self._begin(address), deadline)

    async def close(self) -> None:
        """Cancel the lookups in flight."""
        tasks = [lookup.task for lookup in self._in_flight.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._dns is not None:
            await self._dns.close()
            self._dns = None

    # The cache.

    def _recall(self, address: Address) -> _Found | None:
        known = self._known.get(address)
        if known is None:
            return None
        expires, found = known
        if self._clock() >= expires:
            del self._known[address]
            self._metrics.names_cached = len(self._known)
            return None
        self._known.move_to_end(address)
        return _Found(found.names, Result.CACHED, found.ttl_s)

    def _remember(self, address: Address, found: _Found) -> None:
        self._known[address] = (self._clock() + found.ttl_s, found)
        if len(self._known) > self._settings.max_cached:
            self._known.popitem(last=False)
        self._metrics.names_cached = len(self._known)

    # The lookup.

    def _begin(self, address: Address) -> _Lookup:
        lookup = _Lookup()
        lookup.task = asyncio.create_task(self._look_up(address, lookup))
        lookup.task.add_done_callback(partial(self._settle, address))
        self._in_flight[address] = lookup
        self._metrics.name_lookups_in_flight += 1
        return lookup

    def _settle(self, address: Address, task: asyncio.Task[_Found]) -> None:
        del self._in_flight[address]
        self._metrics.name_lookups_in_flight -= 1
        if not task.cancelled() and task.exception() is None:
            self._remember(address, task.result())

    async def _look_up(self, address: Address, lookup: _Lookup) -> _Found:
        started = time.monotonic()
        try:
            async with asyncio.timeout(LOOKUP_LIMIT_S):
                return await _find(self._channel(), address, lookup)
        except (aiodns.error.DNSError, TimeoutError):
            return lookup.so_far(Result.FAILED)
        finally:
            self._metrics.name_lookup_s.observe(time.monotonic() - started)

    def _channel(self) -> aiodns.DNSResolver:
        """Return the current DNS channel.

        Lookups in progress keep the channel that they started with.
        """
        self._lookups_of_dns += 1
        if self._dns is None or self._lookups_of_dns > RENEW_AFTER:
            self._lookups_of_dns = 1
            # "f": the library's functions for hosts read only /etc/hosts.  For the DNS we use
            # its function for records.
            self._dns = aiodns.DNSResolver(
                self._settings.nameservers, lookups="f", timeout=TRY_S, tries=TRIES
            )
        return self._dns


async def _find(dns: aiodns.DNSResolver, address: Address, lookup: _Lookup) -> _Found:
    """Look up the PTR, then confirm it; note the name in *lookup* in between.

    Raises DNSError.
    """
    name, ttl_s = await _reverse_name(dns, address)
    if name is None or not is_host_name(name):
        return _NOTHING
    lookup.reverse_name = name
    confirmed, forward_ttl_s = await _confirm(dns, name, address)
    ttl_s = max(MIN_TTL_S, min(ttl_s, forward_ttl_s, MAX_TTL_S))
    if not confirmed:
        return _Found(Names(UNAVAILABLE, name), Result.UNCONFIRMED, ttl_s)
    return _Found(Names(name, name), Result.CONFIRMED, ttl_s)


async def _reverse_name(
    dns: aiodns.DNSResolver, address: Address
) -> tuple[bytes | None, float]:
    """Return the name of *address*, whatever it looks like, and its TTL.

    Of several PTR records only the first counts, even if it does not contain a host name.
    Postfix does the same.
    """
    listed = await _listed_name(dns, address)
    if listed is not None:
        return listed, DEFAULT_TTL_S
    records, ttl_s = await _records(dns, address.reverse_pointer, "PTR")
    for data in records:
        if isinstance(data, pycares.PTRRecordData):
            return _as_bytes(data.dname), ttl_s
    return None, ttl_s


async def _confirm(
    dns: aiodns.DNSResolver, name: bytes, address: Address
) -> tuple[bool, float]:
    """Return whether *name* has *address*, and the TTL of that answer."""
    text = name.decode("ascii")
    listed = await _listed_addresses(dns, text, address.version)
    if listed:
        return str(address) in listed, DEFAULT_TTL_S
    records, ttl_s = await _records(dns, text, "A" if address.version == 4 else "AAAA")
    found = (
        data.addr
        for data in islice(records, MAX_ADDRESS_RECORDS)
        if isinstance(data, pycares.ARecordData | pycares.AAAARecordData)
    )
    return str(address) in found, ttl_s


async def _records(
    dns: aiodns.DNSResolver, name: str, kind: Literal["PTR", "A", "AAAA"]
) -> tuple[list[object], float]:
    """Return the data of an answer, including CNAMEs, and the lowest TTL in it.

    The list is empty if there are no such records.  Raises DNSError if that remains unknown.
    """
    try:
        records = (await dns.query_dns(name, kind)).answer
    except aiodns.error.DNSError as error:
        if error.args[0] in _NO_SUCH_RECORD:
            return [], DEFAULT_TTL_S
        raise
    ttl_s = min((record.ttl for record in records), default=DEFAULT_TTL_S)
    return [record.data for record in records], ttl_s


# /etc/hosts.  The library reads it again after a change, and answers at once.


async def _listed_name(dns: aiodns.DNSResolver, address: Address) -> bytes | None:
    try:
        return _as_bytes((await dns.gethostbyaddr(str(address))).name)
    except aiodns.error.DNSError:
        return None


async def _listed_addresses(
    dns: aiodns.DNSResolver, name: str, version: int
) -> set[str]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        found = await dns.getaddrinfo(name, family=family)
    except aiodns.error.DNSError:
        return set()
    return {node.addr[0].decode("ascii") for node in found.nodes}


def _as_bytes(name: str | bytes) -> bytes:
    """Return a name from the library as bytes.  A non-ASCII one then fails is_host_name()."""
    return name if isinstance(name, bytes) else name.encode("utf-8", "replace")
