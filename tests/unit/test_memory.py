"""MemoryErrors that go on are the end of a process; a few of them are not."""

import pytest

from proxyshim.net.memory import GIVE_UP_AFTER_S, MemoryWatch


class Clock:
    """A time that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def time(self) -> float:
        return self.now


def note_errors(watch: MemoryWatch, clock: Clock, for_s: float, every_s: float) -> None:
    """Note errors at regular intervals."""
    until = clock.now + for_s
    while clock.now < until:
        watch.note_error()
        clock.now += every_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def exhausted() -> list[str]:
    return []


@pytest.fixture
def watch(clock: Clock, exhausted: list[str]) -> MemoryWatch:
    watch = MemoryWatch(clock.time)
    watch.on_exhausted = lambda: exhausted.append("exhausted")
    return watch


def test_errors_that_go_on_are_reported_once(
    watch: MemoryWatch, clock: Clock, exhausted: list[str]
) -> None:
    note_errors(watch, clock, GIVE_UP_AFTER_S, 1.0)
    assert exhausted == []
    note_errors(watch, clock, 60, 1.0)
    assert exhausted == ["exhausted"]


def test_errors_with_pauses_in_between_are_not_reported(
    watch: MemoryWatch, clock: Clock, exhausted: list[str]
) -> None:
    for _ in range(100):
        note_errors(watch, clock, 1.0, 0.01)
        clock.now += 10
    assert exhausted == []


def test_the_reserve_is_there_until_the_first_error_and_again_after_a_pause(
    watch: MemoryWatch, clock: Clock
) -> None:
    assert watch._reserve is not None
    watch.note_error()
    assert watch._reserve is None
    watch.restore()
    assert watch._reserve is None
    clock.now += 10
    watch.restore()
    assert watch._reserve is not None


def test_without_memory_for_the_reserve_nothing_fails(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", fail)
    MemoryWatch(clock.time).note_error()
