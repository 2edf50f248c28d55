"""``proxyshim check`` as an operator runs it, on scripted backends and on real ones.

tests/unit/test_check_findings.py and test_xclient_verdicts.py test what each answer means.  These
tests check that it asks the right questions, within its time limits, and ends with the right exit
status.
"""

import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

import proxyshim
from proxyshim.addresses import Address
from proxyshim.backend.dial import Dial
from proxyshim.cli import main
from proxyshim.config import Listener
from proxyshim.conveyance import asking
from proxyshim.conveyance.contract import (
    Examined,
    GetNames,
    Need,
    Relayed,
    Warn,
)
from proxyshim.findings import Subject
from proxyshim.identity import Identity
from proxyshim.net.stream import Stream
from tests.integration.lab.dovecot import Dovecot
from tests.integration.lab.netns import Host
from tests.integration.lab.postfix import Postfix, Smtpd
from tests.integration.lab.site import MAIL, Site

LIMIT_S = 30.0
EVERYBODY = re.compile(r".*")
CLIENTS = ["192.0.2.1", "2001:db8::1", "10.0.0.1", "172.16.0.1", "192.168.0.1"]
CLIENTS += ["fd00::1"]
# As these the backend is asked about XCLIENT, and then as CLIENTS about relaying.
ASKED_ABOUT_XCLIENT = [*CLIENTS, "127.0.0.5"]
SESSIONS = 1 + len(ASKED_ABOUT_XCLIENT) + len(CLIENTS)


