"""The log of the shim that runs in the test process, as events to wait for."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from tests.integration.scripted.wire import LIMIT_S

Event = dict[str, Any]


class Events:
    """The events logged so far, at every level.  Any thread may wait for more."""

    def __init__(self) -> None:
        """Start empty."""
        self._events: list[Event] = []
        self._changed = threading.Condition()

    def find(self, event: str, **match: object) -> list[Event]:
        """Return the events of that name that have these values."""
        with self._changed:
            return [found for found in self._events if _has(found, event, match)]

    def all(self) -> list[Event]:
        """Return every event."""
        with self._changed:
            return list(self._events)

    def at_least(self, *levels: str) -> list[Event]:
        """Return the events of these levels."""
        with self._changed:
            return [found for found in self._events if found["level"] in levels]

    def wait(self, event: str, *, count: int = 1, **match: object) -> Event:
        """Return the *count*-th event of that name that has these values."""
        found = self._await(event, count, match, LIMIT_S)
        assert found is not None, f"no {event} {match} in {self._events}"
        return found

    def lacks(self, event: str, *, for_s: float, **match: object) -> bool:
        """Return True if no such event comes within that time."""
        return self._await(event, 1, match, for_s) is None

    def _await(
        self, event: str, count: int, match: dict[str, object], limit_s: float
    ) -> Event | None:
        deadline = time.monotonic() + limit_s
        with self._changed:
            while True:
                found = [e for e in self._events if _has(e, event, match)]
                if len(found) >= count:
                    return found[count - 1]
                if (left := deadline - time.monotonic()) <= 0:
                    return None
                self._changed.wait(left)

    def forget(self, event: str) -> None:
        """Remove the events of that name."""
        with self._changed:
            self._events = [kept for kept in self._events if kept["event"] != event]

    def _keep(self, _: WrappedLogger, level: str, event: EventDict) -> EventDict:
        with self._changed:
            self._events.append({**event, "level": level})
            self._changed.notify_all()
        raise structlog.DropEvent


@contextmanager
def captured_events() -> Iterator[Events]:
    """Capture the log of the whole process during the block."""
    before = structlog.get_config()
    events = Events()
    structlog.configure(
        processors=[structlog.processors.format_exc_info, events._keep],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=False,
    )
    try:
        yield events
    finally:
        structlog.configure(**before)


def _has(found: Event, event: str, match: dict[str, object]) -> bool:
    return found["event"] == event and all(
        found.get(key) == value for key, value in match.items()
    )
