"""stdin, stdout and stderr may be closed, or full: neither changes how the process ends."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.scripted.manager import Manager
from tests.integration.scripted.mta import GREETING, Backend
from tests.integration.scripted.process import ROOT
from tests.integration.scripted.shim import connect
from tests.integration.scripted.test_process import EX_CONFIG, configure
from tests.integration.scripted.wire import LIMIT_S

PROXYSHIM = f"{sys.executable} -m proxyshim"


def shell(command: str, manager: Manager | None = None) -> subprocess.Popen[bytes]:
    """Start a shell command that redirects the standard streams."""
    environment = {**os.environ, **(manager.environment if manager else {})}
    return subprocess.Popen(["sh", "-c", f"exec {command}"], cwd=ROOT, env=environment)


@pytest.mark.parametrize(
    "closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", "<&- >&- 2>&-"]
)
def test_closed_streams_do_no_harm(
    tmp_path: Path, backend: Backend, closed: str
) -> None:
    path = tmp_path / "front"
    config = configure(tmp_path, backend, bind=f"unix:{path}", haproxy_hosts="empty")
    (tmp_path / "empty").touch()
    with closing(Manager(str(tmp_path / "notify"))) as manager:
        shim = shell(f"{PROXYSHIM} run -c {config} {closed}", manager)
        try:
            manager.wait_for("READY")
            for descriptor in range(3):
                assert os.path.exists(f"/proc/{shim.pid}/fd/{descriptor}")
            for opened, way in enumerate(("<&-", ">&-", "2>&-")):
                if way in closed.split():
                    held = os.readlink(f"/proc/{shim.pid}/fd/{opened}")
                    assert held == os.devnull
            with connect(f"unix:{path}") as proxy:
                proxy.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n")
                with backend.accept() as mta:
                    mta.introduce()
                    proxy.expect(GREETING)
            shim.send_signal(signal.SIGTERM)
            assert shim.wait(LIMIT_S) == 0
        finally:
            shim.kill()
            shim.wait(LIMIT_S)


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
def test_a_configuration_error_that_nobody_can_read_has_its_status(
    tmp_path: Path, command: str, redirect: str
) -> None:
    (tmp_path / "proxyshim.toml").write_text("[")
    run = shell(f"{PROXYSHIM} {command} -c {tmp_path}/proxyshim.toml {redirect}")
    assert run.wait(LIMIT_S) == EX_CONFIG


def test_a_full_log_does_not_change_the_exit_code(
    tmp_path: Path, backend: Backend
) -> None:
    path = tmp_path / "front"
    config = configure(tmp_path, backend, bind=f"unix:{path}")
    with closing(Manager(str(tmp_path / "notify"))) as manager:
        shim = shell(f"{PROXYSHIM} run -c {config} 2>/dev/full", manager)
        try:
            manager.wait_for("READY")
            shim.send_signal(signal.SIGTERM)
            assert shim.wait(LIMIT_S) == 0
        finally:
            shim.kill()
            shim.wait(LIMIT_S)
