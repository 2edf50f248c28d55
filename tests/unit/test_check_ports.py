"""What check says about ports that two programs want, or that master.cf has twice."""

import os
import socket
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from proxyshim import config
from proxyshim.check.master_cf import InetService, read_inet_services
from proxyshim.check.ports import judge_ports
from proxyshim.check.ports_in_use import Holder, read_holders
from proxyshim.check.surroundings import Surroundings
from proxyshim.findings import Finding, Severity
from tests.unit.checking import contains, load

# Amavis sends mail back to port 10025, as its documentation recommends.
MASTER_CF = """\
smtp       inet  n       -       y       -       -       smtpd
submission inet  n       -       y       -       -       smtpd -o syslog_name=x
127.0.0.1:10025 inet n   -       y       -       -       smtpd -o content_filter=
{name} inet n - y - - smtpd -o smtpd_authorized_xclient_hosts=127.0.0.1
[::1]:10025 inet n - y - - smtpd
pickup     unix  n       -       y       60      1       pickup
"""


@pytest.fixture
def postconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory whose files ``master`` and ``disabled`` a stand-in shows."""
    program = tmp_path / "bin" / "postconf"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\ncase $1 in -M) cat {tmp_path}/master;; *) cat {tmp_path}/disabled;;"
        " esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "disabled").write_text("\n")
    return tmp_path


def judged(
    tmp_path: Path, table: str = "", holders: tuple[Holder, ...] = ()
) -> list[Finding]:
    services = read_inet_services()
    surroundings = Surroundings({}, (), (), services, holders)
    return list(judge_ports(load(tmp_path, table), surroundings))


@pytest.mark.parametrize("name", ["127.0.0.1:10025", "localhost:10025"])
@pytest.mark.parametrize("backend", ["127.0.0.1:10025", "localhost:10025"])
def test_a_backend_that_master_cf_has_twice_is_an_error(
    postconf: Path, name: str, backend: str
) -> None:
    (postconf / "master").write_text(MASTER_CF.format(name=name))
    path = load(postconf, "").path
    path.write_text(path.read_text().replace("127.0.0.1:10725", backend))
    surroundings = Surroundings({}, (), (), read_inet_services())
    findings = list(judge_ports(config.load(path), surroundings))
    says = f"master.cf has 2 services on this port (127.0.0.1:10025, {name})"
    assert contains(findings, Severity.ERROR, says)
    assert findings[0].subject == f"backend {backend}"


def test_a_port_of_its_own_causes_no_finding(postconf: Path) -> None:
    (postconf / "master").write_text(MASTER_CF.format(name="127.0.0.1:10725"))
    assert judged(postconf) == []


@pytest.mark.parametrize("bind", ["0.0.0.0:25", "192.0.2.25:25", "[::]:25"])
def test_a_port_that_postfix_still_has_causes_a_warning(
    postconf: Path, bind: str
) -> None:
    (postconf / "master").write_text(MASTER_CF.format(name="127.0.0.1:10725"))
    findings = judged(postconf, f'bind = "{bind}"')
    says = f"bind {bind}: Postfix opens it too (smtp inet in master.cf)"
    assert contains(findings, Severity.WARNING, says)
    (postconf / "disabled").write_text("smtp.inet, other.inet\n")
    assert judged(postconf, f'bind = "{bind}"') == []


def test_services_are_read_with_their_numbers(postconf: Path) -> None:
    (postconf / "master").write_text(MASTER_CF.format(name="10725"))
    assert read_inet_services() == (
        InetService("smtp", "", 25),
        InetService("submission", "", 587),
        InetService("127.0.0.1:10025", "127.0.0.1", 10025),
        InetService("10725", "", 10725),
        InetService("[::1]:10025", "::1", 10025),
    )
    (postconf / "disabled").write_text("inet\n")
    assert read_inet_services() == ()


def test_without_postfix_there_are_no_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert read_inet_services() == ()


@pytest.mark.parametrize(
    ("bind", "address", "in_use"),
    [
        ("0.0.0.0:25", "127.0.0.1", True),
        ("192.0.2.25:25", "0.0.0.0", True),
        ("192.0.2.25:25", "::", True),
        ("[::]:25", "::1", True),
        ("192.0.2.25:25", "127.0.0.1", False),
        ("[::]:25", "0.0.0.0", False),
        ("0.0.0.0:26", "0.0.0.0", False),
    ],
)
def test_a_port_in_use_by_another_program_causes_a_warning(
    postconf: Path, bind: str, address: str, in_use: bool
) -> None:
    (postconf / "master").write_text("")
    holder = Holder(ip_address(address), 25, "exim4", 417)
    findings = judged(postconf, f'bind = "{bind}"', (holder,))
    says = f"bind {bind}: in use by exim4 (process 417)"
    assert contains(findings, Severity.WARNING, says) == in_use
    assert len(findings) == in_use


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_proc_shows_who_listens(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.create_server((host, 0), family=family)) as sock:
        expected = (ip_address(host), sock.getsockname()[1], os.getpid())
        found = [(e.address, e.port, e.pid) for e in read_holders()]
        assert expected in found


def test_proxyshim_itself_is_no_other_program(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        "head\n 0: 0100007F:0019 00000000:0000 0A 0:0 0:0 0 0 0 77 1 x\n"
    )
    for pid, line in (("417", b"/opt/bin/proxyshim\0run\0"), ("1", b"/sbin/init\0")):
        fd = tmp_path / pid / "fd"
        fd.mkdir(parents=True)
        (fd / "3").symlink_to("socket:[77]")
        (tmp_path / pid / "cmdline").write_bytes(line)
        (tmp_path / pid / "comm").write_text("x\n")
        assert read_holders(tmp_path) == ()
        (tmp_path / pid / "fd" / "3").unlink()
    (tmp_path / "418" / "fd").mkdir(parents=True)
    (tmp_path / "418" / "fd" / "3").symlink_to("socket:[77]")
    (tmp_path / "418" / "comm").write_text("master\n")
    assert read_holders(tmp_path) == (
        Holder(ip_address("127.0.0.1"), 25, "master", 418),
    )
