"""The log's reader stalls, or nothing can be written: mail goes on."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

from proxyshim.smtp.replies import HEADER_REFUSED
from tests.integration.lab.shim import read_event
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import GREETING, Backend
from tests.integration.scripted.process import ROOT
from tests.integration.scripted.shim import SETTINGS, connect, write_config
from tests.integration.scripted.wire import LIMIT_S

PIPE_OCTETS = 4_096  # the smallest pipe; after 15 sessions it is full


@contextmanager
def shim_with_log(
    directory: Path, backend: Backend, log: int | IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a shim on the unix socket ``front`` that logs everything to *log*."""
    listener = {
        **SETTINGS,
        "name": "mx",
        "bind": [f"unix:{directory}/front"],
        "backend": backend.name,
    }
    config = write_config(directory, [listener], '[log]\nlevel = "debug"\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "proxyshim", "run", "-c", str(config)],
        stderr=log,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(LIMIT_S)


def play_sessions(directory: Path, backend: Backend, number: int) -> None:
    """Play *number* sessions that are refused, and one that is not."""
    address = f"unix:{directory}/front"
    for _ in range(number):
        with connect(address) as proxy:
            proxy.send(b"no header\r\n")
            assert proxy.last_words() == HEADER_REFUSED
    with connect(address) as proxy:
        proxy.send(v1())
        with backend.accept() as mta:
            mta.introduce()
            proxy.expect(GREETING)


def test_sessions_are_served_while_nobody_reads_the_log(
    tmp_path: Path, backend: Backend
) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_OCTETS)
    with (
        os.fdopen(reading, "rb") as log,
        shim_with_log(tmp_path, backend, writing) as process,
    ):
        os.close(writing)
        while b"service_ready" not in log.readline():
            pass
        play_sessions(tmp_path, backend, 100)
        process.send_signal(signal.SIGTERM)
        # From here on somebody reads.
        events = [read_event(line.decode()) for line in log]
        assert process.wait(LIMIT_S) == 0
    closed = [event for event in events if event["event"] == "session_closed"]
    assert len(closed) == 101
    assert events[-1]["event"] == "service_stopped"


def test_a_stop_does_not_wait_for_a_reader_of_the_log(
    tmp_path: Path, backend: Backend
) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_OCTETS)
    with (
        os.fdopen(reading, "rb") as log,
        shim_with_log(tmp_path, backend, writing) as process,
    ):
        while b"service_ready" not in log.readline():
            pass
        play_sessions(tmp_path, backend, 50)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
        os.close(writing)


def test_a_configuration_error_that_nobody_reads_ends_the_process_all_the_same(
    tmp_path: Path, backend: Backend
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * PIPE_OCTETS)
    os.set_blocking(writing, True)
    (tmp_path / "front").write_text("not a socket")
    with shim_with_log(tmp_path, backend, writing) as process:
        assert process.wait(LIMIT_S) == 78
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("kind", ["full disk", "no reader"])
def test_sessions_are_served_while_the_log_cannot_be_written(
    tmp_path: Path, backend: Backend, kind: str
) -> None:
    if kind == "full disk":
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    with shim_with_log(tmp_path, backend, writing) as process:
        os.close(writing)
        wait_for_path(tmp_path / "front", process)
        play_sessions(tmp_path, backend, 50)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0


def wait_for_path(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the shim listens; it cannot tell us in its log."""
    for _ in range(int(LIMIT_S / 0.05)):
        assert process.poll() is None
        try:
            connect(f"unix:{path}").close()
        except OSError:
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        else:
            return
    pytest.fail("the shim does not listen")
