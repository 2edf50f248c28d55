"""The unit files, without running them: systemd's own checks, and values that must agree."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from proxyshim.config import ListenerSettings
from proxyshim.net.closing import DELIVERY_S
from proxyshim.session.timing import FINAL_REPLY_S
from tests.docs import marked
from tests.integration.lab.needs import find_program
from tests.integration.lab.service import UNITS

DROP_INS: Final = UNITS / "proxyshim.service.d"
# Exposure as systemd-analyze rates it, from 0 to 10: how much an intruder could reach.
LOCAL_RESOLVER, RESOLVER_ELSEWHERE, NO_NETWORK, OWN_PORT = 0.9, 1.0, 0.2, 1.4


def installed(directory: Path, drop_ins: Iterable[str] = ()) -> Path:
    """Copy the units with those example drop-ins, and uncomment all their settings."""
    for unit in ("proxyshim.service", "proxyshim.socket"):
        shutil.copy(UNITS / unit, directory)
    service = directory / "proxyshim.service"
    (directory / "proxyshim.service.d").mkdir()
    for name in drop_ins:
        text = (DROP_INS / f"{name}.conf.example").read_text()
        suggested = re.sub(r"(?m)^#(?=[A-Z][A-Za-z]+=)", "", text)
        (directory / "proxyshim.service.d" / f"{name}.conf").write_text(suggested)
    return service


def setting(name: str) -> str:
    """Return the value of a key that occurs once in the service unit."""
    text = (UNITS / "proxyshim.service").read_text()
    (value,) = re.findall(rf"(?m)^{name}=(.*)$", text)
    return str(value)


def run(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30
    )


EXAMPLES: Final = sorted(
    path.name.removesuffix(".conf.example") for path in DROP_INS.iterdir()
)


@pytest.mark.parametrize("drop_ins", [[], *([name] for name in EXAMPLES)], ids=str)
def test_systemd_analyze_accepts_the_units_without_complaint(
    drop_ins: list[str], tmp_path: Path
) -> None:
    service = installed(tmp_path, drop_ins)
    text = service.read_text()
    # systemd-analyze also checks that the program exists.
    service.write_text(text.replace("ExecStart=proxyshim", "ExecStart=/bin/true"))
    analyze = find_program("systemd-analyze")
    units = [str(service), str(tmp_path / "proxyshim.socket")]
    done = run(analyze, "verify", "--man=no", *units)
    about_ours = [line for line in done.stdout.splitlines() if "proxyshim" in line]
    assert (done.returncode, about_ours) == (0, [])


@pytest.mark.parametrize(
    ("drop_ins", "highest"),
    [
        ([], LOCAL_RESOLVER),
        (["addresses"], RESOLVER_ELSEWHERE),
        (["unix-backend"], NO_NETWORK),
        (["bind-port-25"], OWN_PORT),
        (["source-address"], OWN_PORT),
        (["postfix-pass"], RESOLVER_ELSEWHERE),
    ],
    ids=str,
)
def test_the_exposure_of_the_unit_does_not_grow(
    drop_ins: list[str], highest: float, tmp_path: Path
) -> None:
    service = installed(tmp_path, drop_ins)
    assert_exposure(service, highest)


def assert_exposure(service: Path, highest: float) -> None:
    analyze = [find_program("systemd-analyze"), "security", "--offline=true"]
    done = run(*analyze, f"--threshold={round(highest * 10)}", str(service))
    assert done.returncode == 0, done.stdout


def test_the_exposure_with_a_directory_of_postfixs(tmp_path: Path) -> None:
    """The other way to hand sockets to Postfix, whose drop-in is in the how-to only."""
    service = installed(tmp_path)
    drop_in = service.parent / "proxyshim.service.d" / "postfix-pass.conf"
    drop_in.write_text(marked("drop-in: postfix-pass, own directory"))
    assert_exposure(service, RESOLVER_ELSEWHERE)


def test_the_service_unit_needs_no_capability() -> None:
    assert setting("CapabilityBoundingSet") == ""


def test_systemd_waits_as_long_as_a_drain_may_take() -> None:
    defaults = ListenerSettings(
        name="mx", bind=("127.0.0.1:0",), backend=("127.0.0.1:1",)
    )
    longest_s = (
        defaults.drain_timeout_s
        + defaults.drain_opaque_timeout_s
        + FINAL_REPLY_S
        + DELIVERY_S
    )
    minutes = re.fullmatch("([0-9]+)min", setting("TimeoutStopSec"))
    assert minutes is not None
    assert int(minutes[1]) * 60 > longest_s


def test_an_address_that_is_missing_for_days_does_not_end_the_restarts() -> None:
    assert setting("StartLimitIntervalSec") == "0"
    assert setting("Restart") == "always"


def test_a_broken_configuration_does_not_restart_the_service() -> None:
    assert setting("RestartPreventExitStatus") == "78"


def test_every_example_drop_in_names_its_destination() -> None:
    for name in EXAMPLES:
        text = (DROP_INS / f"{name}.conf.example").read_text()
        assert f"/etc/systemd/system/proxyshim.service.d/{name}.conf" in text
