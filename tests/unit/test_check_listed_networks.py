"""What check says about listed networks, and about believed networks that hold a proxy."""

from pathlib import Path

import pytest

from proxyshim.findings import Finding, Severity
from tests.unit.checking import contains, load
from tests.unit.test_check_findings import LISTED, judged_setup


def judged(tmp_path: Path, *listed: str, believed: str = "") -> list[Finding]:
    return judged_setup(
        load(tmp_path, f"{LISTED}believed_claims = [{believed}]"), *listed
    )


NOT_BELIEVED = "are not believed, because a listed address is a proxy's"


@pytest.mark.parametrize("listed", ["10.0.0.0/24", "fd00:1::/64"])
def test_check_reports_that_clients_in_a_listed_network_are_not_believed(
    tmp_path: Path, listed: str
) -> None:
    findings = judged(tmp_path, "192.0.2.80", listed)
    assert contains(findings, Severity.NOTE, f"{listed} (hosts: line 2) {NOT_BELIEVED}")


@pytest.mark.parametrize("listed", ["192.0.2.80", "192.0.2.80/32", "2001:db8::80"])
def test_check_has_nothing_to_say_about_proxies_that_are_listed_singly(
    tmp_path: Path, listed: str
) -> None:
    assert all(each.severity is Severity.OK for each in judged(tmp_path, listed))


@pytest.mark.parametrize("believed", ["10.0.0.0/24", "10.0.0.0/8"])
def test_check_accepts_a_listed_network_in_believed_claims(
    tmp_path: Path, believed: str
) -> None:
    findings = judged(tmp_path, "10.0.0.0/24", believed=f'"{believed}"')
    assert not any(NOT_BELIEVED in each.text for each in findings)


def test_check_reports_a_proxy_that_a_believed_network_does_not_cover(
    tmp_path: Path,
) -> None:
    findings = judged(tmp_path, "10.0.0.9", "10.1.0.9", believed='"10.0.0.0/24"')
    text = 'contains "10.0.0.0/24", and a network there does not make proxyshim believe'
    assert contains(findings, Severity.WARNING, f"{text} 10.0.0.9 (hosts: line 1);")
