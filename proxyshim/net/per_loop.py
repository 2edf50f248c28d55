"""What an event loop has one of: a poller, a table of deadlines."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One *T* for each event loop, made when it is first asked for, and kept.

    A process has one loop, so the last answer is kept in hand; tests have many.
    """

    __slots__ = ("_last", "_made", "_make")

    def __init__(self, make: Callable[[asyncio.AbstractEventLoop], T]) -> None:
        """Begin with none."""
        self._make = make
        self._made: dict[asyncio.AbstractEventLoop, T] = {}
        self._last: tuple[asyncio.AbstractEventLoop | None, T | None] = (None, None)

    def of(self, loop: asyncio.AbstractEventLoop) -> T:
        """Return the one of *loop*."""
        last, found = self._last
        if last is loop and found is not None:
            return found
        found = self._made.get(loop)
        if found is None:
            found = self._made[loop] = self._make(loop)
        self._last = loop, found
        return found
