"""A strand goes on inside the callback that resumes it; what waits in it works in a Task too."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from proxyshim.net.fiber import Strand, TaskSleeper, in_task, running

LIMIT_S = 5


class Ends:
    """Collects what strands came to."""

    def __init__(self) -> None:
        self.all: list[BaseException | None] = []

    def strand(self, routine: Coroutine[Any, None, None]) -> Strand:
        return Strand(routine, self.all.append)


@pytest.fixture
def ends() -> Ends:
    return Ends()


def here() -> Strand:
    strand = running()
    assert strand is not None
    return strand


def test_it_goes_on_before_resume_returns(ends: Ends) -> None:
    steps: list[str] = []

    async def work() -> None:
        steps.append("begun")
        await here().pause()
        steps.append("gone on")

    strand = ends.strand(work())
    assert steps == []
    strand.resume()
    assert (steps, ends.all) == (["begun"], [])
    strand.resume()
    assert (steps, ends.all) == (["begun", "gone on"], [None])


def test_its_end_is_told_once(ends: Ends) -> None:
    async def work() -> None:
        pass

    strand = ends.strand(work())
    strand.resume()
    strand.resume()
    strand.throw(ValueError())
    assert ends.all == [None]


@pytest.mark.parametrize("error", [ValueError("odd"), asyncio.CancelledError()])
def test_what_it_raises_is_told(ends: Ends, error: BaseException) -> None:
    async def work() -> None:
        await here().pause()
        raise error

    strand = ends.strand(work())
    strand.resume()
    strand.resume()
    assert ends.all == [error]


def test_an_error_is_thrown_where_it_waits(ends: Ends) -> None:
    caught: list[BaseException] = []

    async def work() -> None:
        try:
            await here().pause()
        except asyncio.CancelledError as error:
            caught.append(error)
        await here().pause()

    strand = ends.strand(work())
    strand.resume()
    error = asyncio.CancelledError()
    strand.throw(error)
    assert (caught, ends.all) == ([error], [])
    strand.resume()
    assert ends.all == [None]


def test_who_runs_is_known_through_nested_ones(ends: Ends) -> None:
    seen: list[Strand | None] = []

    async def inner() -> None:
        seen.append(running())

    async def outer() -> None:
        seen.append(running())
        one.resume()
        seen.append(running())

    one, other = ends.strand(inner()), ends.strand(outer())
    other.resume()
    seen.append(running())
    assert seen == [other, one, other, None]
    assert not other.is_running


def test_it_cannot_wait_for_a_future_and_says_so(ends: Ends) -> None:
    async def main() -> None:
        ends.strand(asyncio.sleep(LIMIT_S)).resume()

    uvloop.run(main())
    [error] = ends.all
    assert isinstance(error, RuntimeError)
    assert "in_task" in str(error)


# What needs a Task of its own.


async def answer() -> str:
    await asyncio.timeout_at(None).__aenter__()  # only a Task may
    return "an answer"


async def failing() -> str:
    await asyncio.sleep(0)
    raise OSError("no answer")


def run_in_strand(routine: Coroutine[Any, Any, str]) -> str:
    """Return the result of ``in_task`` in a strand."""

    async def main() -> str:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[str] = loop.create_future()

        async def work() -> None:
            result.set_result(await in_task(loop, routine))

        def note(error: BaseException | None) -> None:
            if error is not None:
                result.set_exception(error)

        Strand(work(), note).resume()
        async with asyncio.timeout(LIMIT_S):
            return await result

    return uvloop.run(main())


def test_a_strand_waits_for_a_task() -> None:
    assert run_in_strand(answer()) == "an answer"


def test_a_tasks_error_reaches_the_strand() -> None:
    with pytest.raises(OSError, match="no answer"):
        run_in_strand(failing())


def test_a_task_waits_for_what_needs_one() -> None:
    async def main() -> str:
        return await in_task(asyncio.get_running_loop(), answer())

    assert uvloop.run(main()) == "an answer"


def test_an_interrupted_strand_cancels_the_task_and_is_left_alone(ends: Ends) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        cancelled = loop.create_future()
        resumed = loop.create_future()

        async def forever() -> None:
            try:
                await loop.create_future()
            except asyncio.CancelledError:
                cancelled.set_result(None)
                raise

        async def work() -> None:
            with pytest.raises(asyncio.CancelledError):
                await in_task(loop, forever())
            await here().pause()
            resumed.set_result(None)

        strand = ends.strand(work())
        strand.resume()
        await asyncio.sleep(0)  # the Task begins
        strand.resume()  # by mistake: it waits on
        strand.throw(asyncio.CancelledError())
        async with asyncio.timeout(LIMIT_S):
            await cancelled
        for _ in range(3):
            await asyncio.sleep(0)  # where the Task's end would have been told
        assert not resumed.done()
        strand.resume()
        assert resumed.done()

    uvloop.run(main())
    assert ends.all == [None]


def test_a_task_sleeps_until_resumed_and_bears_a_second_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sleeper = TaskSleeper(loop)
        loop.call_soon(sleeper.resume)
        loop.call_soon(sleeper.resume)
        async with asyncio.timeout(LIMIT_S):
            await sleeper.pause()

    uvloop.run(main())
