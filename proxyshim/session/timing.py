"""When a relay ends by the clock: a side that is silent for too long, and a drain.

Pure decisions: the time and the guard are arguments, so that each rule can be tested without a
socket.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.guard import Guard, Transaction

# RFC 5321, 4.5.3.2.6: the reply to a final dot may take ten minutes.
FINAL_REPLY_S: Final = 600.0
# A drain closes a session that we cannot read when the backend spoke last and both sides were
# silent for this long.
_SETTLED_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """Time limits, in seconds."""

    idle_timeout_s: float
    drain_timeout_s: float


class TimedEnd(NamedTuple):
    """The decision to end a session now."""

    reason: Reason
    reply: bytes
    cut_in: str | None = (
        None  # the state of the transaction that a drain cut, for the log
    )


class RelayClock:
    """The times of one relay, and what follows from them."""

    __slots__ = ("_drain_until", "_limits", "client_spoke_last", "last_activity")

    def __init__(self, limits: RelayLimits, now: float) -> None:
        """Start at *now*, by the reactor's clock."""
        self._limits = limits
        self._drain_until: float | None = None
        # The relay updates these two with every packet.
        self.last_activity = now
        self.client_spoke_last = False

    @property
    def is_draining(self) -> bool:
        """True after ``start_drain``."""
        return self._drain_until is not None

    def start_drain(self, now: float) -> None:
        """From now on, end as soon as no message is harmed, or when drain_timeout_s is over."""
        self._drain_until = now + self._limits.drain_timeout_s

    def next_check(self, guard: Guard, now: float) -> float:
        """Return when ``decide`` must be called again.

        Activity in the meantime only postpones an end, so nothing needs to be updated for it.
        """
        at = self.last_activity + self._idle_limit_s(guard)
        if self._drain_until is not None:
            at = min(at, self._next_drain_check(guard, now, self._drain_until))
        return at

    def decide(self, guard: Guard, now: float) -> TimedEnd | None:
        """Return how the session ends now; None if it goes on."""
        if now >= self.last_activity + self._idle_limit_s(guard):
            if guard.awaits_backend:
                return TimedEnd(Reason.BACKEND_TIMEOUT, replies.BACKEND_LOST)
            return TimedEnd(Reason.CLIENT_IDLE, replies.CLIENT_TOO_SLOW)
        if self._drain_until is not None:
            return self._decide_drain(guard, now, self._drain_until)
        return None

    def _idle_limit_s(self, guard: Guard) -> float:
        if guard.transaction is Transaction.FINAL_REPLY:
            return max(self._limits.idle_timeout_s, FINAL_REPLY_S)
        return self._limits.idle_timeout_s

    def _next_drain_check(self, guard: Guard, now: float, until: float) -> float:
        if guard.is_opaque:
            return min(max(until, now), now + _SETTLED_S)
        if until <= now:  # only the reply to a final dot is still awaited
            return now + _SETTLED_S
        return until

    def _decide_drain(self, guard: Guard, now: float, until: float) -> TimedEnd | None:
        if guard.transaction is Transaction.FINAL_REPLY:
            return None
        settled = (
            guard.is_opaque
            and not self.client_spoke_last
            and now - self.last_activity >= _SETTLED_S
        )
        if not settled and now < until:
            return None
        cut_in = None
        if not settled and guard.transaction is not Transaction.IDLE:
            cut_in = guard.transaction.name.lower()
        return TimedEnd(Reason.SHUTDOWN, replies.SHUTTING_DOWN, cut_in)
