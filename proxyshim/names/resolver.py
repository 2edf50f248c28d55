"""All lookups of the process: shared, limited in time and number, and cached.

All sessions of a client share its lookup.  The lookup continues after a session has stopped
waiting for it, and its result is cached for as long as the DNS allows.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import dns.reversename
from dns.rdatatype import PTR

from proxyshim.addresses import Address
from proxyshim.dns.client import DnsClient, DnsError
from proxyshim.dns.system import System
from proxyshim.metrics import Metrics
from proxyshim.names.cache import Cache
from proxyshim.names.health import PROBE_EVERY_S, Health
from proxyshim.names.lookup import (
    FAILURE_TTL_S,
    OVERLOAD,
    Failure,
    Found,
    Result,
    find_names,
)
from proxyshim.names.places import Places
from proxyshim.net.fiber import run_in_task
from proxyshim.smtp.xclient import TEMPUNAVAIL, Names

# When a lookup gives up its place in flight.  Sessions stop waiting long before.
LOOKUP_LIMIT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """Which servers to ask, and the bounds.  No *nameservers* means those of the system."""

    nameservers: Sequence[str] = ()
    max_cached: int = 20_000
    max_in_flight: int = 100


class _Lookup:
    """A lookup in flight.  Any number of sessions may wait for it."""

    __slots__ = ("address", "found", "reverse_name", "task")

    def __init__(self, address: Address, loop: asyncio.AbstractEventLoop) -> None:
        """Start with nothing known; the resolver sets *task*."""
        self.address = address
        self.task: asyncio.Task[None]
        self.found: asyncio.Future[Found] = loop.create_future()
        self.reverse_name = TEMPUNAVAIL

    def note_reverse_name(self, name: bytes) -> None:
        """Keep the name that is not confirmed yet."""
        self.reverse_name = name

    def so_far(self, result: Result, failure: Failure) -> Found:
        """Return what is known if the lookup ends now, with that *result*."""
        names = Names(TEMPUNAVAIL, self.reverse_name)
        return Found(names, result, FAILURE_TTL_S, failure)


class Question:
    """One session's question: already asked, and answered within its time limit."""

    __slots__ = ("_deadline", "_lookup", "_resolver", "failure")

    def __init__(
        self, resolver: "Resolver", lookup: _Lookup | Found, deadline: float
    ) -> None:
        """Take a *lookup* to wait for until *deadline* (loop time), or its known result."""
        self._resolver = resolver
        self._lookup = lookup
        self._deadline = deadline
        # Why there are no names at the moment, for the log; None if the answer is final.
        self.failure: Failure | None = None

    async def answer(self) -> Names:
        """Return the names, with ``[TEMPUNAVAIL]`` for any that is not known in time."""
        found = self._lookup
        if isinstance(found, _Lookup):
            loop = asyncio.get_running_loop()
            found = await run_in_task(loop, self._wait(loop, found))
        self._resolver.count(found)
        self.failure = found.failure
        return found.names

    async def _wait(self, loop: asyncio.AbstractEventLoop, lookup: _Lookup) -> Found:
        # asyncio.wait() leaves the future alone: other sessions wait for it too.
        left_s = max(0.0, self._deadline - loop.time())
        await asyncio.wait([lookup.found], timeout=left_s)
        if lookup.found.done():
            return lookup.found.result()
        self._resolver.note_timeout(lookup.address)
        return lookup.so_far(Result.TIMED_OUT, Failure.TIMEOUT)


