"""The log: one line per event, in order, with priorities for the journal."""

import errno
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import structlog

from proxyshim import logs

Configure = Callable[..., Callable[[], list[str]]]

LIMIT_S = 10

HOSTILE = '\x1b[31mred\r\n{"event":"forged"}\x00\x85\u2028\u202e\udcff'


@pytest.fixture
def logging(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Configure]:
    """Return a function that sets up logging, and returns a function that reads the log."""
    before = structlog.get_config()
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    path = tmp_path / "stderr"
    with path.open("w") as stderr:

        def configure(
            format: Literal["json", "console"] = "json",  # noqa: A002
            level: str = "debug",
            *,
            journal: bool = False,
        ) -> Callable[[], list[str]]:
            monkeypatch.setattr("sys.stderr", stderr)
            if journal:
                status = os.fstat(stderr.fileno())
                stream = f"{status.st_dev}:{status.st_ino}"
                monkeypatch.setenv("JOURNAL_STREAM", stream)
            logs.configure(format, level)

            def read() -> list[str]:
                logs.flush()
                return path.read_text("utf-8").splitlines()

            return read

        yield configure
    structlog.configure(**before)


def log_at_every_level() -> None:
    """Log an event at every level."""
    log = structlog.get_logger()
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)(f"noted_{level}", peer="192.0.2.1:25")


def test_an_event_is_one_json_object_on_one_line(logging: Configure) -> None:
    read = logging()
    log_at_every_level()
    lines = [json.loads(line) for line in read()]
    assert [line["event"] for line in lines] == [
        "noted_debug",
        "noted_info",
        "noted_warning",
        "noted_error",
    ]
    assert list(lines[0]) == ["event", "peer", "level", "timestamp"]
    assert [line["level"] for line in lines] == ["debug", "info", "warning", "error"]
    assert lines[0]["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    ("level", "written"),
    [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)],
)
def test_events_below_the_level_are_not_written(
    logging: Configure, level: str, written: int
) -> None:
    read = logging(level=level)
    log_at_every_level()
    assert len(read()) == written


def test_hostile_text_cannot_break_out_of_a_json_line(logging: Configure) -> None:
    read = logging()
    structlog.get_logger().info("thing_noted", detail=HOSTILE)
    (line,) = read()
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["detail"] == HOSTILE


@pytest.mark.parametrize("format", ["json", "console"])
def test_lines_for_the_journal_begin_with_their_priority(
    logging: Configure,
    format: str,  # noqa: A002
) -> None:
    read = logging(format, journal=True)
    log_at_every_level()
    lines = read()
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>"]
    assert not any("timestamp" in line for line in lines)  # the journal adds its own


def test_every_line_of_a_traceback_has_the_priority(logging: Configure) -> None:
    read = logging("console", journal=True)
    try:
        raise ValueError("made up")
    except ValueError:
        structlog.get_logger().exception("session_failed")
    lines = read()
    assert len(lines) > 3
    assert {line[:3] for line in lines} == {"<3>"}
    assert "made up" in lines[-1]


def test_a_traceback_in_json_is_one_line(logging: Configure) -> None:
    read = logging()
    try:
        raise ValueError("made up")
    except ValueError:
        structlog.get_logger().exception("session_failed")
    (line,) = read()
    assert "made up" in json.loads(line)["exception"]


@pytest.mark.parametrize("stream", ["", "1", "1:2", "x:y", ":"])
def test_a_journal_stream_that_is_not_stderr_gives_no_priorities(
    logging: Configure, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    read = logging()
    log_at_every_level()
    assert all(line.startswith("{") for line in read())


def test_the_console_format_is_human_readable(logging: Configure) -> None:
    read = logging("console")
    log_at_every_level()
    first = read()[0]
    assert "noted_debug" in first
    assert "peer=192.0.2.1:25" in first
    assert "\x1b" not in first  # no colours, because stderr is not a terminal


# The reader of the log may be slow, or gone.


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_line_is_one_write(
    format: Literal["json", "console"],  # noqa: A002
    monkeypatch: pytest.MonkeyPatch,
    logging: Configure,
) -> None:
    logging()  # restores the configuration afterwards
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with reader, writer, open(writer.fileno(), "w", closefd=False) as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        logs.configure(format, "info")
        for number in range(3):
            structlog.get_logger().info(f"noted_{number}", detail="x" * 9_000)
        for number in range(3):
            datagram = reader.recv(65_536)
            assert datagram.count(b"\n") == 1
            assert datagram.endswith(b"\n")
            assert f"noted_{number}".encode() in datagram


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_log_that_cannot_be_written_raises_nothing(
    format: Literal["json", "console"],  # noqa: A002
    monkeypatch: pytest.MonkeyPatch,
    logging: Configure,
) -> None:
    logging()
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as unread, open("/dev/full", "w") as full:
        for stderr in (unread, full):
            monkeypatch.setattr("sys.stderr", stderr)
            logs.configure(format, "info")
            for _ in range(3):
                structlog.get_logger().info("thing_noted", detail="x" * 9_000)
            stderr.flush()  # nothing stayed in its buffer


def test_a_line_that_takes_several_writes_is_complete(
    monkeypatch: pytest.MonkeyPatch, logging: Configure
) -> None:
    read = logging()
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, octets: write(fd, octets[:7]))
    structlog.get_logger().info("thing_noted", detail="x" * 100)
    (line,) = read()
    assert json.loads(line)["detail"] == "x" * 100


