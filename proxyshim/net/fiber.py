"""A coroutine that goes on at once, inside the callback that it waited for.

A session reads as its phases in order because it is a coroutine.  As an asyncio Task each of its
waits would cost a Future, a call scheduled, and a turn of the loop: more than the work between two
waits.  A strand is resumed by whoever has what it waits for, directly.  What waits (a connection's
``receive``, a ``Limit``) asks ``running()``, and so works in a strand and in a Task alike; what
needs a Task of its own goes through ``in_task``.

Whoever resumes a strand does so as its last act, for anything may have happened when that returns.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")


class Sleeper(Protocol):
    """What waits: a strand, or a stand-in for a Task."""

    def resume(self) -> None:
        """Wake it; once too often is harmless, but not while it is at work."""

    def pause(self) -> Awaitable[None]:
        """Wait to be resumed.  Look again at what was waited for: others may have done it."""


class _Pause:
    """What a strand waits for: it is given control back once, and goes on when resumed."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        # Any iterator will do (PEP 492), and this one is C.
        return iter(_ONCE)  # type: ignore[return-value]


_ONCE: Final = (None,)
_PAUSE: Final = _Pause()


class Strand:
    """A coroutine, and where it stands."""

    __slots__ = ("_coroutine", "_on_end")

    def __init__(
        self,
        routine: Coroutine[Any, None, None],
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        """Begin with the first ``resume``; *on_end* hears of the end, and of what it raised."""
        self._coroutine: Coroutine[Any, None, None] | None = routine
        self._on_end = on_end

    def resume(self) -> None:
        """Go on up to the next wait."""
        if self._coroutine is not None:
            self._step(self._coroutine.send, None)

    def throw(self, error: BaseException) -> None:
        """Raise *error* in the coroutine, where it waits."""
        if self._coroutine is not None:
            self._step(self._coroutine.throw, error)

    def _step(self, go_on: Callable[[Any], object], value: object) -> None:
        global _running
        before, _running = _running, self
        try:
            if go_on(value) is not None:
                raise RuntimeError("a strand cannot wait for a Future; in_task() can")
        except StopIteration:
            self._end(None)
        except BaseException as error:  # noqa: BLE001 - as a Task would: somebody looks at it
            self._end(error)
        finally:
            _running = before

    def pause(self) -> Awaitable[None]:
        """Wait to be resumed; for the strand's own coroutine."""
        return _PAUSE

    @property
    def is_running(self) -> bool:
        """Tell whether its own coroutine is at work now: it, and none that it resumed."""
        return _running is self

    def _end(self, error: BaseException | None) -> None:
        self._coroutine = None
        self._on_end(error)

    def _resume_for(self, _: object) -> None:
        self.resume()


_running: Strand | None = None


def running() -> Strand | None:
    """Return the strand that runs now; None in a Task, or outside of both."""
    return _running


class TaskSleeper:
    """Lets a Task wait as a strand does."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare for one wait."""
        self._future = loop.create_future()

    def resume(self) -> None:
        """Wake the Task."""
        if not self._future.done():
            self._future.set_result(None)

    async def pause(self) -> None:
        """Wait to be resumed."""
        await self._future


async def in_task(
    loop: asyncio.AbstractEventLoop, routine: Coroutine[Any, Any, T]
) -> T:
    """Run *routine* as a Task, and wait for its result; who is interrupted cancels it."""
    strand = _running
    if strand is None:
        return await routine
    task = loop.create_task(routine)
    task.add_done_callback(strand._resume_for)
    try:
        while not task.done():
            await strand.pause()
        return task.result()
    finally:
        task.remove_done_callback(strand._resume_for)
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()  # we were interrupted, perhaps, and nobody else looks at it
