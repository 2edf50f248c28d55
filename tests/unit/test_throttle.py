"""One log line a source, reason and minute; the rest is counted, in bounded memory."""

import math

from proxyshim.throttle import MAX_SOURCES, OTHERS, PERIOD_S, Suppressed, Throttle

START = 1_000_000.0
REASON = "header_forbidden"


def test_the_first_is_logged_and_the_rest_is_not() -> None:
    throttle = Throttle()
    logged = [throttle.admits(REASON, "192.0.2.1", START + n) for n in range(50)]
    assert logged == [True] + [False] * 49


def test_after_a_minute_it_is_logged_again() -> None:
    throttle = Throttle()
    assert throttle.admits(REASON, "192.0.2.1", START)
    assert not throttle.admits(REASON, "192.0.2.1", START + PERIOD_S - 0.1)
    assert throttle.admits(REASON, "192.0.2.1", START + PERIOD_S)


def test_sources_and_reasons_are_told_apart() -> None:
    throttle = Throttle()
    assert throttle.admits(REASON, "192.0.2.1", START)
    assert throttle.admits(REASON, "192.0.2.2", START)
    assert throttle.admits("header_timeout", "192.0.2.1", START)
    assert not throttle.admits(REASON, "192.0.2.1", START)


def test_the_count_is_told_when_the_minute_is_over() -> None:
    throttle = Throttle()
    for _ in range(5):
        throttle.admits(REASON, "192.0.2.1", START)
    assert list(throttle.take_counts(START + PERIOD_S - 0.1)) == []
    told = list(throttle.take_counts(START + PERIOD_S))
    assert told == [Suppressed(REASON, "192.0.2.1", 4)]
    assert list(throttle.take_counts(START + PERIOD_S)) == []


def test_one_event_alone_has_no_count() -> None:
    throttle = Throttle()
    throttle.admits(REASON, "192.0.2.1", START)
    assert list(throttle.take_counts(math.inf)) == []
    assert len(throttle) == 0


def test_a_count_that_nobody_took_in_time_is_not_lost() -> None:
    throttle = Throttle()
    for _ in range(5):
        throttle.admits(REASON, "192.0.2.1", START)
    assert throttle.admits(REASON, "192.0.2.1", START + PERIOD_S + 0.5)
    assert not throttle.admits(REASON, "192.0.2.1", START + PERIOD_S + 0.6)
    told = list(throttle.take_counts(START + 2 * PERIOD_S + 0.5))
    assert told == [Suppressed(REASON, "192.0.2.1", 5)]


def test_what_is_told_and_what_is_logged_are_all_events_together() -> None:
    throttle = Throttle(period_s=7.0)
    logged = suppressed = 0
    for tenth in range(1000):
        now = START + tenth / 10
        logged += throttle.admits(REASON, "192.0.2.1", now)
        if tenth % 10 == 3:  # once a second, as the server does
            suppressed += sum(each.count for each in throttle.take_counts(now))
    suppressed += sum(each.count for each in throttle.take_counts(math.inf))
    assert logged + suppressed == 1000
    assert 12 <= logged <= 15


# Many sources.


def test_the_table_is_bounded_and_the_rest_is_counted_as_one() -> None:
    throttle = Throttle()
    logged = sum(
        throttle.admits(reason, f"192.0.2.{number}", START)
        for number in range(5_000)
        for reason in (REASON, "header_timeout")
    )
    assert logged == MAX_SOURCES == 1_000
    assert len(throttle) == MAX_SOURCES + 2
    told = list(throttle.take_counts(START + PERIOD_S))
    assert told == [
        Suppressed(REASON, OTHERS, 4_500),
        Suppressed("header_timeout", OTHERS, 4_500),
    ]


def test_who_is_in_a_full_table_keeps_its_own_count() -> None:
    throttle = Throttle(max_sources=1)
    for source in ("a", "b", "a", "c"):
        throttle.admits(REASON, source, START)
    told = list(throttle.take_counts(START + PERIOD_S))
    assert told == [Suppressed(REASON, "a", 1), Suppressed(REASON, OTHERS, 2)]


def test_a_full_table_is_told_of_once_a_minute_too() -> None:
    throttle = Throttle(max_sources=10)
    lines = 0
    for second in range(600):
        for number in range(100):
            lines += throttle.admits(REASON, f"{second}.{number}", START + second)
        lines += len(list(throttle.take_counts(START + second)))
    assert lines <= 10 * (10 + 10 + 1)  # a first and a count each, and one for others


def test_there_is_room_again_when_a_minute_is_over() -> None:
    throttle = Throttle(max_sources=1)
    assert throttle.admits(REASON, "a", START)
    assert not throttle.admits(REASON, "b", START)
    list(throttle.take_counts(START + PERIOD_S))
    assert throttle.admits(REASON, "b", START + PERIOD_S)
