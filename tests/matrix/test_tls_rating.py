"""testssl.sh rates our own TLS, with the default settings: no finding above "medium".

It takes most of a minute, so it runs with "make matrix".  Handshakes end before the mail server
is asked, so there is none.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.integration.lab.needs import find_program
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import SETTINGS, write_config

NAME = "mx.example.test"
ABOVE_MEDIUM = ("HIGH", "CRITICAL", "FATAL")


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def shim(tmp_path: Path, ca: Authority) -> Iterator[Process]:
    listener: dict[str, object] = {
        **SETTINGS,
        "name": "mx",
        "bind": "127.0.0.1:0",
        "backend": f"unix:{tmp_path}/nobody",
        "tls": "implicit",
        "certificates": [ca.sign(NAME, days=90).as_setting()],
    }
    with Process(write_config(tmp_path, [listener])) as running:
        yield running


def rate(shim: Process, ca: Authority, report: Path) -> list[dict[str, str]]:
    port = shim.address.rpartition(":")[2]
    argv = [find_program("testssl"), "--quiet", "--color", "0", "--warnings", "off"]
    argv += ["--nodns", "none", "--add-ca", str(ca.path), "--ip", "127.0.0.1"]
    argv += ["--protocols", "--server-defaults", "--fs", "--std", "--vulnerable"]
    argv += ["--jsonfile", str(report), f"{NAME}:{port}"]
    subprocess.run(argv, check=False, capture_output=True, timeout=280)
    found: list[dict[str, str]] = json.loads(report.read_text())
    return found


@pytest.mark.timeout(300)
def test_no_finding_is_above_medium(
    shim: Process, ca: Authority, tmp_path: Path
) -> None:
    found = rate(shim, ca, tmp_path / "report.json")
    by_id = {each["id"]: each["finding"] for each in found}
    assert by_id["TLS1_3"].startswith("offered")
    assert by_id["TLS1_1"].startswith("not offered")
    assert "not vulnerable" in by_id["secure_client_renego"]
    bad = [each for each in found if each["severity"] in ABOVE_MEDIUM]
    # The tests' CA revokes nothing, and so says nowhere what it revokes.
    assert [each for each in bad if each["id"] != "cert_revocation"] == []
