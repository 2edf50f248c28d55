"""Time limits for phases: as asyncio.timeout(), at a twentieth of its price.

A session has half a dozen limits, and hardly one of them is ever reached; so a limit is an entry
in a wheel, a table by time, and one sweep for all looks ten times a second which have passed.
"""

import asyncio
from types import TracebackType
from typing import Final, Protocol

from proxyshim.net.fiber import Strand, running
from proxyshim.net.per_loop import PerLoop

_SWEEPS_A_SECOND: Final = 10
SWEEP_S: Final = 1 / _SWEEPS_A_SECOND
# The loop's timers count milliseconds, and may round down.
_CLOCK_STEP_S: Final = 0.002


class Expiring(Protocol):
    """What has an end in time."""

    at: float  # by the loop's clock; not moved while it is in the wheel
    place: int  # in the wheel, which sets it; 0 while it is in none

    def expire(self) -> None:
        """Hear that the time is up; it is out of the wheel then."""


class Deadlines:
    """What runs out on one event loop, by the sweep that will find it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin with none; the sweep runs while there are any."""
        self._loop = loop
        self.time = loop.time
        self._wheel: dict[int, set[Expiring]] = {}
        self._swept = 0  # all places up to this one
        self._sweeping = False

    def begin(self, limit: Expiring) -> None:
        """Watch a *limit*."""
        if not self._sweeping:
            self._start_sweeping()
        # The first sweep at or after its time; one whose time is over is for the next.
        place = int(limit.at * _SWEEPS_A_SECOND)
        if place < self._swept:
            place = self._swept
        limit.place = place = place + 1
        try:
            self._wheel[place].add(limit)
        except KeyError:
            self._wheel[place] = {limit}

    def end(self, limit: Expiring) -> None:
        """Watch it no more."""
        bucket = self._wheel.get(limit.place)
        if bucket is not None:
            bucket.discard(limit)
            if not bucket:
                del self._wheel[limit.place]
        limit.place = 0

    def _start_sweeping(self) -> None:
        self._sweeping = True
        self._swept = int(self._loop.time() * _SWEEPS_A_SECOND)
        self._sweep_later()

    def _sweep_later(self) -> None:
        """Sweep when the next place is due, and surely not a moment before."""
        due = (self._swept + 1) / _SWEEPS_A_SECOND
        self._loop.call_at(due + _CLOCK_STEP_S, self._sweep)

    def _sweep(self) -> None:
        now = int(self._loop.time() * _SWEEPS_A_SECOND)
        first, self._swept = self._swept + 1, now
        for place in range(first, now + 1):
            due = self._wheel.get(place)
            while due:  # what one of them does may end another
                limit = due.pop()
                limit.place = 0
                try:
                    limit.expire()
                except Exception as error:  # noqa: BLE001 - the others' time is up, too
                    self._loop.call_exception_handler(
                        {"message": "a limit could not be kept", "exception": error}
                    )
            self._wheel.pop(place, None)
        if self._wheel:
            self._sweep_later()
        else:
            self._sweeping = False


_deadlines: Final = PerLoop(Deadlines)
deadlines_of: Final = _deadlines.of


class Limit:
    """``with Limit(deadlines, seconds):`` raises TimeoutError when the body takes longer.

    The limit is reached at *seconds*, or up to SWEEP_S and a clock's step later.  For strands and
    Tasks.
    """

    __slots__ = (
        "_cancelling",
        "_deadlines",
        "_expired",
        "_strand",
        "_task",
        "at",
        "place",
    )

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        """Set the limit; it runs from here."""
        self._deadlines = deadlines
        self._expired = False
        self.at = deadlines.time() + seconds
        self.place = 0

    def __enter__(self) -> "Limit":
        """Begin: who runs now is who will be interrupted."""
        self._strand: Strand | None = running()
        if self._strand is None:
            self._note_task()
        self._deadlines.begin(self)
        return self

    def _note_task(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()

    def expire(self) -> None:
        """Interrupt who waits."""
        self._expired = True
        if self._strand is not None:
            self._strand.throw(asyncio.CancelledError())
        else:
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; turn our own interruption into TimeoutError, and nobody else's."""
        if not self._expired:
            self._deadlines.end(self)
            return
        if self._strand is None and self._task.uncancel() > self._cancelling:
            return
        if kind is asyncio.CancelledError:
            raise TimeoutError from error