# --- a scripted backend ---------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """How the backend behaves; by default like a well-configured Postfix.

    *replies* takes precedence.  Its keys are whole lines, verbs, or "" for the greeting;
    a value of "" means silence, and None closes the connection.
    """

    attributes: str = "NAME ADDR PORT"
    right: re.Pattern[str] = re.compile(r"127\.0\.0\.1")  # who may send XCLIENT
    hidden: bool = False  # accepts XCLIENT from all, but offers it only to *right*
    keywords: tuple[str, ...] = ("PIPELINING",)
    relays: re.Pattern[str] = re.compile(r"127\..*")
    replies: Mapping[str, str | None] = field(default_factory=dict)


class ScriptedBackend(socketserver.ThreadingTCPServer):
    """Follows a script on a loopback port, and records the commands of each session."""

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        """Bind to a free port."""
        super().__init__(("127.0.0.1", 0), _Talk)
        self.script = script
        self.sessions: list[list[str]] = []

    @property
    def name(self) -> str:
        """Return the address as the configuration has it."""
        return f"127.0.0.1:{self.server_address[1]}"


class _Talk(socketserver.StreamRequestHandler):
    timeout = LIMIT_S

    def handle(self) -> None:
        server = cast(ScriptedBackend, self.server)
        self.script, self.client = server.script, "127.0.0.1"
        received: list[str] = []
        server.sessions.append(received)
        answer = self.script.replies.get("", "220 mta.example.net ESMTP")
        while answer is not None:
            self.wfile.write(answer.encode() + b"\r\n" if answer else b"")
            line = self.rfile.readline().decode("ascii").rstrip("\r\n")
            if not line:
                return
            received.append(line)
            answer = self.answer(line)

    def answer(self, line: str) -> str | None:
        verb, _, argument = line.partition(" ")
        for key in (line, verb):
            if key in self.script.replies:
                return self.script.replies[key]
        if verb == "QUIT":
            self.wfile.write(b"221 Bye\r\n")
            return None
        if verb == "EHLO":
            return self.offer()
        if verb == "XCLIENT":
            return self.take_xclient(argument)
        if verb == "RCPT" and not self.script.relays.fullmatch(self.client):
            return "554 5.7.1 Relay access denied"
        return {"MAIL": "250 Ok", "RCPT": "250 Ok", "RSET": "250 Ok"}.get(verb, "500 ?")

    @property
    def has_right(self) -> bool:
        return self.script.right.fullmatch(self.client) is not None

    def offer(self) -> str:
        words = list(self.script.keywords)
        if self.script.attributes and self.has_right:
            words.append(f"XCLIENT {self.script.attributes}")
        lines = ["mta.example.net", *words]
        return "\r\n".join(
            f"250{'-' if word is not lines[-1] else ' '}{word}" for word in lines
        )

    def take_xclient(self, argument: str) -> str:
        if not (self.has_right or self.script.hidden):
            return "550 5.7.0 Error: insufficient authorization"
        found = re.search(r"ADDR=(?:IPV6:)?(\S+)", argument)
        self.client = found[1] if found else ""
        return "220 mta.example.net ESMTP"


@contextmanager
def scripted(script: Script) -> Iterator[ScriptedBackend]:
    with ScriptedBackend(script) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# --- check ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """The output of a check, and its exit status."""

    status: int
    output: str

    def says(self, severity: str, text: str) -> bool:
        return any(
            line.startswith(f"{severity} ") and text in line
            for line in self.output.splitlines()
        )


def config_for(tmp_path: Path, *backends: str, more: str = "") -> Path:
    """Write a configuration with a listener for each backend."""
    (tmp_path / "haproxy_hosts").write_text("192.0.2.80\n")
    listeners = [
        f'[[listener]]\nname = "mx{number}"\nbind = "127.0.0.1:0"\n'
        f'haproxy_hosts = "haproxy_hosts"\nbackend = "{backend}"\n{more}\n'
        for number, backend in enumerate(backends)
    ]
    path = tmp_path / "proxyshim.toml"
    path.write_text("\n".join(listeners))
    return path


def check(path: Path) -> Checked:
    """Run the check in this process, which saves more than a second."""
    done = CliRunner().invoke(main, ["check", "-c", str(path)])
    print(done.output)
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return Checked(done.exit_code, done.output)


def check_on(host: Host | None, path: Path) -> Checked:
    """Run the check as an operator does, on a host of the lab or on this machine."""
    argv = [sys.executable, "-m", "proxyshim", "check", "-c", str(path)]
    done = subprocess.run(
        host.command(argv) if host else argv,
        cwd=Path(proxyshim.__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    print(done.stdout)
    return Checked(done.returncode, done.stdout)


def check_script(script: Script, tmp_path: Path, more: str = "") -> Checked:
    with scripted(script) as backend:
        return check(config_for(tmp_path, backend.name, more=more))


def test_a_good_backend_is_asked_everything_and_left_politely(tmp_path: Path) -> None:
    with scripted(Script()) as backend:
        checked = check(config_for(tmp_path, backend.name))
    assert checked.status == 0
    assert checked.output.endswith("fit for use: nothing to fix\n")
    assert checked.says("ok", "drops the right")
    assert checked.says(
        "ok", "does not relay for 10.0.0.1, 172.16.0.1, 192.168.0.1, fd"
    )
    own, *others = backend.sessions
    assert [line.partition(" ")[0] for line in own] == ["EHLO", "QUIT"]
    assert [re.findall(r"ADDR=(?:IPV6:)?(\S+)", lines[1]) for lines in others] == [
        [client] for client in ASKED_ABOUT_XCLIENT + CLIENTS
    ]
    assert all(lines[-1] == "QUIT" for lines in backend.sessions)
    assert not any(line.startswith("DATA") for lines in others for line in lines)


@pytest.mark.parametrize(
    ("script", "status"), [(Script(), 0), (Script(relays=EVERYBODY), 1)]
)
def test_check_passes_its_exit_status_to_the_shell(
    script: Script, status: int, tmp_path: Path
) -> None:
    with scripted(script) as backend:
        checked = check_on(None, config_for(tmp_path, backend.name))
    assert checked.output.count("\n") > 5
    assert checked.status == status


KEEPS = Script(right=EVERYBODY)
NO_IPV6 = "XCLIENT ADDR=IPV6:2001:db8::1 PORT=49152 NAME=[UNAVAILABLE]"
TIMELY = "connect_timeout_s = 0.3\nreply_timeout_s = 0.3"


@pytest.mark.parametrize(
    ("script", "status", "severity", "says"),
    [
        (KEEPS, 0, "warning", "keeps the right to XCLIENT"),
        (
            replace(KEEPS, keywords=("STARTTLS", "AUTH PLAIN")),
            0,
            "warning",
            "and AUTH is withheld with STARTTLS;",
        ),
        (Script(hidden=True), 1, "UNSAFE", "accepts a second XCLIENT"),
        (Script(keywords=("XFORWARD NAME",)), 1, "UNSAFE", "still offers XFORWARD"),
        (Script(replies={"XFORWARD": "250 Ok"}), 1, "UNSAFE", "accepts XFORWARD after"),
        (Script(attributes=""), 1, "error", "-o smtpd_authorized_xclient_hosts=127.0"),
        (Script(attributes="NAME PORT"), 1, "error", "offers XCLIENT without ADDR"),
        (Script(attributes="ADDR PORT"), 0, "warning", "does not take NAME"),
        (Script(attributes="NAME ADDR"), 0, "note", "does not take PORT"),
        (Script(right=re.compile(r"127\..*")), 0, "warning", "right to XCLIENT to 127"),
        (Script(relays=EVERYBODY), 1, "UNSAFE", "relays for a stranger (192.0.2.1)"),
        (
            Script(relays=re.compile(r"2001:.*")),
            1,
            "UNSAFE",
            "relays for a stranger (2001:db8::1)",
        ),
        (
            Script(relays=re.compile(r"10\..*|fd.*")),
            0,
            "warning",
            'untrusted_claims = ["10.0.0.0/8", "fc00::/7"]',
        ),
        (Script(replies={"": "421 busy"}), 1, "error", 'greets proxyshim with "421'),
        (Script(replies={"": "hello"}), 1, "error", "is this an SMTP server?"),
        (Script(replies={"": None}), 1, "error", "closed before the reply to connect"),
        (
            Script(replies={"EHLO": "550 no"}),
            1,
            "error",
            "set ehlo_name to another one",
        ),
        (Script(replies={"EHLO": None}), 1, "error", "closed before the reply to EHLO"),
        (
            Script(replies={"EHLO": "500 no", "LHLO": "250 ok"}),
            1,
            "error",
            "LMTP is not supported",
        ),
        (Script(replies={"": "220 mta LMTP"}), 1, "error", "LMTP is not supported"),
        (Script(replies={"XCLIENT": "501 no"}), 1, "error", "answered: 501 no; every"),
        (Script(replies={"XCLIENT": "554 bad"}), 0, "warning", "at once (554 bad)"),
        (
            Script(replies={"EHLO [10.0.0.1]": None}),
            0,
            "warning",
            "whether it relays for 10.0.0.1 is unknown: closed before the reply to EHLO",
        ),
        (
            Script(replies={"EHLO [192.0.2.1]": "550 no"}),
            0,
            "warning",
            "refuses the client 192.0.2.1 at once (EHLO was answered: 550 no)",
        ),
        (Script(replies={"": ""}), 1, "error", "no reply to connect within 0.3 s"),
        (
            Script(replies={"XCLIENT": ""}),
            1,
            "error",
            "for the client 192.0.2.1: no reply to XCLIENT within 0.3 s",
        ),
        (
            Script(replies={"RCPT": ""}),
            1,
            "error",
            "for the client 192.0.2.1: no reply to RCPT within 0.3 s",
        ),
    ],
)
def test_check_judges_a_scripted_backend(
    script: Script, status: int, severity: str, says: str, tmp_path: Path
) -> None:
    hangs = "" in script.replies.values()
    checked = check_script(script, tmp_path, TIMELY if hangs else "")
    assert checked.says(severity, says)
    assert checked.status == status


def test_a_relay_for_one_domain_is_a_final_destination(tmp_path: Path) -> None:
    refused = {"RCPT TO:<proxyshim-check@example.net>": "554 5.7.1 Relay access denied"}
    checked = check_script(Script(relays=EVERYBODY, replies=refused), tmp_path)
    assert checked.says("ok", "does not relay for a stranger (192.0.2.1)")
    assert checked.status == 0


def test_check_stops_asking_a_silent_backend(tmp_path: Path) -> None:
    with scripted(Script(replies={"XCLIENT": ""})) as backend:
        check(config_for(tmp_path, backend.name, more=TIMELY))
    assert len(backend.sessions) == 2


def test_the_questions_of_check_have_a_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LIMIT_S", 0.3)
    with scripted(Script(replies={"EHLO [10.0.0.1]": ""})) as backend:
        checked = check(config_for(tmp_path, backend.name))
    assert checked.says(
        "warning",
        "whether it relays for 10.0.0.1 is unknown: the questions took longer than 0.3 s",
    )
    asked = CLIENTS.index("10.0.0.1") + 1
    assert len(backend.sessions) == 1 + 2 * asked


def test_check_asks_no_more_about_ipv6_after_a_refusal(
    tmp_path: Path,
) -> None:
    with scripted(Script(replies={NO_IPV6: "501 5.5.4 Bad ADDR syntax"})) as backend:
        checked = check(config_for(tmp_path, backend.name))
    assert checked.says("warning", "does not take IPv6 addresses in XCLIENT")
    assert not any("fd00::1" in line for lines in backend.sessions for line in lines)
    assert checked.status == 0


def test_check_does_not_judge_an_xclient_list_that_it_could_not_test(
    tmp_path: Path,
) -> None:
    checked = check_script(Script(replies={"EHLO [127.0.0.5]": None}), tmp_path)
    assert "gives the right" not in checked.output


def test_check_does_not_ask_about_untrusted_claims(tmp_path: Path) -> None:
    with scripted(Script(relays=re.compile(r"10\..*"))) as backend:
        settings = 'untrusted_claims = ["10.0.0.0/8"]'
        checked = check(config_for(tmp_path, backend.name, more=settings))
    assert not any("10.0.0.1" in line for lines in backend.sessions for line in lines)
    assert checked.says("ok", "does not relay for 172.16.0.1, 192.168.0.1, fd00::1")


def test_check_asks_about_believed_claims(tmp_path: Path) -> None:
    settings = 'believed_claims = ["203.0.113.0/24"]'
    script = Script(relays=re.compile(r"203\..*"))
    checked = check_script(script, tmp_path, settings)
    assert checked.says("warning", "relays for 203.0.113.1, and believed_claims lets")


def test_check_asks_about_no_claims_without_a_list_of_proxies(tmp_path: Path) -> None:
    with scripted(Script(relays=re.compile(r"10\..*"))) as backend:
        path = config_for(tmp_path, backend.name)
        path.write_text(path.read_text().replace("haproxy_hosts = ", "# "))
        checked = check(path)
    assert checked.says("note", "PROXY support is off")
    assert not any("10.0.0.1" in line for lines in backend.sessions for line in lines)
    assert checked.status == 0


def test_check_asks_a_shared_backend_once(tmp_path: Path) -> None:
    with scripted(Script()) as backend, scripted(KEEPS) as other:
        path = config_for(tmp_path, backend.name, other.name, backend.name)
        checked = check(path)
    assert checked.output.count(f"backend {backend.name}: drops the right") == 1
    assert checked.says("warning", f"backend {other.name}: keeps the right")
    assert len(backend.sessions) == SESSIONS


def test_check_asks_each_backend_of_a_list(tmp_path: Path) -> None:
    with scripted(Script()) as backend, scripted(KEEPS) as other:
        path = config_for(tmp_path, "FIRST")
        names = f'["{backend.name}", "{other.name}"]'
        path.write_text(path.read_text().replace('"FIRST"', names))
        checked = check(path)
    assert checked.says("ok", f"backend {backend.name}: drops the right")
    assert checked.says("warning", f"backend {other.name}: keeps the right")
    assert checked.says("ok", f"for backend {backend.name}, {other.name}; 1 proxy")


def test_check_rejects_a_backend_that_does_not_listen(tmp_path: Path) -> None:
    with socket.socket() as bound:  # but not listening
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        checked = check(config_for(tmp_path, address))
    assert checked.says("error", "every client would get a 421; is it running, and is")
    assert checked.status == 1


def test_check_does_not_ask_a_backend_that_is_our_own_listener(tmp_path: Path) -> None:
    with scripted(Script()) as backend:
        path = config_for(tmp_path, backend.name)
        path.write_text(path.read_text().replace("127.0.0.1:0", backend.name))
        checked = check(path)
    assert checked.says("error", "is one of proxyshim's own listeners")
    assert checked.status == 1
    assert backend.sessions == []


def test_an_unsafe_believed_claim_fails_the_check(tmp_path: Path) -> None:
    checked = check_script(Script(), tmp_path, 'believed_claims = ["127.0.0.1"]')
    assert checked.says("UNSAFE", 'believed_claims contains "127.0.0.1"')
    assert checked.status == 1


def test_check_shows_the_line_of_a_wide_network(tmp_path: Path) -> None:
    with scripted(Script()) as backend:
        path = config_for(tmp_path, backend.name)
        (tmp_path / "haproxy_hosts").write_text("192.0.2.80\n\n10.0.0.0/8  # all\n")
        checked = check(path)
    assert checked.says("warning", "10.0.0.0/8 (")
    assert checked.says("warning", "haproxy_hosts: line 3)")
    assert checked.status == 0


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("bakend", '"127.0.0.1:25"', "did you mean 'backend'?"),
        ("haproxy_hosts", '"nowhere"', "nowhere: cannot be read"),
        ("believed_claims", '["mail.example"]', "expected an IP address or network"),
    ],
)
def test_check_and_run_print_the_same_configuration_error(
    key: str, value: str, says: str, tmp_path: Path
) -> None:
    path = config_for(tmp_path, "127.0.0.1:10725")
    text = path.read_text().replace('haproxy_hosts = "haproxy_hosts"\n', "")
    path.write_text(f"{text}{key} = {value}\n")
    # In processes of their own, because such an error is written to the descriptor of stderr.
    checked, run = (
        subprocess.run(
            [sys.executable, "-m", "proxyshim", command, "-c", str(path)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        for command in ("check", "run")
    )
    assert says in checked.stderr
    assert (checked.stderr, checked.stdout) == (run.stderr, run.stdout)
    assert checked.returncode == run.returncode == 78


# --- another conveyance ---------------------------------------------------------------


class NoConveyance:
    """Opens a session in which the backend sees proxyshim itself, for every client."""

    needs_names = False
    leaves_right = False
    needs: frozenset[Need] = frozenset()

    def __init__(self, *, works: bool) -> None:
        """Find that sessions can run, or that they cannot."""
        self.works = works

    def begin(self, dial: Dial) -> None:
        """Do nothing."""

    async def open(
        self,
        client: Stream | None,
        dial: Dial,
        identity: Identity,
        get_names: GetNames,
        warn: Warn,
    ) -> Relayed:
        backend = await dial.connect()
        return Relayed(backend.stream, await backend.greeting())

    async def is_up(self, dial: Dial) -> bool:
        raise NotImplementedError

    async def examine(
        self, dial: Dial, listeners: Sequence[Listener], clients: Sequence[Address]
    ) -> Examined:
        subject = Subject(f"backend {dial.name}")
        if self.works:
            return Examined([subject.ok("works")], clients)
        return Examined([subject.error("does not work")], ())


@pytest.mark.parametrize("works", [True, False])
def test_check_asks_about_relaying_with_every_conveyance_that_works(
    works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"xclient": lambda _listener: NoConveyance(works=works)}
    monkeypatch.setattr("proxyshim.conveyance.BY_NAME", other)
    checked = check_script(Script(attributes="", relays=EVERYBODY), tmp_path)
    assert checked.status == 1
    assert "XCLIENT" not in checked.output
    assert checked.says("ok", "works") is works
    assert checked.says("UNSAFE", "relays for a stranger (192.0.2.1)") is works


# --- real backends --------------------------------------------------------------------


class UnixSmtpd(Smtpd):
    """A service on a unix socket in the queue's folder public."""

    def line(self) -> str:
        """Return the service's entry in master.cf."""
        return f"{self.address} unix n - y - - smtpd\n"


