"""Logging with structlog to stderr: JSON or human-readable, with priorities for the journal.

Lines get a syslog priority if stderr is the journal.  Only the shell logs, and it never logs
content, credentials or raw bytes.  An event is a constant ``noun_participle``; details are keys.
*error* means that somebody should act now, *warning* that an operator should fix something.
"""

import json
import os
import sys
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# sd-daemon(3): the journal reads the priority from the start of a line.
_PRIORITIES: Final = {
    "debug": "<7>",
    "info": "<6>",
    "warning": "<4>",
    "error": "<3>",
    "critical": "<2>",
}


def configure(format: Literal["json", "console"], level: str) -> None:  # noqa: A002
    """Set up logging for the whole process."""
    journal = _is_journal(sys.stderr)
    processors: list[Processor] = [structlog.processors.add_log_level]
    if not journal:
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    processors.append(structlog.processors.format_exc_info)
    if format == "json":
        processors.append(_render_json)
    else:
        processors.append(
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False)
        )
    if journal:
        processors.append(_put_priority)
    writer = _Writer(sys.stderr)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )


class _Writer:
    """Writes lines to a stream whose reader may be gone; mail continues without a log.

    It writes to the descriptor, because the stream's own buffer would keep the lines that could
    not be written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._missing_end = b""  # the line end of a line that was cut off

    def write(self, line: str) -> None:
        # Python's own stderr escapes what it cannot encode in the same way.
        encoded = (line + "\n").encode(self._encoding, "backslashreplace")
        encoded, written = self._missing_end + encoded, 0
        try:
            # A signal, or a pipe that is nearly full, makes a write stop early.
            while written < len(encoded):
                written += os.write(self._descriptor, encoded[written:])
        except OSError:
            if written:
                self._missing_end = b"\n"
        else:
            self._missing_end = b""

    # structlog calls the method that has the name of the level.
    debug = info = warning = error = critical = write


def _is_journal(stream: TextIO) -> bool:
    """Return True if systemd connected *stream* to the journal (systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def priority_prefix(level: str) -> str:
    """Return the prefix that gives a line its priority in the journal; else nothing."""
    return _PRIORITIES[level] if _is_journal(sys.stderr) else ""


_encode: Final = json.JSONEncoder(default=str, separators=(",", ":")).encode


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return _encode({"event": event.pop("event"), **event})


def _put_priority(_: WrappedLogger, method: str, line: Any) -> str:
    """Put the priority before every line of an entry; a traceback has several lines."""
    priority = _PRIORITIES.get(method, "<6>")
    return "\n".join(priority + part for part in str(line).split("\n"))
