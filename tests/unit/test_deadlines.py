"""Time limits expire at their time, and one sweep serves all of them."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvloop

from proxyshim.net.deadlines import SWEEP_S, Deadlines, Limit
from proxyshim.net.fiber import Fiber, get_waiter

LIMIT_S = 5
SHORT_S = 0.01
CLOCK_STEP_S = 0.003  # plus rounding


class Clock:
    """A loop whose time is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.failures: list[dict[str, Any]] = []

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        self.soon.append((call, args))

    def run_turn(self) -> None:
        """Make the calls of one turn of the loop, after which it looks at its sockets."""
        soon, self.soon = self.soon, []
        for call, args in soon:
            call(*args)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        self.timers.append((when, call))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context)

    def pass_time(self, seconds: float) -> None:
        """Move on by *seconds*, and make the calls that are due on the way."""
        until = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= until]:
            timer = min(due, key=lambda one: one[0])
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = until


class Alarm:
    """Notes when it rang."""

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
def test_an_alarm_rings_at_its_time_or_one_sweep_later(
    clock: Clock, deadlines: Deadlines, begun_s: float, after_s: float
) -> None:
    clock.pass_time(begun_s)
    alarm = Alarm(clock, clock.now + after_s)
    deadlines.set(alarm)
    clock.pass_time(after_s + 10)
    [rang] = alarm.rang
    assert alarm.at <= rang <= alarm.at + SWEEP_S + CLOCK_STEP_S


def test_an_alarm_in_the_past_rings_at_the_next_sweep(
    clock: Clock, deadlines: Deadlines
) -> None:
    late, other = Alarm(clock, clock.now - 100), Alarm(clock, clock.now + 100)
    deadlines.set(other)
    clock.pass_time(50)
    deadlines.set(late)
    clock.pass_time(2 * SWEEP_S)
    assert (len(late.rang), len(other.rang)) == (1, 0)


def test_a_cleared_alarm_does_not_ring(clock: Clock, deadlines: Deadlines) -> None:
    alarms = [Alarm(clock, clock.now + 1) for _ in range(3)]
    for alarm in alarms:
        deadlines.set(alarm)
    deadlines.clear(alarms[1])
    deadlines.clear(alarms[1])
    clock.pass_time(10)
    assert [len(alarm.rang) for alarm in alarms] == [1, 0, 1]


def test_an_alarm_may_clear_another_one_that_is_due_as_well(
    clock: Clock, deadlines: Deadlines
) -> None:
    alarms = [Alarm(clock, clock.now + 1) for _ in range(2)]

    class Ending(Alarm):
        def expire(self) -> None:
            for alarm in alarms:
                deadlines.clear(alarm)
            super().expire()

    pairs = [Ending(clock, clock.now + 1) for _ in range(2)]
    for alarm in alarms + pairs:
        deadlines.set(alarm)
    clock.pass_time(10)
    assert [len(alarm.rang) for alarm in pairs] == [1, 1]


def test_an_alarm_that_fails_rings_again_and_does_not_stop_the_others(
    clock: Clock, deadlines: Deadlines
) -> None:
    class Failing(Alarm):
        def expire(self) -> None:
            super().expire()
            if len(self.rang) == 1:
                raise ValueError("a defect")

    alarms = [Alarm(clock, clock.now + 1) for _ in range(3)]
    failing = Failing(clock, clock.now + 1)
    for alarm in [*alarms, failing]:
        deadlines.set(alarm)
    clock.pass_time(10)
    assert [len(alarm.rang) for alarm in alarms] == [1, 1, 1]
    [failure] = clock.failures
    assert isinstance(failure["exception"], ValueError)
    assert len(failing.rang) == 2  # it had failed, so it rang again


