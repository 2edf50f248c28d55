"""Logging the first of many alike events, and counting the rest.

A misconfigured proxy, or a stranger with many addresses, tries again and again; neither may fill
the disk with lines or the memory with sources.  Pure: the time is an argument.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

PERIOD_S: Final = 60.0
MAX_SOURCES: Final = 1_000

# Stands for all that the table has no room for.
OTHERS: Final = "others"


@dataclass(frozen=True, slots=True)
class Suppressed:
    """So many events of a *source*'s, for one *reason*, were not logged."""

    reason: str
    source: str
    count: int


@dataclass(slots=True)
class _Period:
    until: float
    suppressed: int = 0


class Throttle:
    """Lets one event of a reason and source through in each period."""

    __slots__ = ("_max_sources", "_period_s", "_periods")

    def __init__(
        self, period_s: float = PERIOD_S, max_sources: int = MAX_SOURCES
    ) -> None:
        """Remember *max_sources* at the most; the events of others are only counted."""
        self._period_s = period_s
        self._max_sources = max_sources
        self._periods: dict[tuple[str, str], _Period] = {}

    def admits(self, reason: str, source: str, now: float) -> bool:
        """Tell whether an event is to be logged; count it if not."""
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
        # What the last period suppressed, and nobody took, is told with this one's.
        suppressed = period.suppressed if period is not None else 0
        self._periods[key] = _Period(now + self._period_s, suppressed)
        return True

    def forget(self, reason: str, source: str) -> None:
        """End a period: what it was about is over, and the next event is news again."""
        self._periods.pop((reason, source), None)

    def take_counts(self, now: float) -> Iterator[Suppressed]:
        """Forget the periods that are over; yield what was suppressed in them.

        Call it at least once a period, or the table stays full.
        """
        for key, period in list(self._periods.items()):
            if period.until <= now:
                del self._periods[key]
                if period.suppressed:
                    yield Suppressed(*key, period.suppressed)

    def __len__(self) -> int:
        """Return the number of sources that are remembered."""
        return len(self._periods)
