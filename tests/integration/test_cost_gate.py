"""The system calls of a session: a measure of its cost that a busy machine does not blur.

Time varies from machine to machine and from minute to minute.  The number of system calls
of a fixed scenario hardly varies, and they are most of the cost of a session.  The test
uses the benchmark's load generator and backend (bench/), with one session at a time.
"""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench import peers
from bench.programs import Load, compile_programs, run_load, running_backend

SESSIONS = 200
ONE_MESSAGE = Load(SESSIONS, at_once=1, header="v2")

# Per session: one small message after a v2 header.  If a change makes sessions cheaper,
# record the new figure here, so that they stay cheap.  If a change makes them cost more,
# explain in the commit what that buys.
RECORDED = {"xclient": 84.0, "postfix-pass": 22.3}
# The count depends a little on timing: a reply that has arrived before we wait for it
# saves a wake-up.  And uvloop saves a call or two if the kernel has io_uring.
TOLERANCE = 0.06


@pytest.fixture
def strace() -> str:
    """Return the path of strace.  Skips the test without strace or a compiler."""
    found = shutil.which("strace")
    if found is None or shutil.which("cc") is None:
        pytest.skip("needs strace and cc (Debian packages strace, gcc, libc6-dev)")
    return found


@pytest.mark.parametrize("convey", RECORDED)
def test_a_session_makes_no_more_system_calls_than_recorded(
    strace: str, tmp_path: Path, convey: str
) -> None:
    programs = compile_programs(tmp_path)
    kind = peers.proxyshim(Path(sys.executable), convey=convey)
    # A unix socket's path must be short.
    with TemporaryDirectory() as place, ExitStack() as stack:
        argv = [str(programs.backend)]
        if convey == "postfix-pass":
            argv += ["--pass", place]
        backend = stack.enter_context(running_backend(argv))
        shim = stack.enter_context(peers.running(kind, Path(place) / "shim", backend))
        load = ONE_MESSAGE.argv(programs.load, shim.port)
        run_load(load)  # so that one-time work is not counted
        with _counting(strace, shim.pid, tmp_path / "calls"):
            run_load(load)
    calls = _read_counts(tmp_path / "calls")
    each = sum(calls.values()) / SESSIONS
    table = ", ".join(f"{name} {n / SESSIONS:.2f}" for name, n in calls.items())
    recorded = RECORDED[convey]
    assert each <= recorded * (1 + TOLERANCE), f"{each:.1f} a session: {table}"
    assert each >= recorded * (1 - TOLERANCE), f"cheaper: record {each:.1f}: {table}"


@contextmanager
def _counting(strace: str, pid: int, output: Path) -> Iterator[None]:
    """Count the system calls of a process and all its threads during the block."""
    argv = [strace, "-f", "-c", "-o", str(output), "-p", str(pid)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        if "attached" not in said:
            tracer.kill()
            pytest.skip(f"strace cannot attach here: {said.strip()}")
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate(timeout=20)


def _read_counts(path: Path) -> dict[str, int]:
    """Read strace's table: percent, seconds, microseconds each, calls, errors, name."""
    row = re.compile(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", re.MULTILINE)
    counts = {
        name: int(calls)
        for calls, name in row.findall(path.read_text())
        if name != "total"
    }
    assert counts, path.read_text()
    return counts