def test_the_clock_goes_on_after_a_sweep_could_not_be_scheduled(
    clock: Clock, deadlines: Deadlines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    early, late = Alarm(clock, clock.now + 1), Alarm(clock, clock.now + 3)
    deadlines.set(early)
    with monkeypatch.context() as patch:
        patch.setattr(clock, "call_at", fail)
        with pytest.raises(MemoryError):
            clock.pass_time(2)
    assert early.rang == []
    deadlines.set(late)  # as any session does soon
    clock.pass_time(4)
    assert (len(early.rang), len(late.rang)) == (1, 1)


def test_an_alarm_may_be_set_again_when_it_rings(
    clock: Clock, deadlines: Deadlines
) -> None:
    class Again(Alarm):
        def expire(self) -> None:
            super().expire()
            if len(self.rang) < 3:
                self.at = self._clock.now + 1
                deadlines.set(self)

    alarm = Again(clock, clock.now + 1)
    deadlines.set(alarm)
    clock.pass_time(60)
    assert len(alarm.rang) == 3


def test_without_alarms_nothing_is_kept_and_no_sweep_is_scheduled(
    clock: Clock, deadlines: Deadlines
) -> None:
    alarms = [Alarm(clock, clock.now + n / 7) for n in range(100)]
    for alarm in alarms:
        deadlines.set(alarm)
    for alarm in alarms[::2]:
        deadlines.clear(alarm)
    clock.pass_time(60)
    assert not deadlines._wheel
    assert not clock.timers


# Time that stood still.


def test_a_sweep_that_is_late_waits_until_the_loop_has_looked_at_its_sockets(
    clock: Clock, deadlines: Deadlines
) -> None:
    alarm, cleared = Alarm(clock, clock.now + 1), Alarm(clock, clock.now + 1)
    for each in (alarm, cleared):
        deadlines.set(each)
    [(_, sweep)] = clock.timers
    clock.timers.clear()
    clock.now += 100
    sweep()
    clock.run_turn()
    assert alarm.rang == []
    deadlines.clear(cleared)  # what it waited for was read in this turn
    clock.run_turn()
    assert (len(alarm.rang), len(cleared.rang)) == (1, 0)


def test_a_late_sweep_waits_until_all_of_many_sockets_were_read(clock: Clock) -> None:
    turns_left = 5

    def has_caught_up() -> bool:
        nonlocal turns_left
        turns_left -= 1
        return turns_left <= 0

    loop = cast("asyncio.AbstractEventLoop", clock)
    deadlines = Deadlines(loop, has_caught_up)
    alarm = Alarm(clock, clock.now + 1)
    deadlines.set(alarm)
    [(_, sweep)] = clock.timers
    clock.now += 100
    sweep()
    for turn in range(6):
        assert alarm.rang == [], turn
        clock.run_turn()
    assert len(alarm.rang) == 1


def test_when_it_is_closed_all_alarms_ring(clock: Clock, deadlines: Deadlines) -> None:
    alarms = [Alarm(clock, clock.now + 100 * n) for n in range(3)]
    for alarm in alarms:
        deadlines.set(alarm)
    deadlines.close()
    assert [len(alarm.rang) for alarm in alarms] == [1, 1, 1]


# Limits, in a fiber and in a Task.


async def in_fiber(routine: Callable[[], Any]) -> None:
    """Run *routine* as a fiber and wait for its end."""
    done = asyncio.get_running_loop().create_future()

    def note(error: BaseException | None) -> None:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    Fiber(routine(), note).wake()
    await done


async def wait_forever() -> None:
    waiter = get_waiter(asyncio.get_running_loop())
    while True:
        await waiter.wait()


def run(routine: Callable[[], Any], *, fiber: bool) -> None:
    async def main() -> None:
        async with asyncio.timeout(LIMIT_S):
            await (in_fiber(routine) if fiber else routine())

    uvloop.run(main())


@pytest.mark.parametrize("fiber", [True, False], ids=["fiber", "task"])
def test_a_body_that_takes_too_long_is_interrupted(fiber: bool) -> None:
    async def routine() -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with pytest.raises(TimeoutError), Limit(Deadlines(loop), SHORT_S):
            await wait_forever()
        assert loop.time() - begun >= SHORT_S

    run(routine, fiber=fiber)


@pytest.mark.parametrize("fiber", [True, False], ids=["fiber", "task"])
def test_a_body_that_ends_in_time_is_not_interrupted(fiber: bool) -> None:
    async def routine() -> None:
        loop = asyncio.get_running_loop()
        with Limit(Deadlines(loop), SHORT_S):
            pass
        # By then a sweep has passed the first limit's time too.
        later_s = SHORT_S + 2 * SWEEP_S
        with pytest.raises(TimeoutError), Limit(Deadlines(loop), later_s):
            await wait_forever()

    run(routine, fiber=fiber)


@pytest.mark.parametrize("fiber", [True, False], ids=["fiber", "task"])
def test_the_outer_limit_does_not_raise_from_the_inner_one(fiber: bool) -> None:
    async def routine() -> None:
        loop = asyncio.get_running_loop()

        async def routine_with_inner() -> None:
            try:
                with Limit(Deadlines(loop), 60):
                    await wait_forever()
            except TimeoutError:
                pytest.fail("the inner limit has not expired")

        with pytest.raises(TimeoutError), Limit(Deadlines(loop), SHORT_S):
            await routine_with_inner()

    run(routine, fiber=fiber)


@pytest.mark.parametrize("fiber", [True, False], ids=["fiber", "task"])
def test_a_foreign_cancellation_passes_through(fiber: bool) -> None:
    async def routine() -> None:
        with Limit(Deadlines(asyncio.get_running_loop()), 60):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(routine, fiber=fiber)