def test_a_line_that_was_cut_off_is_continued_when_there_is_room_again(
    monkeypatch: pytest.MonkeyPatch, logging: Configure
) -> None:
    """A pipe or a full disk may take a part of a line, and then no more."""
    monkeypatch.setattr("proxyshim.logs._RETRY_S", 0.01)
    read = logging()
    write = os.write
    takes = iter([7, 0, 0])

    def take_a_part(descriptor: int, octets: bytes) -> int:
        part = next(takes, len(octets))
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, octets[:part])

    monkeypatch.setattr(os, "write", take_a_part)
    for number in range(3):
        structlog.get_logger().info("thing_noted", number=number)
    assert [json.loads(line)["number"] for line in read()] == [0, 1, 2]


class StalledPipe:
    """A pipe as the log's stream; nothing reads it before ``lines``."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.stderr = os.fdopen(self.writing, "w")

    def lines_until(self, last: str) -> list[dict[str, object]]:
        """Read lines up to one that has the text *last*."""
        read = b""
        while last.encode() not in read or not read.endswith(b"\n"):
            assert select.select([self.reading], [], [], LIMIT_S)[0]
            read += os.read(self.reading, 1_000_000)
        return [json.loads(line) for line in read.splitlines()]

    def close(self) -> None:
        os.close(self.reading)
        self.stderr.close()


@pytest.fixture
def stalled(
    monkeypatch: pytest.MonkeyPatch, logging: Configure
) -> Iterator[StalledPipe]:
    """Log to a pipe that nobody reads."""
    logging()  # restores the configuration afterwards
    pipe = StalledPipe()
    monkeypatch.setattr("sys.stderr", pipe.stderr)
    logs.configure("json", "info")
    yield pipe
    pipe.close()


def test_lines_that_nobody_reads_are_kept_up_to_a_bound_and_counted_above_it(
    stalled: StalledPipe,
) -> None:
    log = structlog.get_logger()
    for number in range(3_000):  # 3 MB
        log.info("thing_noted", number=number, detail="x" * 900)
    dropped = logs.lines_dropped()
    assert 1_800 < dropped < 2_100  # 1 MB and what fits into the pipe were kept
    *kept, report = stalled.lines_until("log_lines_dropped")
    assert [line["number"] for line in kept] == [*range(3_000 - dropped)]
    assert (report["event"], report["count"]) == ("log_lines_dropped", dropped)
    log.info("thing_noted", number="last")
    assert [line["number"] for line in stalled.lines_until("last")] == ["last"]
    assert logs.lines_dropped() == dropped


def test_the_lines_that_wait_when_the_process_ends_delay_it_only_for_a_moment(
    stalled: StalledPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.logs._FLUSH_S", 0.1)
    for number in range(200):
        structlog.get_logger().info(f"noted_{number}", detail="x" * 900)
    before = time.monotonic()
    logs.flush()
    assert time.monotonic() - before < 2
    assert len(stalled.lines_until("noted_199")) == 200


def test_short_lines_are_written_together_as_far_as_a_pipe_keeps_them_together(
    monkeypatch: pytest.MonkeyPatch, logging: Configure
) -> None:
    read = logging()
    write, sizes = os.write, []

    def note_size(descriptor: int, octets: bytes) -> int:
        sizes.append(len(octets))
        return write(descriptor, octets)

    monkeypatch.setattr(os, "write", note_size)
    for number in range(1_000):
        structlog.get_logger().info("thing_noted", number=number)
    assert [json.loads(line)["number"] for line in read()] == [*range(1_000)]
    assert len(sizes) < 500
    assert max(sizes) <= select.PIPE_BUF


@pytest.mark.parametrize("format", ["json", "console"])
def test_text_that_cannot_be_encoded_is_escaped(
    logging: Configure,
    format: Literal["json", "console"],  # noqa: A002
) -> None:
    read = logging(format)
    structlog.get_logger().info("thing_noted", detail="\udcff")
    (line,) = read()
    assert "\\udcff" in line
