"""The relay: two byte pumps through one guard, with back pressure both ways.

Callbacks, for this is where speed is decided: what one packet brought goes out in the same turn of
the poller, with no task, future or timer in between.  Most packets are one command or one reply, go
on as they came, and change nothing but the guard's account; those the guard takes in one call
(``pass_command``, ``pass_reply``), and all else that a packet can mean is looked at only for the
others.  ``run`` waits for the end and says which it was; closing is the session's business.

Back pressure: a side is read only while the other takes what it got.  So a session holds at most
one read of content each way, and what the guard holds, which has its own bounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from proxyshim.errors import BackendError, PeerError, Reason
from proxyshim.net.connection import Connection
from proxyshim.net.fiber import Sleeper, TaskSleeper, running
from proxyshim.proxy_header.watch import HeaderWatch
from proxyshim.smtp import replies
from proxyshim.smtp.guard import Guard, Transaction

# Replies that a client does not read; behind that it is not read either.
MAX_UNREAD_OCTETS: Final = 65_536
# RFC 5321, 4.5.3.2.6: the answer to a final dot may take ten minutes.
FINAL_REPLY_S: Final = 600.0
# A drain closes a session that it can't read when the backend spoke last and both sides were
# silent for so long.
_SETTLED_S: Final = 3.0


class End(StrEnum):
    """How a relay came to its end."""

    BACKEND_CLOSED = "backend_closed"  # it said goodbye, or closed without
    GUARD = "guard"  # the guard ended it; its ``end_reason`` says why
    CLIENT_LOST = "client_lost"


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """Time limits, in seconds."""

    idle_timeout_s: float
    drain_timeout_s: float


class Relay:
    """Pumps one session until an end is reached."""

    __slots__ = (
        "_backend",
        "_client",
        "_client_ended",
        "_client_spoke_last",
        "_defect",
        "_drain_until",
        "_ended",
        "_guard",
        "_last_activity",
        "_limits",
        "_loop",
        "_on_forbidden",
        "_on_refused",
        "_sleeper",
        "_watch",
        "at",
        "cut_in",
        "failure",
        "place",
    )

    def __init__(
        self,
        client: Connection,
        backend: Connection,
        guard: Guard,
        limits: RelayLimits,
        on_refused: Callable[[Reason], None],
    ) -> None:
        """Join two connections; *on_refused* hears of each command that was not sent on."""
        self._loop = client.loop
        self._client = client
        self._backend = backend
        self._guard = guard
        self._limits = limits
        self._on_refused = on_refused
        self._ended: End | None = None
        self._defect: Exception | None = None  # of ours, in a callback
        self._sleeper: Sleeper = running() or TaskSleeper(self._loop)
        self._client_ended = False
        self._client_spoke_last = False
        self._last_activity = self._loop.time()
        self._drain_until: float | None = None
        self._watch: HeaderWatch | None = None
        self._on_forbidden: Callable[[PeerError], bytes] | None = None
        self.at = 0.0  # when to look at the clock again
        self.place = 0
        self.failure: BackendError | None = None  # what was wrong with the backend
        self.cut_in: str | None = None  # in the middle of what a drain's deadline came

    async def run(self, from_client: bytes, from_backend: bytes) -> End:
        """Relay until an end, beginning with what was received already."""
        if from_client:  # nothing is done for whom the greeting does not reach
            self._client.flush()
        if self._client.write_failed:
            return End.CLIENT_LOST
        self._client.start_reading(
            self._read_client, self._lose_client, self._heed_client
        )
        self._backend.start_reading(
            self._read_backend, self._lose_backend, self._heed_backend
        )
        self._schedule()
        try:
            if from_backend:
                self._read_backend(from_backend)
            if from_client:  # the watch, if there is one, has seen it
                self._guard.from_client(from_client)
                self._flush()
            while self._ended is None:
                await self._sleeper.pause()
        finally:
            self._client.deadlines.end(self)
            self._client.stop_callbacks()
            self._backend.stop_callbacks()
        if self._defect is not None:
            raise self._defect
        return self._ended

    def watch_first_octets(
        self, watch: HeaderWatch, on_forbidden: Callable[[PeerError], bytes]
    ) -> None:
        """Let the client's first octets through *watch* before the guard sees them.

        *on_forbidden* hears of a PROXY header, and returns the reply to it.
        """
        self._watch = watch
        self._on_forbidden = on_forbidden

    # The client's direction.

    def _read_client(self, data: bytes) -> None:
        self._last_activity = self._loop.time()
        self._client_spoke_last = True
        try:
            if data and self._watch is None and self._guard.pass_command(data):
                self._backend.send(data)
                if self._backend.backlog_octets:
                    self._balance()
            else:
                self._study_client(data)
        except Exception as error:  # noqa: BLE001 - the session will say so
            self._fail(error)

    def _study_client(self, data: bytes) -> None:
        """Take what is more, or less, than one ordinary command; empty is the end."""
        if not data:
            self._client_ended = True
            self._guard.client_closed()
        else:
            if self._watch is not None:
                data = self._pass_watch(self._watch, data)
            self._guard.from_client(data)
        self._flush()

    def _pass_watch(self, watch: HeaderWatch, data: bytes) -> bytes:
        try:
            data = watch.admit(data)
        except PeerError as error:
            assert self._on_forbidden is not None
            self._guard.end(error.reason, self._on_forbidden(error))
            return b""
        if not watch.undecided:
            self._watch = None
        return data

    def _lose_client(self, _: OSError) -> None:
        self._end(End.CLIENT_LOST)

    def _heed_client(self) -> None:
        """Take account of what it does not read, or does again."""
        if self._client.write_failed:
            self._end(End.CLIENT_LOST)
        else:
            self._balance()

    # The backend's direction.

    def _read_backend(self, data: bytes) -> None:
        self._last_activity = self._loop.time()
        self._client_spoke_last = False
        try:
            if data and self._guard.pass_reply(data):
                self._client.send(data)
                if self._client.backlog_octets or self._client.paused:
                    self._balance()
            else:
                self._study_backend(data)
            if self._drain_until is not None:
                self._drain_if_settled()
        except Exception as error:  # noqa: BLE001 - the session will say so
            self._fail(error)

    def _study_backend(self, data: bytes) -> None:
        """Take what is more, or less, than one ordinary reply; empty is the end."""
        if not data:
            self._guard.backend_closed()
            self._flush()
            self._end(End.BACKEND_CLOSED)
            return
        try:
            self._guard.from_backend(data)
        except BackendError as error:
            self.failure = error
            self._guard.abandon(error.reason, replies.BACKEND_LOST)
        self._flush()

    def _lose_backend(self, _: OSError) -> None:
        self._read_backend(b"")

    def _heed_backend(self) -> None:
        """Take account of what it does not read, or does again."""
        if self._backend.write_failed:
            self._backend.resume_reading()  # its last words, and its end, are there
        else:
            self._balance()

    # Both.

    def _flush(self) -> None:
        """Send what the guard put out."""
        guard = self._guard
        if guard.to_backend:
            self._backend.send(_joined(guard.to_backend))
            guard.to_backend.clear()
        if guard.to_client:
            self._client.send(_joined(guard.to_client))
            guard.to_client.clear()
        if guard.refused:
            for reason in guard.refused:
                self._on_refused(reason)
            guard.refused.clear()
        if self._client_ended and (guard.client_drained or guard.is_opaque):
            self._backend.end_sending()
        if guard.finished:
            self._end(End.GUARD)
        else:
            self._balance()

    def _balance(self) -> None:
        """Read each side while the other takes what it sends."""
        if self._ended is not None:
            return
        client, backend = self._client, self._backend
        if not self._client_ended:
            if (
                backend.backlog_octets == 0
                and client.backlog_octets <= MAX_UNREAD_OCTETS
                and self._guard.wants_client
            ):
                client.resume_reading()
            else:
                client.pause_reading()
        if client.backlog_octets:
            backend.pause_reading()
        else:
            backend.resume_reading()

    def _end(self, end: End) -> None:
        self._client.pause_reading()
        self._backend.pause_reading()
        if self._ended is None:
            self._ended = end
            # Not from within: the session closes what this callback is about.
            self._client.poller.soon(self._sleeper.resume)

    def _fail(self, error: Exception) -> None:
        self._defect = self._defect or error
        self._end(End.GUARD)

    # Time.

    def _schedule(self) -> None:
        """Look at the clock again when the present limit is reached.

        Activity moves no limit; it is looked at when that is reached.
        """
        deadlines = self._client.deadlines
        deadlines.end(self)
        self.at = self._last_activity + self._idle_limit_s
        if self._drain_until is not None:
            self.at = min(self.at, self._next_drain_check())
        deadlines.begin(self)

    @property
    def _idle_limit_s(self) -> float:
        if self._guard.transaction is Transaction.FINAL_REPLY:
            return max(self._limits.idle_timeout_s, FINAL_REPLY_S)
        return self._limits.idle_timeout_s

    def expire(self) -> None:
        """Look at the clock."""
        if self._ended is None:
            try:
                self._check_time()
            except Exception as error:  # noqa: BLE001 - the session will say so
                self._fail(error)

    def _check_time(self) -> None:
        if self._loop.time() >= self._last_activity + self._idle_limit_s:
            if self._guard.awaits_backend:
                self._guard.abandon(Reason.BACKEND_TIMEOUT, replies.BACKEND_LOST)
            else:
                self._guard.abandon(Reason.CLIENT_IDLE, replies.CLIENT_TOO_SLOW)
            self._flush()
            self._end(End.GUARD)
            return
        if self._drain_until is not None:
            self._drain_by_time()
        if self._ended is None:
            self._schedule()

    # Draining.

    def drain(self) -> None:
        """End the session as soon as no message can be cut, doubled or lost by it."""
        if self._drain_until is None and self._ended is None:
            self._drain_until = self._loop.time() + self._limits.drain_timeout_s
            self._drain_if_settled()
            if self._ended is None:
                self._schedule()

    def _drain_if_settled(self) -> None:
        """Take leave of a client between transactions."""
        if self._drain_until is None or self._ended is not None:
            return
        if self._guard.transaction is Transaction.IDLE:
            self._guard.end(Reason.SHUTDOWN, replies.SHUTTING_DOWN)
            self._flush()

    def _next_drain_check(self) -> float:
        assert self._drain_until is not None
        now = self._loop.time()
        if self._guard.is_opaque:
            return min(max(self._drain_until, now), now + _SETTLED_S)
        if self._drain_until <= now:
            return (
                now + _SETTLED_S
            )  # only the answer to a final dot is waited for still
        return self._drain_until

    def _drain_by_time(self) -> None:
        assert self._drain_until is not None
        now = self._loop.time()
        if self._guard.transaction is Transaction.FINAL_REPLY:
            return
        settled = (
            self._guard.is_opaque
            and not self._client_spoke_last
            and now - self._last_activity >= _SETTLED_S
        )
        if settled or now >= self._drain_until:
            if not settled and self._guard.transaction is not Transaction.IDLE:
                self.cut_in = self._guard.transaction.name.lower()
            self._guard.abandon(Reason.SHUTDOWN, replies.SHUTTING_DOWN)
            self._flush()
            self._end(End.GUARD)


def _joined(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)
