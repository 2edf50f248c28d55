"""Collects the shim's log, so that the demo can show it after the transcript."""

import asyncio
import logging

import structlog
from structlog.typing import EventDict, WrappedLogger


def quote(value: object) -> str:
    """Return *value* as text, in quotes if it contains spaces."""
    text = str(value)
    return repr(text) if " " in text else text


class ShimLog:
    """The events that the shim logs from now on, at *info* and above."""

    def __init__(self) -> None:
        """Take over the logging of the whole process."""
        self.entries: list[str] = []
        self.session_closed = asyncio.Event()
        structlog.configure(
            processors=[structlog.processors.format_exc_info, self._keep],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            cache_logger_on_first_use=False,
        )

    def clear(self) -> None:
        """Start again, for the next session."""
        self.entries.clear()
        self.session_closed.clear()

    def _keep(self, _: WrappedLogger, level: str, event: EventDict) -> EventDict:
        name = event.pop("event")
        details = (f"{key}={quote(value)}" for key, value in event.items())
        self.entries.append(" ".join((level, name, *details)))
        if name == "session_closed":
            self.session_closed.set()
        raise structlog.DropEvent
