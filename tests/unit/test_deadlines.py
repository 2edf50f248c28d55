"""A limit is reached at its time, by one sweep for all."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvloop

from proxyshim.net.deadlines import SWEEP_S, Deadlines, Limit, deadlines_of
from proxyshim.net.fiber import Strand, TaskSleeper, running

LIMIT_S = 5
SHORT_S = 0.01
CLOCK_STEP_S = 0.003  # and what a float can't tell


class Clock:
    """A loop whose time is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.failures: list[dict[str, Any]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        self.timers.append((when, call))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context)

    def pass_time(self, seconds: float) -> None:
        """Go on to a later moment, and call at each what was to be called by then."""
        until = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= until]:
            timer = min(due, key=lambda one: one[0])
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = until


class Alarm:
    """Notes when its time was up."""

    def __init__(self, clock: Clock, at: float) -> None:
        self._clock = clock
        self.at = at
        self.place = 0
        self.rang: list[float] = []

    def expire(self) -> None:
        self.rang.append(self._clock.now)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deadlines(clock: Clock) -> Deadlines:
    return Deadlines(cast("asyncio.AbstractEventLoop", clock))


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.05, 0.1, 0.1001, 1.0, 59.97, 900.0])
@pytest.mark.parametrize("begun_s", [0.0, 0.03, 12_345.678])
def test_it_is_reached_at_its_time_or_a_sweep_later(
    clock: Clock, deadlines: Deadlines, begun_s: float, after_s: float
) -> None:
    clock.pass_time(begun_s)
    alarm = Alarm(clock, clock.now + after_s)
    deadlines.begin(alarm)
    clock.pass_time(after_s + 10)
    [rang] = alarm.rang
    assert alarm.at <= rang <= alarm.at + SWEEP_S + CLOCK_STEP_S


def test_one_whose_time_is_over_is_for_the_next_sweep(
    clock: Clock, deadlines: Deadlines
) -> None:
    late, other = Alarm(clock, clock.now - 100), Alarm(clock, clock.now + 100)
    deadlines.begin(other)
    clock.pass_time(50)
    deadlines.begin(late)
    clock.pass_time(2 * SWEEP_S)
    assert (len(late.rang), len(other.rang)) == (1, 0)


def test_what_was_ended_is_not_told(clock: Clock, deadlines: Deadlines) -> None:
    alarms = [Alarm(clock, clock.now + 1) for _ in range(3)]
    for alarm in alarms:
        deadlines.begin(alarm)
    deadlines.end(alarms[1])
    deadlines.end(alarms[1])
    clock.pass_time(10)
    assert [len(alarm.rang) for alarm in alarms] == [1, 0, 1]


def test_one_may_end_another_of_the_same_moment(
    clock: Clock, deadlines: Deadlines
) -> None:
    alarms = [Alarm(clock, clock.now + 1) for _ in range(2)]

    class Ending(Alarm):
        def expire(self) -> None:
            for alarm in alarms:
                deadlines.end(alarm)
            super().expire()

    pairs = [Ending(clock, clock.now + 1) for _ in range(2)]
    for alarm in alarms + pairs:
        deadlines.begin(alarm)
    clock.pass_time(10)
    assert [len(alarm.rang) for alarm in pairs] == [1, 1]


def test_one_that_fails_does_not_keep_the_others(
    clock: Clock, deadlines: Deadlines
) -> None:
    class Failing(Alarm):
        def expire(self) -> None:
            raise ValueError("a defect")

    alarms = [Alarm(clock, clock.now + 1) for _ in range(3)]
    for alarm in [*alarms, Failing(clock, clock.now + 1)]:
        deadlines.begin(alarm)
    clock.pass_time(10)
    assert [len(alarm.rang) for alarm in alarms] == [1, 1, 1]
    [failure] = clock.failures
    assert isinstance(failure["exception"], ValueError)


def test_one_may_be_begun_again_when_it_is_reached(
    clock: Clock, deadlines: Deadlines
) -> None:
    class Again(Alarm):
        def expire(self) -> None:
            super().expire()
            if len(self.rang) < 3:
                self.at = self._clock.now + 1
                deadlines.begin(self)

    alarm = Again(clock, clock.now + 1)
    deadlines.begin(alarm)
    clock.pass_time(60)
    assert len(alarm.rang) == 3


def test_nothing_is_kept_and_nothing_turns_without_limits(
    clock: Clock, deadlines: Deadlines
) -> None:
    alarms = [Alarm(clock, clock.now + n / 7) for n in range(100)]
    for alarm in alarms:
        deadlines.begin(alarm)
    for alarm in alarms[::2]:
        deadlines.end(alarm)
    clock.pass_time(60)
    assert not deadlines._wheel
    assert not clock.timers


# Limits, in a strand and in a Task.


async def in_strand(routine: Callable[[], Any]) -> None:
    """Run *routine* as a strand, to its end."""
    done = asyncio.get_running_loop().create_future()

    def note(error: BaseException | None) -> None:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    Strand(routine(), note).resume()
    await done


async def for_ever() -> None:
    sleeper = running() or TaskSleeper(asyncio.get_running_loop())
    while True:
        await sleeper.pause()


def run(routine: Callable[[], Any], *, strand: bool) -> None:
    async def main() -> None:
        async with asyncio.timeout(LIMIT_S):
            await (in_strand(routine) if strand else routine())

    uvloop.run(main())


@pytest.mark.parametrize("strand", [True, False], ids=["strand", "task"])
def test_who_takes_too_long_is_interrupted(strand: bool) -> None:
    async def routine() -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with pytest.raises(TimeoutError), Limit(deadlines_of(loop), SHORT_S):
            await for_ever()
        assert loop.time() - begun >= SHORT_S

    run(routine, strand=strand)


@pytest.mark.parametrize("strand", [True, False], ids=["strand", "task"])
def test_who_is_done_in_time_is_left_alone(strand: bool) -> None:
    async def routine() -> None:
        loop = asyncio.get_running_loop()
        with Limit(deadlines_of(loop), SHORT_S):
            pass
        later_s = SHORT_S + 2 * SWEEP_S  # the sweep passes the other's time, too
        with pytest.raises(TimeoutError), Limit(deadlines_of(loop), later_s):
            await for_ever()

    run(routine, strand=strand)


@pytest.mark.parametrize("strand", [True, False], ids=["strand", "task"])
def test_the_outer_limit_is_not_taken_for_the_inner(strand: bool) -> None:
    async def routine() -> None:
        loop = asyncio.get_running_loop()

        async def routine_with_inner() -> None:
            try:
                with Limit(deadlines_of(loop), 60):
                    await for_ever()
            except TimeoutError:
                pytest.fail("the inner one has not expired")

        with pytest.raises(TimeoutError), Limit(deadlines_of(loop), SHORT_S):
            await routine_with_inner()

    run(routine, strand=strand)


@pytest.mark.parametrize("strand", [True, False], ids=["strand", "task"])
def test_anothers_interruption_passes_through(strand: bool) -> None:
    async def routine() -> None:
        with Limit(deadlines_of(asyncio.get_running_loop()), 60):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(routine, strand=strand)
