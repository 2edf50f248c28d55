"""Logging: structlog to stderr, as JSON or for eyes, with priorities for the journal.

Only the shell logs, never content, credentials or raw octets.  An event is a constant
``noun_participle``; details are keys.  *error* means that somebody should act, *warning* that an
operator should mend something.
"""

import json
import os
import sys
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# sd-daemon(3): what the journal takes from the start of a line.
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
    """Writes lines to a stream whose reader may be gone: mail goes on without a log.

    To the descriptor, for the stream's own buffer would keep what could not be written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._broke_off = b""  # a line end, for a line that did not get as far

    def write(self, line: str) -> None:
        # As stderr does with what it can't encode.
        octets = (line + "\n").encode(self._encoding, "backslashreplace")
        octets, written = self._broke_off + octets, 0
        try:
            while written < len(octets):  # a signal may come, or a pipe be full
                written += os.write(self._descriptor, octets[written:])
        except OSError:
            if written:
                self._broke_off = b"\n"
        else:
            self._broke_off = b""

    # By the names of the levels, as structlog calls what it wraps.
    debug = info = warning = error = critical = write


def _is_journal(stream: TextIO) -> bool:
    """Tell whether systemd connected *stream* to the journal (systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def mark(level: str) -> str:
    """Return what the journal takes for the priority of a line; nothing elsewhere."""
    return _PRIORITIES[level] if _is_journal(sys.stderr) else ""


_encode: Final = json.JSONEncoder(default=str, separators=(",", ":")).encode


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return _encode({"event": event.pop("event"), **event})


def _put_priority(_: WrappedLogger, method: str, line: Any) -> str:
    """Mark every line of an entry; a traceback has several."""
    mark = _PRIORITIES.get(method, "<6>")
    return "\n".join(mark + part for part in str(line).split("\n"))
