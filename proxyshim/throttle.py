"""Throttles the log: the first of many similar events is logged, the others are counted.

A misconfigured proxy, or a stranger with many addresses, tries again and again.  Neither may fill
the disk with log lines or the memory with table entries.  Strangers, proxies and we ourselves have
a table each, so that strangers with many addresses never hide a fault of a proxy, and neither of
them ever hides a fault of the backend or of our own.  Pure: the caller passes the time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

PERIOD_S: Final = 60.0
MAX_SOURCES: Final = 1_000

# The source under which we count the events that the table has no room for.
OTHERS: Final = "others"


class About(Enum):
    """Who is to blame for an event: each has a table of its own."""

    STRANGER = auto()  # a client, or a peer that is not listed
    PROXY = auto()  # a listed peer
    OURSELVES = auto()  # the backend, a shortage here, or a defect


@dataclass(frozen=True, slots=True)
class Suppressed:
    """How many events of one *reason*, from one *source*, were not logged."""

    reason: str
    source: str
    count: int


@dataclass(slots=True)
class _Period:
    until: float
    suppressed: int = 0


class Throttle:
    """Lets one event per reason and source through in each period."""

    __slots__ = ("_max_sources", "_period_s", "_tables")

    def __init__(
        self, period_s: float = PERIOD_S, max_sources: int = MAX_SOURCES
    ) -> None:
        """Track at most *max_sources* in each table; events of any others are only counted.

        The table about ourselves has no bound, because its sources are few: names from the
        configuration, and places in the code.
        """
        self._period_s = period_s
        self._max_sources = {about: float(max_sources) for about in About}
        self._max_sources[About.OURSELVES] = math.inf
        self._tables: dict[About, dict[tuple[str, str], _Period]] = {
            about: {} for about in About
        }

    def admits(
        self, reason: str, source: str, now: float, about: About = About.STRANGER
    ) -> bool:
        """Return True if the caller should log an event; otherwise count it."""
        key = (reason, source)
        periods = self._tables[about]
        period = periods.get(key)
        if period is not None and now < period.until:
            period.suppressed += 1
            return False
        if period is None and len(periods) >= self._max_sources[about]:
            others = periods.setdefault((reason, OTHERS), _Period(now + self._period_s))
            others.suppressed += 1
            return False
        # Carry over a count from the previous period that has not been reported yet.
        suppressed = period.suppressed if period is not None else 0
        periods[key] = _Period(now + self._period_s, suppressed)
        return True

    def take_counts(self, now: float) -> Iterator[Suppressed]:
        """Forget the periods that are over, and yield what was suppressed in them.

        Call this at least once per period; otherwise the tables stay full.
        """
        for periods in self._tables.values():
            for key, period in list(periods.items()):
                if period.until <= now:
                    del periods[key]
                    if period.suppressed:
                        yield Suppressed(*key, period.suppressed)

    def __len__(self) -> int:
        """Return the number of sources that we track."""
        return sum(len(periods) for periods in self._tables.values())
