"""Reloads of files that hang or are broken, and many reloads at once."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.scripted.headers import XCLIENT, v1
from tests.integration.scripted.mta import GREETING, Backend
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import LISTED, STRANGER, connect
from tests.integration.scripted.test_process import configure
from tests.integration.scripted.wire import LIMIT_S


def is_served(shim: Process, backend: Backend) -> bool:
    """Return True if a client is greeted."""
    with connect(shim.address, STRANGER) as client, backend.accept() as mta:
        mta.introduce()
        client.expect(GREETING)
    return True


# What is in the place of a file.


@pytest.mark.parametrize("name", ["haproxy_hosts", "proxyshim.toml"])
def test_a_fifo_is_rejected_at_once_and_holds_nothing_up(
    tmp_path: Path, backend: Backend, name: str
) -> None:
    with Process(configure(tmp_path, backend)) as shim:
        path = tmp_path / name
        text = path.read_text()
        path.unlink()
        os.mkfifo(path)
        for number in (1, 2):
            shim.signal(signal.SIGHUP)
            rejected = shim.wait_event("config_rejected", number=number)
            assert f"{path}: cannot be read: Is a FIFO" in rejected["detail"]
        assert is_served(shim, backend)
        path.unlink()
        path.write_text(text)
        shim.signal(signal.SIGHUP)
        shim.wait_event("config_reloaded")
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0


@pytest.mark.parametrize(
    "broken",
    [
        "x = " + "[" * 5000 + "]" * 5000,
        "header_timeout_s = " + "1" * 5000,
        "header_max_octets = 0x" + "f" * 5000,
        ".".join("a" * 2000) + " = 1",
    ],
    ids=["a deep list", "a long number", "a long hexadecimal number", "a deep key"],
)
def test_any_error_in_a_file_rejects_the_reload(
    tmp_path: Path, backend: Backend, broken: str
) -> None:
    config = configure(tmp_path, backend)
    with Process(config) as shim:
        text = config.read_text()
        config.write_text(text + broken + "\n")
        shim.signal(signal.SIGHUP)
        rejected = shim.wait_event("config_rejected")
        assert rejected["level"] == "error"
        assert rejected["detail"].startswith(f"{config}: ")
        assert "exception" not in rejected
        config.write_text(text)
        shim.signal(signal.SIGHUP)
        shim.wait_event("config_reloaded")


# A file system that does not answer.

# A program in which each read of a file hangs while the file "dead" exists.
DEAD = """
import os, sys, time
from proxyshim import cli
from proxyshim.config import files
files.LIMIT_S = float(os.environ["READ_LIMIT_S"])
real = files._read_regular
def read(path):
    while path.with_name("dead").exists():
        path.with_name("hangs").touch()
        time.sleep(0.01)
    return real(path)
files._read_regular = read
sys.argv[1:] = ["run", "-c", sys.argv[1]]
cli.main()
"""


@contextmanager
def on_a_dead_file_system(config: Path, limit_s: float) -> Iterator[Process]:
    """Run a shim whose file system dies after the start."""
    argv = [sys.executable, "-c", DEAD]
    with Process(config, argv=argv, environment={"READ_LIMIT_S": str(limit_s)}) as shim:
        config.with_name("dead").touch()
        try:
            yield shim
        finally:
            config.with_name("dead").unlink(missing_ok=True)


def wait_until_it_hangs(config: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not config.with_name("hangs").exists():
        assert time.monotonic() < deadline, "nothing is read"


def test_a_dead_file_system_rejects_reloads_until_it_answers(
    tmp_path: Path, backend: Backend
) -> None:
    config = configure(tmp_path, backend)
    with on_a_dead_file_system(config, 0.2) as shim:
        for number in range(1, 4):
            shim.signal(signal.SIGHUP)
            rejected = shim.wait_event("config_rejected", number=number)
            assert f"{config}: cannot be read" in rejected["detail"]
            assert "did not answer within 0.2 s" in rejected["detail"]
        assert is_served(shim, backend)
        config.with_name("dead").unlink()
        shim.signal(signal.SIGHUP)
        shim.wait_event("config_reloaded")


def test_a_stop_does_not_wait_for_a_file(tmp_path: Path, backend: Backend) -> None:
    config = configure(tmp_path, backend)
    with on_a_dead_file_system(config, 600.0) as shim:
        shim.signal(signal.SIGHUP)
        wait_until_it_hangs(config)
        assert is_served(shim, backend)
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0


def test_an_upgrade_reports_a_dead_file_system(
    tmp_path: Path, backend: Backend
) -> None:
    config = configure(tmp_path, backend)
    with on_a_dead_file_system(config, 0.2) as shim:
        shim.signal(signal.SIGUSR2)
        assert shim.wait_event("upgrade_failed")["status"] == 75
        assert is_served(shim, backend)


# Many at once.

# A program whose reloads wait until the test closes the FIFO "go".
HELD = """
import os, sys
from proxyshim import cli
from proxyshim.service import daemon
real = daemon.load
def load(path):
    open(path.with_name("go")).read()
    return real(path)
daemon.load = load
sys.argv[1:] = ["run", "-c", sys.argv[1]]
cli.main()
"""


def hold_reload(config: Path) -> int:
    """Wait until a reload begins; return what holds it until it is closed."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            return os.open(config.with_name("go"), os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < deadline, "no reload begins"


def has_pending_signals(shim: Process) -> bool:
    status = Path(f"/proc/{shim.pid}/status").read_text()
    return any(
        int(line.split()[1], 16)
        for line in status.splitlines()
        if line.startswith(("SigPnd", "ShdPnd"))
    )


def test_signals_during_a_reload_cause_one_more_in_all(
    tmp_path: Path, backend: Backend
) -> None:
    config = configure(tmp_path, backend)
    os.mkfifo(tmp_path / "go")
    with Process(config, argv=[sys.executable, "-c", HELD]) as shim:
        shim.signal(signal.SIGHUP)
        held = hold_reload(config)
        for _ in range(30):
            shim.signal(signal.SIGHUP)
            while has_pending_signals(shim):
                pass
            assert is_served(shim, backend)  # so its loop has seen the signal
        # The one that is running may have read the old list already.
        (tmp_path / "haproxy_hosts").write_text(f"{STRANGER}\n")
        os.close(held)
        shim.wait_event("config_reloaded")
        os.close(hold_reload(config))
        shim.wait_event("config_reloaded", number=2)
        with connect(shim.address, STRANGER) as proxy:
            proxy.send(v1())
            with backend.accept() as mta:
                assert mta.introduce() == XCLIENT
        with connect(shim.address, LISTED), backend.accept() as mta:
            mta.introduce()
        assert len(shim.events("config_reloaded")) == 2
        with pytest.raises(OSError, match="No such device"):  # no third one waits
            os.close(os.open(tmp_path / "go", os.O_WRONLY | os.O_NONBLOCK))
        shim.signal(signal.SIGHUP)  # and none is lost later
        os.close(hold_reload(config))
        shim.wait_event("config_reloaded", number=3)