RECOMMENDED = {
    "smtpd_authorized_xclient_hosts": "127.0.0.1",
    "smtpd_authorized_xforward_hosts": "",
}
SERVICES = {
    "recommended": Smtpd("127.0.0.1:12025", RECOMMENDED),
    "v6": Smtpd(
        "[::1]:12026", {**RECOMMENDED, "smtpd_authorized_xclient_hosts": "[::1]"}
    ),
    "xforward": Smtpd(
        "127.0.0.1:12027", {"smtpd_authorized_xclient_hosts": "127.0.0.1"}
    ),
    "hidden-xforward": Smtpd(
        "127.0.0.1:12033",
        {
            "smtpd_authorized_xclient_hosts": "127.0.0.1",
            "smtpd_discard_ehlo_keywords": "xforward",
        },
    ),
    "wide": Smtpd(
        "127.0.0.1:12028",
        {**RECOMMENDED, "smtpd_authorized_xclient_hosts": "127.0.0.0/8"},
    ),
    "private": Smtpd(
        "127.0.0.1:12029", {**RECOMMENDED, "mynetworks": "10.0.0.0/8 [fd00::]/8"}
    ),
    "open": Smtpd("127.0.0.1:12030", {**RECOMMENDED, "mynetworks": "0.0.0.0/0"}),
    "unadvised": Smtpd("127.0.0.1:12031"),
    "unadvised-v6": Smtpd("[::1]:12032"),
    "unadvised-unix": UnixSmtpd("frontdoor"),
}


