"""Logging with structlog to stderr: JSON or human-readable, with priorities for the journal.

Lines get a syslog priority if stderr is the journal.  Only the shell logs, and it never logs
content, credentials or raw bytes.  An event is a constant ``noun_participle``; details are keys.
*error* means that somebody should act now, *warning* that an operator should fix something.
Logging never waits: a thread writes the lines, and drops some if nobody reads them.
"""

import errno
import json
import os
import select
import signal
import socket
import stat
import sys
import threading
import time
from collections import deque
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

# Lines that wait for the stream.  At info a session writes about 400 octets.
MAX_QUEUED_OCTETS: Final = 1_000_000
# A wake-up of the writing thread costs more than a line, so it lets some gather: a few after a
# quiet time, more while lines keep coming.
_GATHER_S: Final = 0.01
_GATHER_BUSY_S: Final = 0.1
_RETRY_S: Final = 1.0  # after the stream took nothing
_FLUSH_S: Final = 2.0


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
    global _writer
    if _writer is not None:
        _writer.close()
    _writer = writer = LineWriter(sys.stderr)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )


class LineWriter:
    """Writes lines to a stream from a thread of its own, so that nobody ever waits for its reader.

    Lines wait in a queue while the stream does not take them: its reader stalls or is gone, or
    the disk is full.  When the queue is full we drop lines and count them, until everything that
    was queued is written; then one line reports the count.

    The descriptor stays in blocking mode, because O_NONBLOCK would also apply to every other
    process that shares the stream.  A write never ends inside a line if the stream takes all of
    it, so the lines of two processes (an upgrade) do not mix.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to *stream*'s descriptor; its own buffer is not used."""
        self.lines_dropped = 0
        # Our own, because the thread may still use it when the stream is closed.
        self._descriptor = os.dup(stream.fileno())
        self._encoding = stream.encoding
        self._max_joined = _max_joined_octets(self._descriptor)
        self._lock = threading.Lock()  # for the four attributes below
        self._lines: deque[bytes] = deque()
        self._queued_octets = 0  # in _lines and _rest
        self._unreported = 0  # dropped lines that no line has reported yet
        self._rest = b""  # what is being written
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closed = False
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: str) -> None:
        """Queue a line, or drop it."""
        # Python's own stderr escapes what it cannot encode in the same way.
        encoded = (line + "\n").encode(self._encoding, "backslashreplace")
        with self._lock:
            queued = self._queued_octets + len(encoded)
            if self._unreported or queued > MAX_QUEUED_OCTETS:
                self._unreported += 1
                self.lines_dropped += 1
                return
            self._lines.append(encoded)
            self._queued_octets = queued
        if not self._wake.is_set():
            self._wake.set()

    # structlog calls the method that has the name of the level.
    debug = info = warning = error = critical = write

    def flush(self, limit_s: float) -> None:
        """Wait until everything is written, or until the time is over."""
        until = time.monotonic() + limit_s
        self._hurry.set()
        while self._queued_octets or self._unreported:
            if time.monotonic() > until:
                break
            time.sleep(_GATHER_S / 10)
        self._hurry.clear()

    def close(self) -> None:
        """End the thread when everything is written, or cannot be written now."""
        self._closed = True
        self._wake.set()

    def _run(self) -> None:
        # Signals are for the main thread, which blocks some of them at the end.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._closed:
            self._wake.wait()
            self._hurry.wait(_GATHER_S)
            self._write_while_lines_come()
        os.close(self._descriptor)

    def _write_while_lines_come(self) -> None:
        try:
            while self._take_lines():
                self._write_rest()
                if not self._lines and not self._rest:
                    self._report_dropped()
                    self._hurry.wait(_GATHER_BUSY_S)
        except Exception:  # noqa: BLE001 - the reader is gone, the disk is full, ...
            if not self._closed:
                time.sleep(_RETRY_S)
        else:
            self._wake.clear()
            if self._lines:  # it came just before
                self._wake.set()

    def _take_lines(self) -> bool:
        """Take the next lines to write; return False if there are none."""
        with self._lock:
            if self._lines and not self._rest:
                taken = [self._lines.popleft()]
                room = self._max_joined - len(taken[0])
                while self._lines and len(self._lines[0]) <= room:
                    taken.append(self._lines.popleft())
                    room -= len(taken[-1])
                self._rest = b"".join(taken)
            return self._rest != b""

    def _write_rest(self) -> None:
        try:
            written = os.write(self._descriptor, self._rest)
        except BlockingIOError:  # another process has set O_NONBLOCK
            _wait_until_writable(self._descriptor)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:  # it would never fit into a datagram
                self.lines_dropped += 1
                self._note_written(len(self._rest))
            else:
                raise
        else:
            self._note_written(written)

    def _note_written(self, octets: int) -> None:
        with self._lock:
            self._rest = self._rest[octets:]
            self._queued_octets -= octets

    def _report_dropped(self) -> None:
        with self._lock:
            count, self._unreported = self._unreported, 0
        if count:
            structlog.get_logger().warning("log_lines_dropped", count=count)


def _max_joined_octets(descriptor: int) -> int:
    """Return how many octets of lines to write at a time: as many as a pipe keeps together.

    On a datagram socket each line is a message of its own.
    """
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return select.PIPE_BUF
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        return select.PIPE_BUF if sock.type == socket.SOCK_STREAM else 0


def _wait_until_writable(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll(_RETRY_S * 1_000)


_writer: LineWriter | None = None


def lines_dropped() -> int:
    """Return how many lines could not be written so far."""
    return _writer.lines_dropped if _writer is not None else 0


def flush() -> None:
    """Wait a moment for the last lines to be written: the process is about to end."""
    if _writer is not None:
        _writer.flush(_FLUSH_S)


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
