"""The relay: two byte pumps through one guard, with back pressure both ways.

It uses callbacks, because speed is decided here: what one packet brought goes out in the same
turn of the reactor, with no task, future or timer in between.  Most packets are one command or
reply, and change nothing but the guard's state; the guard takes those in one call
(``pass_command``, ``pass_reply``).  Only the others go the long way.

At a drain's deadline it takes nothing more from the client, drops what is unsent, and from then on
only delivers the replies up to the last final one.
"""

from collections.abc import Callable
from typing import Final

from proxyshim.backend.dialogue import LastReply
from proxyshim.errors import BackendError, PeerError, Reason
from proxyshim.net.stream import Stream
from proxyshim.proxy_header.watch import HeaderWatch
from proxyshim.session.back_pressure import balance, read_backend_only
from proxyshim.session.record import End
from proxyshim.session.timing import RelayClock, RelayLimits
from proxyshim.smtp import replies
from proxyshim.smtp.final_replies import FinalReply
from proxyshim.smtp.guard import Guard, Transaction

# How long our own reply waits after a 5xx of the backend, because servers hang up after some.
_HESITATION_S: Final = 0.2


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
        "_final_octets",
        "_guard",
        "_is_deaf",
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
        on_forbidden: Callable[[PeerError], bytes],
        last_reply: LastReply,
    ) -> None:
        """Join two streams.

        *on_refused* is called for each command that is not forwarded.  *on_forbidden* is called
        for a PROXY header, and returns the reply to it.  *last_reply* notes when the backend
        speaks.
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
        self._is_deaf = False  # takes nothing more from the client
        self._final_octets = 0  # where in the client's output the last final reply ends
        self._clock = RelayClock(limits, client.reactor.time())
        self._watch: HeaderWatch | None = None
        self._on_forbidden = on_forbidden
        self.at = 0.0  # see net/deadlines.py, Alarm
        self.place = 0
        self.failure: BackendError | None = None  # what was wrong with the backend
        self.cut_in: str | None = None  # the state of the transaction that a drain cut

    def begin(
        self, from_client: bytes, from_backend: bytes, watch: HeaderWatch | None
    ) -> None:
        """Begin to relay, with what has been received already.  ``wait`` must follow.

        The client's first octets pass through *watch* before the guard sees them.
        """
        self._watch = watch
        try:
            if from_client:
                # Flush the greeting first; if the client is gone, do not act on its input.
                self._client.flush()
            if self._client.write_failed:
                self._end(End.CLIENT_LOST)
                return
            self._client.start_reading(
                self._read_client, self._lose_client, self._note_client_backlog
            )
            self._backend.start_reading(
                self._read_backend, self._lose_backend, self._note_backend_backlog
            )
            self._set_alarm()
            if from_backend:
                self._read_backend(from_backend)
            if from_client:  # the watch, if there is one, has seen it
                self._guard.from_client(from_client)
                self._flush()
        except Exception as error:  # noqa: BLE001 - ``wait`` raises it
            self._fail(error)

    async def wait(self) -> End:
        """Wait for the end."""
        try:
            while self._ended is None:
                await self._waiter.wait()
        finally:
            self._reactor.deadlines.clear(self)
            self._client.stop_reading()
            self._backend.stop_reading()
        if self._defect is not None:
            raise self._defect
        return self._ended

    # The client's direction.

    def _read_client(self, data: bytes) -> None:
        try:
            if not data:
                self._client_ended = True
                self._guard.client_closed()
                self._flush()
                return
            clock = self._clock
            clock.client_at = self._reactor.time()
            clock.client_spoke_last = True
            if self._watch is None and self._guard.pass_command(data):
                self._backend.send(data)
                if self._backend.backlog_octets:
                    self._balance()
            else:
                if self._watch is not None:
                    data = self._pass_watch(self._watch, data)
                self._guard.from_client(data)
                self._flush()
        except Exception as error:  # noqa: BLE001 - the session reports it
            self._fail(error)

    def _pass_watch(self, watch: HeaderWatch, data: bytes) -> bytes:
        try:
            data = watch.admit(data)
        except PeerError as error:
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
        clock.backend_at = now = self._reactor.time()
        clock.client_spoke_last = False
        try:
            if data:
                self._last_reply.at = now
            if data and self._guard.pass_reply(data):
                self._client.send(data)
                if self._guard.finals.has_news:
                    self._note_news(self._client.octets_given)
                if self._client.backlog_octets or self._client.paused:
                    self._balance()
            else:
                self._read_backend_slowly(data)
            if clock.is_draining:
                self._end_if_harmless()
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
        was_opaque = self._guard.is_opaque
        try:
            if self._guard.from_backend(data):
                self._reactor.loop.call_later(_HESITATION_S, self._stop_hesitating)
            if self._guard.is_opaque and not (
                was_opaque or self._guard.finals.is_ahead
            ):
                self._clock.forget_client()
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
            if guard.finals.has_news:
                parts = guard.to_client[: guard.finals.final_parts]
                self._note_news(self._client.octets_given + sum(map(len, parts)))
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
        elif guard.tls is not None and guard.tls.is_wanted:
            self._end(End.STARTTLS)
        elif self._client_ended and self._clock.has_quit:
            guard.backend_closed()
            self._end(End.BACKEND_QUIT)
        else:
            if guard.end_reason is not None and self._clock.note_ending(
                guard, self._reactor.time()
            ):
                self._set_alarm()
            self._balance()

    def _note_news(self, octets_given: int) -> None:
        """Take the news of a final reply, which ends there, or of the backend's 221."""
        if self._guard.finals.take_news():
            self._final_octets = octets_given
        if self._guard.backend_quitting and not self._clock.has_quit:
            self._clock.note_quit(self._reactor.time())
            self._set_alarm()

    @property
    def final_octets(self) -> int:
        """Return where the last final reply ends in the client's output; 0 without one.

        In an opaque stream each of the backend's octets may be its end.
        """
        if self._guard.is_opaque and self._clock.client_spoke:
            return self._client.octets_given
        return self._final_octets

    def _balance(self) -> None:
        """Read each side only while the other takes what it is sent."""
        if self._ended is not None:
            return
        if self._is_deaf:
            if not read_backend_only(self._client, self._backend):
                self._end(End.CLIENT_LOST)
        else:
            may_read_client = self._guard.wants_client and not self._client_ended
            balance(self._client, self._backend, may_read_client=may_read_client)

    def _end(self, end: End) -> None:
        self._client.pause_reading()
        self._backend.pause_reading()
        if self._ended is None:
            # Do not wake the session here: it would close the stream that calls us.
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
        clock, now = self._clock, self._reactor.time()
        try:
            if clock.has_quit and self._client.backlog_octets:
                clock.note_quit(now)  # it has not been delivered yet
            if clock.is_drain_over(now) and not self._is_deaf:
                # Take nothing more from the client, and drop what is unsent.
                self._is_deaf = True
                self._client.pause_reading()
                self._end_if_harmless(self._backend.drop_unsent())
            decision = clock.decide(self._guard, now)
            if self._ended is not None:
                return
            if decision is None:
                self._set_alarm()
            elif decision.reason is None:
                self._guard.backend_closed()
                self._flush()
                self._end(End.BACKEND_QUIT)
            else:
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
            self._end_if_harmless()
            if self._ended is None:
                self._set_alarm()
        except Exception as error:  # noqa: BLE001 - the session reports it
            self._fail(error)

    def _end_if_harmless(self, unsent: int = 0) -> None:
        """End a session that drains, between two transactions, or after the last final reply."""
        guard = self._guard
        if self._ended is not None:
            return
        if self._is_deaf and not guard.is_opaque:
            self.cut_in = self.cut_in or guard.finals.stop_client(
                unsent, Reason.SHUTDOWN, replies.SHUTTING_DOWN
            )
        elif (
            guard.transaction is Transaction.IDLE
            and guard.finals.owed is FinalReply.NONE
        ):
            guard.end(Reason.SHUTDOWN, replies.SHUTTING_DOWN)
        self._flush()


def _joined(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)