class Resolver:
    """All lookups of the process, and the cache of their results."""

    def __init__(
        self,
        settings: ResolverSettings,
        metrics: Metrics,
        system: System,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open nothing before the first question.  *clock* times the cache."""
        self._metrics = metrics
        self._system = system
        self._fixed_servers = tuple(settings.nameservers)
        self._health = Health(self._probe)
        self._dns = DnsClient(self._servers, self._health.note_answer)
        self._cache = Cache(settings.max_cached, clock)
        self._places = Places(settings.max_in_flight, time.monotonic)
        self._in_flight: dict[Address, _Lookup] = {}

    def _servers(self) -> Sequence[str]:
        return self._fixed_servers or self._system.servers()

    def ask(self, address: Address, timeout_s: float) -> Question:
        """Start to look up the names of *address*; the answer takes *timeout_s* at most."""
        deadline = asyncio.get_running_loop().time() + self._health.wait_s(timeout_s)
        return Question(self, self._find(address), deadline)

    def _find(self, address: Address) -> _Lookup | Found:
        """Return the result for *address*, or the lookup of it that is in flight now."""
        known = self._cache.recall(address) or self._in_flight.get(address)
        if known is not None:
            return known
        victim = self._places.find_victim(address)
        if victim == address:
            return OVERLOAD
        if victim is not None:
            self._displace(self._in_flight[victim])
        return self._begin(address)

    def count(self, found: Found) -> None:
        """Count what a session was answered."""
        self._metrics.name_results[found.result] += 1

    def note_timeout(self, address: Address) -> None:
        """Note that a session has stopped waiting for the names of *address*."""
        detail = f"no answer in time from {', '.join(self._servers())}"
        self._health.note_failure(address, detail, silent=True)

    async def close(self) -> None:
        """Cancel the lookups in flight."""
        await self._health.close()
        tasks = [lookup.task for lookup in self._in_flight.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # The lookup.

    def _begin(self, address: Address) -> _Lookup:
        loop = asyncio.get_running_loop()
        lookup = _Lookup(address, loop)
        lookup.task = loop.create_task(self._look_up(lookup))
        lookup.task.add_done_callback(lambda _: self._end(lookup))
        self._in_flight[address] = lookup
        self._places.take(address)
        self._metrics.name_lookups_in_flight = len(self._places)
        return lookup

    def _end(self, lookup: _Lookup) -> None:
        """Free the place of a lookup, however it ended."""
        if self._in_flight.get(lookup.address) is not lookup:
            return  # it was displaced, and has freed its place already
        del self._in_flight[lookup.address]
        self._places.give_back(lookup.address)
        self._metrics.name_lookups_in_flight = len(self._places)
        if not lookup.found.done():  # cancelled, or failed with a defect
            lookup.found.set_result(lookup.so_far(Result.FAILED, Failure.FAILED))

    def _displace(self, lookup: _Lookup) -> None:
        """End a lookup now, so that another client can have its place."""
        lookup.found.set_result(lookup.so_far(Result.OVERLOADED, Failure.OVERLOADED))
        self._end(lookup)
        lookup.task.cancel()

    async def _look_up(self, lookup: _Lookup) -> None:
        started = time.monotonic()
        address = lookup.address
        try:
            async with asyncio.timeout(LOOKUP_LIMIT_S):
                found = await find_names(
                    self._dns, self._system, address, lookup.note_reverse_name
                )
        except TimeoutError:
            self.note_timeout(address)
            found = lookup.so_far(Result.FAILED, Failure.TIMEOUT)
        except DnsError as error:
            self._health.note_failure(address, error.detail, silent=error.silent)
            failure = Failure.TIMEOUT if error.silent else Failure.FAILED
            found = lookup.so_far(Result.FAILED, failure)
        finally:
            self._metrics.name_lookup_s.observe(time.monotonic() - started)
        lookup.found.set_result(found)
        self._cache.remember(address, replace(found, result=Result.CACHED))
        self._metrics.names_cached = len(self._cache)

    async def _probe(self, address: Address) -> bool:
        """Return True if a DNS server answers a question about *address* now."""
        name = dns.reversename.from_address(str(address))
        try:
            async with asyncio.timeout(PROBE_EVERY_S):
                await DnsClient(self._servers).ask(name, PTR)
        except TimeoutError:
            return False
        except DnsError as error:
            return not error.silent
        return True
