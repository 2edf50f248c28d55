"""``proxyshim check --fast``: what a reload would find, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.scripted.mta import Backend
from tests.integration.scripted.process import ROOT
from tests.integration.scripted.test_process import configure
from tests.integration.scripted.wire import LIMIT_S


def check_fast(config: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "proxyshim", "check", "--fast", "-c", str(config)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=ROOT,
    )


def test_a_valid_configuration_is_accepted_in_silence_and_the_backend_left_alone(
    tmp_path: Path, backend: Backend
) -> None:
    done = check_fast(configure(tmp_path, backend))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert backend.was_left_alone()


@pytest.mark.parametrize(
    ("file", "says"),
    [("proxyshim.toml", "not TOML"), ("haproxy_hosts", "haproxy_hosts: line 1")],
)
def test_an_error_in_a_file_is_named(
    file: str, says: str, tmp_path: Path, backend: Backend
) -> None:
    config = configure(tmp_path, backend)
    (tmp_path / file).write_text("every body\n")
    done = check_fast(config)
    assert done.returncode == 78
    assert says in done.stderr
