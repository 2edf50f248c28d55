"""Throttles the log: the first of many similar events is logged, the others are counted.

A misconfigured proxy, or a stranger with many addresses, tries again and again.  Neither may fill
the disk with log lines or the memory with table entries.  Pure: the caller passes the time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

PERIOD_S: Final = 60.0
MAX_SOURCES: Final = 1_000

# The source under which we count the events that the table has no room for.
OTHERS: Final = "others"


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

    __slots__ = ("_max_sources", "_period_s", "_periods")

    def __init__(
        self, period_s: float = PERIOD_S, max_sources: int = MAX_SOURCES
    ) -> None:
        """Track at most *max_sources*; events of any others are only counted."""
        self._period_s = period_s
        self._max_sources = max_sources
        self._periods: dict[tuple[str, str], _Period] = {}

    def admits(self, reason: str, source: str, now: float) -> bool:
        """Return True if the caller should log an event; otherwise count it."""
        key = (reason, source)
        period = self._periods.get(key)
        if period is not None and now < period.until:
            period.suppressed += 1
            return False
        if period is None and len(self._periods) >= self._max_sources:
            others = self._periods.setdefault(
                (reason, OTHERS), _Period(now + self._period_s)
            )
            others.suppressed += 1
            return False
        # Carry over a count from the previous period that has not been reported yet.
        suppressed = period.suppressed if period is not None else 0
        self._periods[key] = _Period(now + self._period_s, suppressed)
        return True

    def forget(self, reason: str, source: str) -> None:
        """End a period: the fault is over, so the next event is to be logged again."""
        self._periods.pop((reason, source), None)

    def take_counts(self, now: float) -> Iterator[Suppressed]:
        """Forget the periods that are over, and yield what was suppressed in them.

        Call this at least once per period; otherwise the table stays full.
        """
        for key, period in list(self._periods.items()):
            if period.until <= now:
                del self._periods[key]
                if period.suppressed:
                    yield Suppressed(*key, period.suppressed)

    def __len__(self) -> int:
        """Return the number of sources that we track."""
        return len(self._periods)
