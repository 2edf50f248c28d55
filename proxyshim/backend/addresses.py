"""The addresses of a backend: one record for each, kept up to date in the background.

A host name is resolved once for all sessions, and again when its answer expires.  While that
fails, the last good answer serves.  ``session/trust.py`` asks this set whether a claimed address
is the backend's, so a new address is in it before any session uses it, and an old one stays for
a day: rotating DNS answers return parts of a set.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

import structlog

from proxyshim.addresses import Address, SocketName, fold_v4_mapped, read_address
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
# How long an address that failed is tried after the others.
AVOID_FAILED_S: Final = 30.0


class SecondHeader(Enum):
    """What a backend does with a second PROXY header."""

    REFUSED = auto()
    CLOSED_AT = auto()  # refused, and the connection closed
    OBEYED = auto()


@dataclass(slots=True)
class HeaderProof:
    """What our last test of an address with two PROXY headers has shown."""

    verdict: SecondHeader | None = None  # None: nothing yet
    tested_at: float = float("-inf")  # by the event loop's clock
    test: asyncio.Task[None] | None = None  # while one is under way


class BackendAddress:
    """One socket address of a backend, and what we remember of it.

    Conveyances keep here what they have found out about it.
    """

    __slots__ = (
        "_failed_at",
        "family",
        "header_proofs",
        "ip",
        "resolved_at",
        "socket_address",
    )

    def __init__(self, family: int, socket_address: object) -> None:
        """Take an address as the socket module wants it; a path for a unix socket."""
        self.family = family
        self.socket_address = socket_address
        # The folded IP address; None of a unix socket.
        self.ip: Address | None = None
        if isinstance(socket_address, tuple):
            self.ip = read_address(socket_address[0])
        self.resolved_at = 0.0
        self._failed_at: float | None = None
        # By version of the PROXY header.
        self.header_proofs: dict[int, HeaderProof] = {}

    def __str__(self) -> str:
        """Return the address for the log."""
        if self.ip is None:
            return f"unix:{self.socket_address}"
        return str(self.ip)

    @property
    def is_failing(self) -> bool:
        """True from a failure until the next success."""
        return self._failed_at is not None

    def is_avoided(self, now: float) -> bool:
        """Return True while the other addresses are tried first."""
        return self._failed_at is not None and now - self._failed_at < AVOID_FAILED_S

    def begin_test(self, now: float) -> None:
        """Let one session test it again; the others still avoid it meanwhile."""
        if self._failed_at is not None:
            self._failed_at = now

    def note_failure(self, now: float) -> None:
        """Note that it refused, was silent, or greeted with a failure."""
        self._failed_at = now

    def note_success(self) -> None:
        """Note that it greeted us."""
        self._failed_at = None


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

        *on_change* is called when ``is_known`` may have changed.
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

    def in_order(
        self, fits: Callable[[BackendAddress], bool] = lambda _: True
    ) -> Iterator[BackendAddress]:
        """Yield the addresses that *fits* accepts, in the order in which to try them.

        Failing ones come last.
        """
        now = self._clock()
        fitting = [each for each in self.current if fits(each)]
        avoided = [each for each in fitting if each.is_avoided(now)]
        for each in fitting:
            if each not in avoided:
                each.begin_test(now)
                yield each
        yield from avoided

    def note_failure(self, address: BackendAddress, detail: str) -> None:
        """Note that *address* failed; report it if sessions can use another one."""
        was_failing = address.is_failing
        address.note_failure(self._clock())
        if not was_failing and len(self.current) > 1:
            self._log.warning(
                "backend_address_failed",
                backend=str(self.name),
                address=str(address),
                detail=detail,
            )

    def note_success(self, address: BackendAddress) -> None:
        """Note that *address* greeted us."""
        if address.is_failing:
            address.note_success()
            if len(self.current) > 1:
                self._log.info(
                    "backend_address_recovered",
                    backend=str(self.name),
                    address=str(address),
                )

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
        if not self._is_literal:
            self._settled.clear()
            self._hurry.set()

    async def close(self) -> None:
        """Stop resolving."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

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
