"""The addresses of a backend: a record for each (``address.py``), kept up to date.

A host name is resolved once for all sessions, and again when its answer expires.  While that
fails, the last good answer serves.  ``session/trust.py`` asks this set whether a claimed address
is the backend's, so a new address is in it before any session uses it, and an old one stays for
a day: rotating DNS answers return parts of a set.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog

from proxyshim.addresses import Address, SocketName, fold_v4_mapped
from proxyshim.backend.address import BackendAddress, Fault
from proxyshim.backend.lookup import Found, Lookup, LookupFailed, in_order

# An answer is used for its TTL, within these limits.
MIN_TTL_S: Final = 1.0
MAX_TTL_S: Final = 3_600.0
# While the name cannot be resolved, we try again this often.
RETRY_S: Final = 2.0
# How long an address stays the backend's after the name last resolved to it.
PROTECTED_S: Final = 86_400.0
# The addresses that we remember for it.  With more than that, nothing is believed.
MAX_REMEMBERED: Final = 4_096


class BackendAddresses:
    """All addresses of one backend."""

    def __init__(
        self,
        name: SocketName,
        lookup: Lookup,
        *,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the *name*, as configured; ``refresh`` or ``start`` resolves it.

        *on_change* is called when ``is_known`` or the fault of an address may have changed.
        """
        self.name = name
        self._lookup = lookup
        self._on_change = on_change
        self._clock = clock
        self._log: Any = structlog.get_logger()
        self._records: dict[Address, BackendAddress] = {}
        # What the name resolves to now, in the order in which to try it.
        self.current: Sequence[BackendAddress] = _read_literal(name)
        self._is_literal = bool(self.current)
        # The versions of IP for which the name's addresses are known.
        self._known: set[int] = {4, 6} if self._is_literal else set()
        # Why the name cannot be resolved; None if it was.
        self.failure: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._tests: set[asyncio.Task[None]] = set()
        self._hurry = asyncio.Event()
        self._settled = asyncio.Event()
        if self._is_literal:
            self._settled.set()

    # What sessions ask.

    @property
    def is_known(self) -> bool:
        """True if there is an address, or has ever been."""
        return bool(self._known)

    def knows(self, version: int) -> bool:
        """Return True if the name's addresses of that IP *version* are known.

        Otherwise nobody can tell whether an address is the backend's.
        """
        return version in self._known and len(self._records) < MAX_REMEMBERED

    def __contains__(self, address: Address) -> bool:
        """Return True if *address*, folded, is the backend's, or was within PROTECTED_S."""
        if self._is_literal:
            return any(address == each.ip for each in self.current)
        record = self._records.get(address)
        return record is not None and self._is_protected(record)

    def ips(self) -> frozenset[Address]:
        """Return the IP addresses that the name has now; none of a unix socket."""
        return frozenset(each.ip for each in self.current if each.ip is not None)

    async def wait_settled(self) -> None:
        """Wait until the name was resolved, or could not be."""
        await self._settled.wait()

    def owns(self, address: BackendAddress) -> bool:
        """Return True if *address* is a record of ours, even if the name has moved since."""
        if address in self.current:
            return True
        return address.ip is not None and self._records.get(address.ip) is address

    def now(self) -> float:
        """Return the time by which failures are remembered."""
        return self._clock()

    def note_failure(
        self, address: BackendAddress, detail: str, *, has_others: bool
    ) -> None:
        """Note that *address* failed; report it if sessions have others to use."""
        was_failing = address.is_failing
        address.note_failure(self._clock())
        if not was_failing and has_others:
            self._log.warning(
                "backend_address_failed",
                backend=str(self.name),
                address=str(address),
                detail=detail,
            )

    def note_success(self, address: BackendAddress, *, has_others: bool) -> None:
        """Note that *address* greeted us; report it as ``note_failure`` does."""
        if address.is_failing:
            address.note_success()
            if has_others:
                self._log.info(
                    "backend_address_recovered",
                    backend=str(self.name),
                    address=str(address),
                )

    def note_source(
        self, address: BackendAddress, mark: int, fault: Fault | None
    ) -> None:
        """Note whether connections with that *mark* from clients' addresses reach *address*."""
        proof = address.source_proof(mark)
        before, proof.fault = proof.fault, fault
        about = {"backend": str(self.name), "address": str(address)}
        if fault is not None and fault != before:
            self._log.error(
                "source_failed", reason=fault.reason, detail=fault.detail, **about
            )
        elif fault is None and before is not None:
            self._log.info("source_recovered", **about)
        self._on_change()

    def note_pass(self, address: BackendAddress, fault: Fault | None) -> None:
        """Note whether the service at *address* that takes clients' sockets is down."""
        proof = address.pass_proof
        before, proof.fault = proof.fault, fault
        about = {"backend": str(self.name)}
        if fault is not None and before is None:
            self._log.error(
                "pass_failed", reason=fault.reason, detail=fault.detail, **about
            )
        elif fault is None and before is not None:
            self._log.info("pass_recovered", **about)
        self._on_change()

    def run_test(self, test: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a *test* of an address in the background, at the longest until we are closed."""
        task = asyncio.get_running_loop().create_task(test)
        self._tests.add(task)
        task.add_done_callback(self._tests.discard)
        return task

    # Keeping them up to date.

    def inherit(self, other: "BackendAddresses") -> None:
        """Take over what *other* knows of the same host name, for our own port."""
        if self._is_literal:
            return
        for key, known in other._records.items():
            assert isinstance(known.socket_address, tuple)
            own = (known.socket_address[0], self.name.port)
            record = BackendAddress(known.family, own)
            record.resolved_at = known.resolved_at
            self._records[key] = record
        self.current = [
            self._records[each.ip] for each in other.current if each.ip is not None
        ]
        self._known = set(other._known)

    def start(self) -> None:
        """Resolve the name now, and again whenever its answer expires."""
        if not self._is_literal and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep_fresh())

    def hurry(self) -> None:
        """Find out again, now, what may have changed: addresses, and what they do with headers.

        ``wait_settled`` waits for the addresses.
        """
        for address in self.current:
            for proof in address.header_proofs.values():
                proof.tested_at = float("-inf")
            # The next configuration begins the tests that it needs.
            for each in address.source_proofs.values():
                if each.test is not None:
                    each.test.cancel()
                    each.test = None
        if not self._is_literal:
            self._settled.clear()
            self._hurry.set()

    async def close(self) -> None:
        """Stop resolving and testing."""
        tasks = [*self._tests, *([self._task] if self._task else [])]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_fresh(self) -> None:
        while True:
            self._hurry.clear()
            try:
                valid_s = await self.refresh()
            except Exception as error:  # noqa: BLE001 - a defect must not freeze the addresses
                self._note_unresolved(repr(error))
                valid_s = RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(valid_s):
                    await self._hurry.wait()

    async def refresh(self) -> float:
        """Resolve the name; return for how many seconds the result is valid."""
        if self._is_literal:
            return MAX_TTL_S
        try:
            found = await self._lookup.find(self.name.host)
        except LookupFailed as error:
            self._note_unresolved(str(error))
            return RETRY_S
        finally:
            if not self._hurry.is_set():
                self._settled.set()
        self._adopt(found)
        if self.failure is not None:
            self.failure = None
            self._log.info("backend_resolved", backend=str(self.name))
        return max(MIN_TTL_S, min(found.ttl_s, MAX_TTL_S))

    def _adopt(self, found: Found) -> None:
        now = self._clock()
        kept = [  # of a version whose lookup failed
            each.ip
            for each in self.current
            if each.ip is not None and each.ip.version not in found.by_version
        ]
        addresses = kept + [a for each in found.by_version.values() for a in each]
        current = []
        for address in in_order(dict.fromkeys(addresses)):
            key = fold_v4_mapped(address)
            record = self._records.get(key)
            if record is None:
                family = socket.AF_INET if address.version == 4 else socket.AF_INET6
                record = BackendAddress(family, (str(address), self.name.port))
                self._records[key] = record
            record.resolved_at = now
            current.append(record)
        # Protected first, then used: there is no await in between.
        self.current = current
        self._known.update(found.by_version)
        for key, record in list(self._records.items()):
            if not self._is_protected(record):
                del self._records[key]
        self._on_change()

    def _is_protected(self, record: BackendAddress) -> bool:
        # While the name cannot be resolved, its last addresses stay in force.
        if self._clock() - record.resolved_at < PROTECTED_S:
            return True
        return record in self.current

    def _note_unresolved(self, detail: str) -> None:
        if self.failure is None:
            if self.is_known:
                self._log.warning(
                    "backend_unresolved",
                    backend=str(self.name),
                    detail=detail,
                    hint="the last known addresses stay in use",
                )
            else:
                self._log.error(
                    "backend_unresolved",
                    backend=str(self.name),
                    detail=detail,
                    hint="until the name resolves, every client gets a 421",
                )
        self.failure = detail
        self._on_change()


def _read_literal(name: SocketName) -> Sequence[BackendAddress]:
    """Return the one address of a path or an IP address; none of a host name."""
    if name.path:
        return (BackendAddress(socket.AF_UNIX, name.path),)
    try:
        found = socket.getaddrinfo(
            name.host,
            name.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
    except (OSError, UnicodeError):
        return ()
    return tuple(BackendAddress(each[0], each[4]) for each in found)
