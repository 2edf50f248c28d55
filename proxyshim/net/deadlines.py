"""Time limits: one timer wheel for all sessions, swept ten times a second.

A session has half a dozen limits, and hardly one of them is ever reached.  ``asyncio.timeout``
costs twenty times as much, because it sets and cancels a timer of the loop for each.

**Time that stood still.**  When a process was paused (a container, a frozen host), limits may have
run out while what they wait for has arrived in the meantime.  So a sweep that comes late does
nothing before the loop has read the waiting input once.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol

from proxyshim.net.fiber import Fiber, current_fiber

_SWEEPS_A_SECOND: Final = 10
SWEEP_S: Final = 1 / _SWEEPS_A_SECOND
# A sweep that is later than this waits until the waiting input was read: in so many turns of the
# loop at most, which read from 65,536 sockets.
_LATE_S: Final = 0.25
_TURNS_TO_CATCH_UP: Final = 256
# The loop's timers count milliseconds, and may round down.
_CLOCK_STEP_S: Final = 0.002
_RETRY_S: Final = 1.0  # after an alarm failed


class Alarm(Protocol):
    """Something with a time limit."""

    at: float  # by the loop's clock; it must not change while the alarm is set
    place: int  # set by the wheel; 0 while the alarm is not set

    def expire(self) -> None:
        """Called when the time is over; the alarm is no longer set then.

        If it raises an exception, it is called again a moment later.
        """


class Deadlines:
    """The timer wheel of one event loop: alarms by the sweep that will find them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        has_caught_up: Callable[[], bool] = lambda: True,
    ) -> None:
        """Start empty; sweeps run only while an alarm is set.

        *has_caught_up* returns False if the last turn of the loop has left input waiting.
        """
        self._loop = loop
        self._has_caught_up = has_caught_up
        self.time = loop.time
        self._wheel: dict[int, set[Alarm]] = {}
        self._swept = 0  # all places up to this one have been swept
        self._due = 0.0  # when the next sweep is
        self._sweeping = False

    def set(self, alarm: Alarm) -> None:
        """Call ``alarm.expire`` at ``alarm.at``, or up to SWEEP_S later."""
        if not self._sweeping:
            self._start_sweeping()
        # The first sweep at or after its time.  If that is already over, the next sweep finds it.
        place = int(alarm.at * _SWEEPS_A_SECOND)
        if place < self._swept:
            place = self._swept
        alarm.place = place = place + 1
        try:
            self._wheel[place].add(alarm)
        except KeyError:
            self._wheel[place] = {alarm}

    def clear(self, alarm: Alarm) -> None:
        """Forget an alarm; harmless if it is not set."""
        bucket = self._wheel.get(alarm.place)
        if bucket is not None:
            bucket.discard(alarm)
            if not bucket:
                del self._wheel[alarm.place]
        alarm.place = 0

    def close(self) -> None:
        """Let all alarms expire now, so that no coroutine waits for ever."""
        for place in list(self._wheel):
            self._expire(place)

    def _start_sweeping(self) -> None:
        if (
            not self._wheel
        ):  # else a sweep could not be scheduled, and places wait for it
            self._swept = int(self._loop.time() * _SWEEPS_A_SECOND)
        self._sweep_later(self._swept)
        self._sweeping = True

    def _sweep_later(self, swept: int) -> None:
        """Schedule a sweep for when the place after *swept* is due, and surely not before."""
        due = (swept + 1) / _SWEEPS_A_SECOND
        self._due = due
        self._loop.call_at(due + _CLOCK_STEP_S, self._sweep_in_time)

    def _sweep_in_time(self) -> None:
        if self._loop.time() - self._due < _LATE_S:
            self._sweep()
        else:
            self._loop.call_soon(self._catch_up, _TURNS_TO_CATCH_UP, True)

    def _catch_up(self, turns: int, is_first: bool) -> None:
        """Sweep once the waiting input was read.

        The loop looks at its sockets between two calls of this.
        """
        if turns and (is_first or not self._has_caught_up()):
            self._loop.call_soon(self._catch_up, turns - 1, False)
        else:
            self._sweep()

    def _sweep(self) -> None:
        self._sweeping = False
        if not self._wheel:
            return
        now = int(self._loop.time() * _SWEEPS_A_SECOND)
        # First of all, so that no exception stops the clock.  If this fails, the next alarm that
        # is set starts it again.
        self._sweep_later(now)
        self._sweeping = True
        first, self._swept = self._swept + 1, now
        for place in range(first, now + 1):
            self._expire(place)

    def _expire_again(self, alarm: Alarm, error: Exception) -> None:
        """Set an alarm that failed once more, because its session has no other."""
        self._loop.call_exception_handler(
            {"message": "a time limit failed", "exception": error}
        )
        alarm.at = self._loop.time() + _RETRY_S
        self.set(alarm)

    def _expire(self, place: int) -> None:
        due = self._wheel.get(place)
        while due:  # one alarm's action may clear another
            alarm = due.pop()
            alarm.place = 0
            try:
                alarm.expire()
            except Exception as error:  # noqa: BLE001 - the others are due as well
                self._expire_again(alarm, error)
        self._wheel.pop(place, None)


class Limit:
    """``with Limit(deadlines, seconds):`` raises TimeoutError when the body takes longer.

    It fires at *seconds*, or up to SWEEP_S and a step of the clock later.  It works in fibers and
    in Tasks.
    """

    __slots__ = (
        "_cancelling",
        "_deadlines",
        "_expired",
        "_fiber",
        "_task",
        "at",
        "place",
    )

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        """Set the limit, which runs from now."""
        self._deadlines = deadlines
        self._expired = False
        self.at = deadlines.time() + seconds
        self.place = 0

    def __enter__(self) -> "Limit":
        """Begin; the coroutine that enters is the one that will be interrupted."""
        self._fiber: Fiber | None = current_fiber()
        if self._fiber is None:
            self._note_task()
        self._deadlines.set(self)
        return self

    def _note_task(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()

    def expire(self) -> None:
        """Interrupt the waiting coroutine."""
        self._expired = True
        if self._fiber is not None:
            self._fiber.interrupt(asyncio.CancelledError())
        else:
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End.  Turn our own interruption, and no other, into TimeoutError."""
        if not self._expired:
            self._deadlines.clear(self)
            return
        if self._fiber is None and self._task.uncancel() > self._cancelling:
            return
        if kind is asyncio.CancelledError:
            raise TimeoutError from error
