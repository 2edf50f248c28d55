"""Time limits for phases: as asyncio.timeout(), at a tenth of its price.

A session has half a dozen limits, and hardly one of them is ever reached; so a limit is a line in a
table, and one sweep for all looks ten times a second which have passed.
"""

import asyncio
import weakref
from types import TracebackType
from typing import Final

SWEEP_S: Final = 0.1


class Deadlines:
    """The limits that run now on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin with none; the sweep runs while there are any."""
        self._loop = loop
        self._running: set[Limit] = set()
        self._sweeping = False

    def begin(self, limit: "Limit") -> None:
        """Watch a *limit*."""
        self._running.add(limit)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)

    def end(self, limit: "Limit") -> None:
        """Watch it no more."""
        self._running.discard(limit)

    def _sweep(self) -> None:
        now = self._loop.time()
        for limit in [each for each in self._running if each.at <= now]:
            self._running.discard(limit)
            limit.expire()
        if self._running:
            self._loop.call_later(SWEEP_S, self._sweep)
        else:
            self._sweeping = False


_deadlines: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Deadlines]] = (
    weakref.WeakKeyDictionary()
)


def _deadlines_of(loop: asyncio.AbstractEventLoop) -> Deadlines:
    found = _deadlines.get(loop)
    if found is None:
        found = _deadlines[loop] = Deadlines(loop)
    return found


class Limit:
    """``with Limit(loop, seconds):`` raises TimeoutError when the body takes longer.

    The limit is reached at *seconds*, or up to SWEEP_S later.
    """

    __slots__ = ("_cancelling", "_deadlines", "_expired", "_loop", "_task", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        """Set the limit; it runs from here."""
        self._loop = loop
        self._loop = loop
        self._deadlines = _deadlines_of(loop)
        self._expired = False
        self.at = loop.time() + seconds

    def __enter__(self) -> "Limit":
        """Begin: the running task is the one that will be interrupted."""
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines.begin(self)
        return self

    def expire(self) -> None:
        """Interrupt the task."""
        self._expired = True
        self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; turn our own interruption into TimeoutError, and nobody else's."""
        self._deadlines.end(self)
        if (
            self._expired
            and self._task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError from error
