"""Each source and reason is logged once a minute; other events are counted."""

import math

from proxyshim.throttle import MAX_SOURCES, OTHERS, PERIOD_S, Suppressed, Throttle

START = 1_000_000.0
REASON = "header_forbidden"


def test_the_first_event_is_logged_and_the_rest_is_not() -> None:
    throttle = Throttle()
    logged = [throttle.admits(REASON, "192.0.2.1", START + n) for n in range(50)]
    assert logged == [True] + [False] * 49


def test_an_event_is_logged_again_after_a_minute() -> None:
    throttle = Throttle()
    assert throttle.admits(REASON, "192.0.2.1", START)
    assert not throttle.admits(REASON, "192.0.2.1", START + PERIOD_S - 0.1)
    assert throttle.admits(REASON, "192.0.2.1", START + PERIOD_S)


def test_sources_and_reasons_are_throttled_separately() -> None:
    throttle = Throttle()
    assert throttle.admits(REASON, "192.0.2.1", START)
    assert throttle.admits(REASON, "192.0.2.2", START)
    assert throttle.admits("header_timeout", "192.0.2.1", START)
    assert not throttle.admits(REASON, "192.0.2.1", START)


def test_the_count_is_reported_when_the_minute_is_over() -> None:
    throttle = Throttle()
    for _ in range(5):
        throttle.admits(REASON, "192.0.2.1", START)
    assert list(throttle.take_counts(START + PERIOD_S - 0.1)) == []
    counts = list(throttle.take_counts(START + PERIOD_S))
    assert counts == [Suppressed(REASON, "192.0.2.1", 4)]
    assert list(throttle.take_counts(START + PERIOD_S)) == []


def test_a_single_event_has_no_suppressed_count() -> None:
    throttle = Throttle()
    throttle.admits(REASON, "192.0.2.1", START)
    assert list(throttle.take_counts(math.inf)) == []
    assert len(throttle) == 0


def test_a_count_not_taken_in_time_is_carried_over() -> None:
    throttle = Throttle()
    for _ in range(5):
        throttle.admits(REASON, "192.0.2.1", START)
    assert throttle.admits(REASON, "192.0.2.1", START + PERIOD_S + 0.5)
    assert not throttle.admits(REASON, "192.0.2.1", START + PERIOD_S + 0.6)
    counts = list(throttle.take_counts(START + 2 * PERIOD_S + 0.5))
    assert counts == [Suppressed(REASON, "192.0.2.1", 5)]


def test_logged_and_suppressed_events_add_up_to_all_events() -> None:
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


def test_the_table_is_bounded_and_other_sources_are_counted_together() -> None:
    throttle = Throttle()
    logged = sum(
        throttle.admits(reason, f"192.0.2.{number}", START)
        for number in range(5_000)
        for reason in (REASON, "header_timeout")
    )
    assert logged == MAX_SOURCES == 1_000
    assert len(throttle) == MAX_SOURCES + 2
    counts = list(throttle.take_counts(START + PERIOD_S))
    assert counts == [
        Suppressed(REASON, OTHERS, 4_500),
        Suppressed("header_timeout", OTHERS, 4_500),
    ]


def test_a_source_in_a_full_table_keeps_its_own_count() -> None:
    throttle = Throttle(max_sources=1)
    for source in ("a", "b", "a", "c"):
        throttle.admits(REASON, source, START)
    counts = list(throttle.take_counts(START + PERIOD_S))
    assert counts == [Suppressed(REASON, "a", 1), Suppressed(REASON, OTHERS, 2)]


def test_a_full_table_is_reported_once_a_minute_too() -> None:
    throttle = Throttle(max_sources=10)
    lines = 0
    for second in range(600):
        for number in range(100):
            lines += throttle.admits(REASON, f"{second}.{number}", START + second)
        lines += len(list(throttle.take_counts(START + second)))
    # Per minute: a first line and a count for each of ten sources, and one for the others.
    assert lines <= 10 * (10 + 10 + 1)


def test_a_full_table_has_room_again_after_a_minute() -> None:
    throttle = Throttle(max_sources=1)
    assert throttle.admits(REASON, "a", START)
    assert not throttle.admits(REASON, "b", START)
    list(throttle.take_counts(START + PERIOD_S))
    assert throttle.admits(REASON, "b", START + PERIOD_S)
