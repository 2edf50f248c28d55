"""When a relay ends by the clock: silence, a drain, and a backend that does not close.

Pure decisions: the time and the guard are arguments, so that each rule can be tested without a
socket.
"""

from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple, Self

from proxyshim.config import Listener
from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.final_replies import FinalReply
from proxyshim.smtp.guard import Guard

# RFC 5321, 4.5.3.2.6: the reply to a final dot may take ten minutes.
FINAL_REPLY_S: Final = 600.0
# A final reply that is only possible: our own last reply waits for it for this long, and in an
# opaque stream it remains possible for this long after the client's last octet.
POSSIBLE_REPLY_S: Final = 60.0
# Before its deadline, a drain ends an opaque session that is owed nothing after this much silence,
# because a reply may come in several parts.
_SETTLED_S: Final = 3.0
# How long we wait for the backend to close after its 221.
QUIT_GRACE_S: Final = 2.0
# While a final reply is awaited or a drain goes on, what has happened may bring the end forward, so
# we look again this often.
_LOOK_AGAIN_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """Time limits, in seconds."""

    idle_timeout_s: float
    drain_timeout_s: float
    drain_opaque_timeout_s: float = POSSIBLE_REPLY_S

    @classmethod
    def from_listener(cls, listener: Listener) -> Self:
        """Return the limits that a *listener* sets for its sessions."""
        settings = listener.settings
        return cls(
            settings.idle_timeout_s,
            settings.drain_timeout_s,
            settings.drain_opaque_timeout_s,
        )


class TimedEnd(NamedTuple):
    """The decision to end a session now."""

    reason: Reason | None  # None: the backend has ended it and does not close
    reply: bytes  # empty if our own could overtake the backend's
    cut_in: str | None = (
        None  # the state of the transaction that a drain cut, for the log
    )


