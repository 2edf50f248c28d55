"""A fiber is resumed inside the callback that wakes it; code that waits works in a Task too."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from proxyshim.net.fiber import Fiber, TaskWaiter, current_fiber, run_in_task

LIMIT_S = 5


class Ends:
    """Collects how fibers ended."""

    def __init__(self) -> None:
        self.all: list[BaseException | None] = []

    def fiber(self, coroutine: Coroutine[Any, None, None]) -> Fiber:
        return Fiber(coroutine, self.all.append)


@pytest.fixture
def ends() -> Ends:
    return Ends()


def here() -> Fiber:
    fiber = current_fiber()
    assert fiber is not None
    return fiber


def test_a_fiber_continues_before_wake_returns(ends: Ends) -> None:
    steps: list[str] = []

    async def work() -> None:
        steps.append("started")
        await here().wait()
        steps.append("continued")

    fiber = ends.fiber(work())
    assert steps == []
    fiber.wake()
    assert (steps, ends.all) == (["started"], [])
    fiber.wake()
    assert (steps, ends.all) == (["started", "continued"], [None])


def test_the_end_of_a_fiber_is_reported_once(ends: Ends) -> None:
    async def work() -> None:
        pass

    fiber = ends.fiber(work())
    fiber.wake()
    fiber.wake()
    fiber.interrupt(ValueError())
    assert ends.all == [None]


@pytest.mark.parametrize("error", [ValueError("odd"), asyncio.CancelledError()])
def test_an_exception_in_a_fiber_is_reported(ends: Ends, error: BaseException) -> None:
    async def work() -> None:
        await here().wait()
        raise error

    fiber = ends.fiber(work())
    fiber.wake()
    fiber.wake()
    assert ends.all == [error]


def test_an_interruption_is_raised_where_the_fiber_waits(ends: Ends) -> None:
    caught: list[BaseException] = []

    async def work() -> None:
        try:
            await here().wait()
        except asyncio.CancelledError as error:
            caught.append(error)
        await here().wait()

    fiber = ends.fiber(work())
    fiber.wake()
    error = asyncio.CancelledError()
    fiber.interrupt(error)
    assert (caught, ends.all) == ([error], [])
    fiber.wake()
    assert ends.all == [None]


def test_current_fiber_is_right_when_fibers_nest(ends: Ends) -> None:
    seen: list[Fiber | None] = []

    async def inner() -> None:
        seen.append(current_fiber())

    async def outer() -> None:
        seen.append(current_fiber())
        one.wake()
        seen.append(current_fiber())

    one, other = ends.fiber(inner()), ends.fiber(outer())
    other.wake()
    seen.append(current_fiber())
    assert seen == [other, one, other, None]
    assert not other.is_running


def test_awaiting_a_future_in_a_fiber_is_an_error_that_names_run_in_task(
    ends: Ends,
) -> None:
    async def main() -> None:
        ends.fiber(asyncio.sleep(LIMIT_S)).wake()

    uvloop.run(main())
    [error] = ends.all
    assert isinstance(error, RuntimeError)
    assert "run_in_task" in str(error)


# Coroutines that need a Task.


async def answer() -> str:
    await asyncio.timeout_at(None).__aenter__()  # works only in a Task
    return "an answer"


async def failing() -> str:
    await asyncio.sleep(0)
    raise OSError("no answer")


def run_in_fiber(coroutine: Coroutine[Any, Any, str]) -> str:
    """Return the result of *coroutine*, awaited with ``run_in_task`` in a fiber."""

    async def main() -> str:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[str] = loop.create_future()

        async def work() -> None:
            result.set_result(await run_in_task(loop, coroutine))

        def note(error: BaseException | None) -> None:
            if error is not None:
                result.set_exception(error)

        Fiber(work(), note).wake()
        async with asyncio.timeout(LIMIT_S):
            return await result

    return uvloop.run(main())


def test_a_fiber_waits_for_a_task() -> None:
    assert run_in_fiber(answer()) == "an answer"


def test_an_error_in_a_task_reaches_the_fiber() -> None:
    with pytest.raises(OSError, match="no answer"):
        run_in_fiber(failing())


def test_run_in_task_works_in_a_task_too() -> None:
    async def main() -> str:
        return await run_in_task(asyncio.get_running_loop(), answer())

    assert uvloop.run(main()) == "an answer"


def test_an_interrupted_fiber_cancels_its_task_and_is_not_woken_by_it(
    ends: Ends,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        cancelled = loop.create_future()
        woken = loop.create_future()

        async def forever() -> None:
            try:
                await loop.create_future()
            except asyncio.CancelledError:
                cancelled.set_result(None)
                raise

        async def work() -> None:
            with pytest.raises(asyncio.CancelledError):
                await run_in_task(loop, forever())
            await here().wait()
            woken.set_result(None)

        fiber = ends.fiber(work())
        fiber.wake()
        await asyncio.sleep(0)  # the Task starts
        fiber.wake()  # a stray wake: the fiber keeps waiting
        fiber.interrupt(asyncio.CancelledError())
        async with asyncio.timeout(LIMIT_S):
            await cancelled
        for _ in range(3):
            await asyncio.sleep(0)  # the Task's end would wake it here
        assert not woken.done()
        fiber.wake()
        assert woken.done()

    uvloop.run(main())
    assert ends.all == [None]


def test_a_task_waits_until_woken_and_a_second_wake_is_harmless() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        waiter = TaskWaiter(loop)
        loop.call_soon(waiter.wake)
        loop.call_soon(waiter.wake)
        async with asyncio.timeout(LIMIT_S):
            await waiter.wait()

    uvloop.run(main())