@pytest.fixture(scope="module")
def postfix(site: Site) -> Iterator[Postfix]:
    place = site.new_place("postfix-checked")
    settings = {"smtpd_authorized_xforward_hosts": "127.0.0.0/8"}
    running = Postfix(site.mail, place, SERVICES, settings)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.usefixtures("postfix")
@pytest.mark.parametrize(
    ("service", "status", "severity", "says"),
    [
        ("recommended", 0, "ok", "drops the right to XCLIENT"),
        ("v6", 0, "ok", "to proxyshim, and not to ::5"),
        ("xforward", 1, "UNSAFE", "still offers XFORWARD after XCLIENT"),
        ("hidden-xforward", 1, "UNSAFE", "accepts XFORWARD after XCLIENT although it"),
        ("wide", 0, "warning", "gives the right to XCLIENT to 127.0.0.5 too"),
        (
            "private",
            0,
            "warning",
            'write untrusted_claims = ["10.0.0.0/8", "fc00::/7"]',
        ),
        ("open", 1, "UNSAFE", "relays for a stranger (192.0.2.1)"),
    ],
)
def test_check_judges_postfix(
    site: Site, service: str, status: int, severity: str, says: str, tmp_path: Path
) -> None:
    path = config_for(tmp_path, SERVICES[service].address)
    checked = check_on(site.mail, path)
    assert checked.says(severity, says)
    assert checked.status == status
    if severity == "ok":
        assert checked.output.endswith("fit for use: nothing to fix\n")


