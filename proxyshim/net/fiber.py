"""Coroutines that are resumed synchronously from the callback that completes their wait.

A session reads as its phases in order because it is a coroutine.  As an asyncio Task, each of its
waits would cost a Future, a scheduled call and a turn of the event loop, which is more than the
work between two waits.  A fiber is resumed directly by the code that has what it waits for.

Code that waits (``Connection.receive``, ``Limit``) calls ``get_waiter`` and so works in a fiber
and in a Task alike.  A coroutine that needs a real Task, because it waits for a Future, goes
through ``run_in_task``.

A caller wakes a fiber as the last thing it does: when ``wake`` returns, anything may have
happened.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")


class Waiter(Protocol):
    """The waiting side of one wait: a fiber, or a stand-in for a Task."""

    def wake(self) -> None:
        """Resume it.  An extra call is harmless, but not while the fiber itself is running."""

    def wait(self) -> Awaitable[None]:
        """Wait for ``wake``.  It may come for another reason, so check your condition again."""

    def fail(self, error: Exception) -> None:
        """Raise *error* in it, because nobody else can act on it."""


class _Pause:
    """What a fiber awaits: it yields once and continues when the fiber is woken."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        # Any iterator will do (PEP 492), and a tuple's is implemented in C.
        return iter(_ONCE)  # type: ignore[return-value]


_ONCE: Final = (None,)
_PAUSE: Final = _Pause()


class Fiber:
    """A coroutine that runs until its next wait each time it is woken."""

    __slots__ = ("_coroutine", "_on_end")

    def __init__(
        self,
        coroutine: Coroutine[Any, None, None],
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        """Prepare the fiber; the first ``wake`` starts it.

        *on_end* is called once, with the exception that ended the coroutine, or None.
        """
        self._coroutine: Coroutine[Any, None, None] | None = coroutine
        self._on_end = on_end

    def wake(self) -> None:
        """Run the coroutine up to its next wait."""
        if self._coroutine is not None:
            self._step(self._coroutine.send, None)

    def interrupt(self, error: BaseException) -> None:
        """Raise *error* in the coroutine at the point where it waits."""
        if self._coroutine is not None:
            self._step(self._coroutine.throw, error)

    def fail(self, error: Exception) -> None:
        """Raise *error*, which our own code raised in one of the session's callbacks."""
        self.interrupt(error)

    def _step(self, run: Callable[[Any], object], value: object) -> None:
        global _current
        before, _current = _current, self
        try:
            if run(value) is not None:
                raise RuntimeError("a fiber cannot await a Future; use run_in_task()")
        except StopIteration:
            self._end(None)
        except BaseException as error:  # noqa: BLE001 - as in a Task; on_end looks at it
            self._end(error)
        finally:
            _current = before

    def wait(self) -> Awaitable[None]:
        """Wait to be woken; only the fiber's own coroutine may call this."""
        return _PAUSE

    @property
    def is_running(self) -> bool:
        """True while its own coroutine runs, and not one that it has woken."""
        return _current is self

    def _end(self, error: BaseException | None) -> None:
        self._coroutine = None
        self._on_end(error)

    def _wake_after(self, _: object) -> None:
        self.wake()


_current: Fiber | None = None


def current_fiber() -> Fiber | None:
    """Return the fiber that is running; None in a Task and outside of both."""
    return _current


def get_waiter(loop: asyncio.AbstractEventLoop) -> Waiter:
    """Return what the calling coroutine waits with, in a fiber or in a Task of *loop*."""
    return _current or TaskWaiter(loop)


class TaskWaiter:
    """Lets a Task wait in the same way as a fiber."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare for one wait."""
        self._future = loop.create_future()

    def wake(self) -> None:
        """Resume the Task."""
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        """Wait for ``wake``."""
        await self._future

    def fail(self, error: Exception) -> None:
        """Raise *error* in the Task."""
        if not self._future.done():
            self._future.set_exception(error)


async def run_in_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]
) -> T:
    """Run *coroutine* as a Task and return its result.

    If the caller is interrupted, the Task is cancelled.
    """
    fiber = _current
    if fiber is None:
        return await coroutine
    task = loop.create_task(coroutine)
    task.add_done_callback(fiber._wake_after)
    try:
        while not task.done():
            await fiber.wait()
        return task.result()
    finally:
        task.remove_done_callback(fiber._wake_after)
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            # Mark its exception as seen: we may have been interrupted and never look at it.
            task.exception()