class RelayClock:
    """The times of one relay, and what follows from them."""

    __slots__ = (
        "_drain_until",
        "_ending_since",
        "_limits",
        "_quit_at",
        "backend_at",
        "client_at",
        "client_spoke_last",
    )

    def __init__(self, limits: RelayLimits, now: float) -> None:
        """Start at *now*, by the reactor's clock."""
        self._limits = limits
        self._drain_until = inf
        self._ending_since = inf
        self._quit_at = inf
        # The relay updates these with every packet.
        self.backend_at = now
        self.client_at = -inf
        self.client_spoke_last = False

    @property
    def is_draining(self) -> bool:
        """True after ``start_drain``."""
        return self._drain_until != inf

    @property
    def has_quit(self) -> bool:
        """True after ``note_quit``."""
        return self._quit_at != inf

    @property
    def client_spoke(self) -> bool:
        """True if the client has said something since ``forget_client``."""
        return self.client_at != -inf

    def start_drain(self, now: float) -> None:
        """From now on, end as soon as no message is harmed, or when drain_timeout_s is over."""
        self._drain_until = now + self._limits.drain_timeout_s

    def is_drain_over(self, now: float) -> bool:
        """Return True if nothing more may be taken from the client."""
        return now >= self._drain_until

    def note_quit(self, now: float) -> None:
        """Record that the backend's 221 was delivered, so that it closes soon."""
        self._quit_at = now + QUIT_GRACE_S

    def note_ending(self, guard: Guard, now: float) -> bool:
        """Record that our own last reply waits for one of the backend's that is only possible.

        Return True if this is news.
        """
        if self._ending_since != inf or guard.finals.owed is not FinalReply.POSSIBLE:
            return False
        self._ending_since = now
        return True

    def forget_client(self) -> None:
        """Record that everything the client has said was answered: its TLS begins now."""
        self.client_at = -inf
        self.client_spoke_last = False

    def next_check(self, guard: Guard, now: float) -> float:
        """Return when ``decide`` must be called again.

        Activity in the meantime only postpones an end, or is noticed within _LOOK_AGAIN_S, so
        nothing needs to be updated for it.
        """
        owed = self._final_reply(guard, now)
        at = min(self._idle_end(guard, now), self._quit_at)
        if owed is not FinalReply.NONE:
            at = min(at, now + max(self._limits.idle_timeout_s, _LOOK_AGAIN_S))
        if self._ending_since != inf:
            at = min(at, self._ending_since + POSSIBLE_REPLY_S)
        if self.is_draining:
            until = self._drain_until
            if now >= until:
                until += self._grace_s(owed)
            at = min(at, until, now + _LOOK_AGAIN_S)
        return at

    def decide(self, guard: Guard, now: float) -> TimedEnd | None:
        """Return how the session ends now; None if it goes on."""
        owed = self._final_reply(guard, now)
        is_possible = owed is FinalReply.POSSIBLE
        if now >= self._idle_end(guard, now):
            if guard.awaits_backend and not is_possible:
                return TimedEnd(Reason.BACKEND_TIMEOUT, replies.BACKEND_LOST)
            own = b"" if is_possible else replies.CLIENT_TOO_SLOW
            return TimedEnd(Reason.CLIENT_IDLE, own)
        if now >= self._quit_at:
            return TimedEnd(None, b"")
        end = self._decide_drain(guard, owed, now) if self.is_draining else None
        if end is None and now >= self._ending_since + POSSIBLE_REPLY_S:
            return TimedEnd(guard.end_reason, b"") if is_possible else None
        return end

    def _decide_drain(
        self, guard: Guard, owed: FinalReply, now: float
    ) -> TimedEnd | None:
        if now < self._drain_until:
            if owed is not FinalReply.NONE or not guard.is_opaque:
                return None  # the relay notices when a transaction is over
            is_settled = now >= self._last_activity + _SETTLED_S
            return _shutdown() if is_settled else None
        if now < self._drain_until + self._grace_s(owed):
            return None
        if owed is FinalReply.POSSIBLE:
            return _shutdown(b"", guard.transaction.name.lower())
        return _shutdown(cut_in=_cut_in(guard, owed))

    def _grace_s(self, owed: FinalReply) -> float:
        """Return how long after a drain's deadline we wait for a final reply."""
        if owed is FinalReply.CERTAIN:
            return FINAL_REPLY_S
        if owed is FinalReply.POSSIBLE:
            return self._limits.drain_opaque_timeout_s
        return 0.0

    def _final_reply(self, guard: Guard, now: float) -> FinalReply:
        """Return whether the backend owes the reply to a message."""
        if not guard.is_opaque:
            return guard.finals.owed
        is_possible = now < self._possible_until
        return FinalReply.POSSIBLE if is_possible else FinalReply.NONE

    @property
    def _possible_until(self) -> float:
        """Return until when the reply to a message may come in an opaque stream."""
        return inf if self.client_spoke_last else self.client_at + POSSIBLE_REPLY_S

    @property
    def _last_activity(self) -> float:
        return max(self.client_at, self.backend_at)

    def _idle_end(self, guard: Guard, now: float) -> float:
        """Return when the silence becomes too long."""
        last, idle_s = self._last_activity, self._limits.idle_timeout_s
        if self._final_reply(guard, now) is FinalReply.NONE:
            return last + idle_s
        final = last + max(idle_s, FINAL_REPLY_S)
        if guard.is_opaque:
            return min(final, max(last + idle_s, self._possible_until))
        return final


def _shutdown(
    reply: bytes = replies.SHUTTING_DOWN, cut_in: str | None = None
) -> TimedEnd:
    return TimedEnd(Reason.SHUTDOWN, reply, cut_in)


def _cut_in(guard: Guard, owed: FinalReply) -> str | None:
    """Return which state ends at a drain's deadline, for the log; None of an opaque stream."""
    if guard.is_opaque or owed is FinalReply.CERTAIN:
        return None
    return guard.transaction.name.lower()