@pytest.mark.parametrize("service", ["unadvised", "unadvised-v6", "unadvised-unix"])
def test_following_the_advice_of_check_fixes_postfix(
    site: Site, postfix: Postfix, service: str, tmp_path: Path
) -> None:
    place = postfix.mail.parent
    address = SERVICES[service].address
    if isinstance(SERVICES[service], UnixSmtpd):
        address = f"unix:{place}/queue/public/{address}"
    path = config_for(tmp_path, address)
    before = check_on(site.mail, path)
    assert before.status == 1
    advice = re.search(r"write into master\.cf: (.*)", before.output)
    assert advice is not None
    master_cf = place / "etc" / "master.cf"
    old = SERVICES[service].line().strip()
    assert old in master_cf.read_text()
    master_cf.write_text(master_cf.read_text().replace(old, advice[1]))
    mark = postfix.lines.mark()
    postfix.signal(signal.SIGHUP)
    postfix.lines.wait_for("reload -- version", since=mark)

    after = check_on(site.mail, path)
    assert after.says("ok", "drops the right")
    assert after.status == 0


def test_check_warns_that_dovecot_keeps_the_right(site: Site, tmp_path: Path) -> None:
    running = Dovecot(
        site.mail,
        site.new_place("dovecot-checked"),
        listen=("127.0.0.1", 12587),
        relay=site.direct("plain", MAIL),
        certificate=site.certificate,
    )
    try:
        checked = check_on(site.mail, config_for(tmp_path, "127.0.0.1:12587"))
    finally:
        running.stop()
    assert checked.says("warning", "keeps the right to XCLIENT after its first use")
    assert checked.says("warning", "and AUTH is withheld with STARTTLS")
    assert checked.says("warning", "a backend that takes the PROXY protocol itself")
    assert checked.status == 0
