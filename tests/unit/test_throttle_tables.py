"""Each kind of source has a table of its own, and the one about ourselves is never full."""

import pytest

from proxyshim.throttle import MAX_SOURCES, About, Throttle

START = 1_000_000.0


@pytest.mark.parametrize("about", [About.STRANGER, About.PROXY])
def test_each_table_of_others_has_a_bound(about: About) -> None:
    throttle = Throttle()
    sources = map(str, range(2 * MAX_SOURCES))
    logged = [throttle.admits("reason", each, START, about) for each in sources]
    assert sum(logged) == MAX_SOURCES
    assert len(throttle) == MAX_SOURCES + 1  # and the one for all others


@pytest.mark.parametrize("full", [About.STRANGER, About.PROXY])
def test_a_full_table_leaves_the_other_tables_alone(full: About) -> None:
    throttle = Throttle(max_sources=3)
    for number in range(10):
        throttle.admits("reason", str(number), START, full)
    for about in set(About) - {full}:
        assert throttle.admits("another", "mx", START, about)
        assert not throttle.admits("another", "mx", START, about)


def test_faults_of_our_own_are_never_dropped() -> None:
    throttle = Throttle(max_sources=3)
    names = map(str, range(100))
    assert all(throttle.admits("reason", n, START, About.OURSELVES) for n in names)
