"""The relay: two byte pumps through one guard, with back pressure both ways.

It uses callbacks, because speed is decided here: what one packet brought goes out in the same
turn of the reactor, with no task, future or timer in between.  Most packets are one command or
one reply, are forwarded unchanged, and change nothing but the guard's state; the guard takes
those in one call (``pass_command``, ``pass_reply``).  Only the others go the long way.  ``run``
waits for the end and returns how it ended; the session closes the connections.

Back pressure: we read a side only while the other one takes what it is sent.  So a session holds
at most one read of content each way, and what the guard holds, which has its own bounds.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

from proxyshim.backend.dialogue import LastReply
from proxyshim.errors import BackendError, PeerError, Reason
from proxyshim.net.stream import Stream
from proxyshim.proxy_header.watch import HeaderWatch
from proxyshim.session.timing import RelayClock, RelayLimits
from proxyshim.smtp import replies
from proxyshim.smtp.guard import Guard, Transaction

# Replies that the client has not read.  Above this we stop reading the client as well.
MAX_UNREAD_OCTETS: Final = 65_536
# How long our own reply waits after a 5xx of the backend, because servers hang up after some.
_HESITATION_S: Final = 0.2


class End(StrEnum):
    """How a relay ended."""

    BACKEND_CLOSED = "backend_closed"  # after a closing reply, or without one
    GUARD = "guard"  # the guard ended it; its ``end_reason`` says why
    CLIENT_LOST = "client_lost"


class Relay:
    """Pumps one session until an end is reached."""

    __slots__ = (
        "_backend",
        "_backend_reset",
        "_client",
        "_client_ended",
        "_clock",
        "_defect",
        "_ended",
        "_guard",
        "_last_reply",
        "_on_forbidden",
        "_on_refused",
        "_reactor",
        "_waiter",
        "_watch",
        "at",
        "cut_in",
        "failure",
        "place",
    )

    def __init__(
        self,
        client: Stream,
        backend: Stream,
        guard: Guard,
        limits: RelayLimits,
        on_refused: Callable[[Reason], None],
        last_reply: LastReply,
    ) -> None:
        """Join two streams; call *on_refused* for each command that is not forwarded.

        *last_reply* notes when the backend speaks.
        """
        self._reactor = client.reactor
        self._client = client
        self._backend = backend
        self._guard = guard
        self._on_refused = on_refused
        self._last_reply = last_reply
        self._ended: End | None = None
        self._defect: Exception | None = None  # raised by our own code in a callback
        self._waiter = client.reactor.get_waiter()
        self._client_ended = False
        self._backend_reset = False
        self._clock = RelayClock(limits, client.reactor.time())
        self._watch: HeaderWatch | None = None
        self._on_forbidden: Callable[[PeerError], bytes] | None = None
        self.at = 0.0  # see net/deadlines.py, Alarm
        self.place = 0
        self.failure: BackendError | None = None  # what was wrong with the backend
        self.cut_in: str | None = None  # the state of the transaction that a drain cut

    async def run(self, from_client: bytes, from_backend: bytes) -> End:
        """Relay until an end, beginning with what has been received already."""
        if from_client:
            # Flush the greeting first; if the client is gone, do not act on its pipelined input.
            self._client.flush()
        if self._client.write_failed:
            return End.CLIENT_LOST
        self._client.start_reading(
            self._read_client, self._lose_client, self._note_client_backlog
        )
        self._backend.start_reading(
            self._read_backend, self._lose_backend, self._note_backend_backlog
        )
        self._set_alarm()
        try:
            if from_backend:
                self._read_backend(from_backend)
            if from_client:  # the watch, if there is one, has seen it
                self._guard.from_client(from_client)
                self._flush()
            while self._ended is None:
                await self._waiter.wait()
        finally:
            self._reactor.deadlines.clear(self)
            self._client.stop_reading()
            self._backend.stop_reading()
        if self._defect is not None:
            raise self._defect
        return self._ended

    def watch_first_octets(
        self, watch: HeaderWatch, on_forbidden: Callable[[PeerError], bytes]
    ) -> None:
        """Pass the client's first octets through *watch* before the guard sees them.

        *on_forbidden* is called for a PROXY header, and returns the reply to it.
        """
        self._watch = watch
        self._on_forbidden = on_forbidden

    # The client's direction.

    def _read_client(self, data: bytes) -> None:
        clock = self._clock
        clock.last_activity = self._reactor.time()
        clock.client_spoke_last = True
        try:
            if data and self._watch is None and self._guard.pass_command(data):
                self._backend.send(data)
                if self._backend.backlog_octets:
                    self._balance()
            else:
                self._read_client_slowly(data)
        except Exception as error:  # noqa: BLE001 - the session reports it
            self._fail(error)

    def _read_client_slowly(self, data: bytes) -> None:
        """Take more, or less, than one ordinary command; b"" is the end."""
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

    def _lose_client(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self._end(End.CLIENT_LOST)
        else:
            self._fail(error)

    def _note_client_backlog(self) -> None:
        """The client's backlog has grown, has gone, or can no longer be sent."""
        if self._client.write_failed:
            self._end(End.CLIENT_LOST)
        else:
            self._balance()

    # The backend's direction.

    def _read_backend(self, data: bytes) -> None:
        clock = self._clock
        clock.last_activity = self._last_reply.at = self._reactor.time()
        clock.client_spoke_last = False
        try:
            if data and self._guard.pass_reply(data):
                self._client.send(data)
                if self._client.backlog_octets or self._client.paused:
                    self._balance()
            else:
                self._read_backend_slowly(data)
            if clock.is_draining:
                self._end_if_idle()
        except Exception as error:  # noqa: BLE001 - the session reports it
            self._fail(error)

    def _read_backend_slowly(self, data: bytes) -> None:
        """Take more, or less, than one ordinary reply; b"" is the end."""
        if not data:
            by_reset = self._backend_reset or self._backend.write_failed
            self._guard.backend_closed(by_reset=by_reset)
            self._flush()
            self._end(End.BACKEND_CLOSED)
            return
        try:
            if self._guard.from_backend(data):
                self._reactor.loop.call_later(_HESITATION_S, self._stop_hesitating)
        except BackendError as error:
            self.failure = error
            self._guard.abandon(error.reason, replies.BACKEND_LOST)
        self._flush()

    def _stop_hesitating(self) -> None:
        if self._ended is not None:
            return
        try:
            self._guard.from_backend(b"")
            self._flush()
        except Exception as error:  # noqa: BLE001 - the session reports it
            self._fail(error)

    def _lose_backend(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self._backend_reset = True
            self._read_backend(b"")
        else:
            self._fail(error)

    def _note_backend_backlog(self) -> None:
        """The backend's backlog has grown, has gone, or can no longer be sent."""
        if self._backend.write_failed:
            self._backend.resume_reading()  # its last reply and its end are still to be read
        else:
            self._balance()

    # Both directions.

    def _flush(self) -> None:
        """Send what the guard has put out."""
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
        """Read each side only while the other takes what it is sent."""
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
            # Do not wake the session here: it would close the stream whose callback may be
            # running.
            waiter = self._waiter
            self._reactor.call_after_events(waiter.wake, waiter.fail)
            self._ended = end

    def _fail(self, error: Exception) -> None:
        self._defect = self._defect or error
        self._end(End.GUARD)

    # Time.

    def _set_alarm(self) -> None:
        deadlines = self._reactor.deadlines
        deadlines.clear(self)
        self.at = self._clock.next_check(self._guard, self._reactor.time())
        deadlines.set(self)

    def expire(self) -> None:
        """Check the time; called by the timer wheel."""
        if self._ended is not None:
            return
        try:
            decision = self._clock.decide(self._guard, self._reactor.time())
            if decision is None:
                self._set_alarm()
                return
            self.cut_in = decision.cut_in
            self._guard.abandon(decision.reason, decision.reply)
            self._flush()
            self._end(End.GUARD)
        except Exception as error:  # noqa: BLE001 - the session reports it
            self._fail(error)

    def drain(self) -> None:
        """End the session as soon as that can no longer cut, duplicate or lose a message."""
        if self._clock.is_draining or self._ended is not None:
            return
        try:
            self._clock.start_drain(self._reactor.time())
            self._end_if_idle()
            if self._ended is None:
                self._set_alarm()
        except Exception as error:  # noqa: BLE001 - the session reports it
            self._fail(error)

    def _end_if_idle(self) -> None:
        """While draining, end the session if no transaction is open."""
        if self._ended is None and self._guard.transaction is Transaction.IDLE:
            self._guard.end(Reason.SHUTDOWN, replies.SHUTTING_DOWN)
            self._flush()


def _joined(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)
