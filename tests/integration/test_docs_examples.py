"""Run the examples in the documents unchanged.

The tutorial uses the addresses of the lab: HAProxy has 203.0.113.10, the mail host
192.0.2.25, and a client 198.51.100.11.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs import ROOT, Block, all_blocks, marked
from tests.integration.lab.clients import Conversation
from tests.integration.lab.haproxy import HAProxy, Listen
from tests.integration.lab.needs import SEARCH_PATH, find_program, need_root
from tests.integration.lab.netns import Host, hosts
from tests.integration.lab.places import open_directory
from tests.integration.lab.postfix import Postfix, Smtpd, queue_id_of
from tests.integration.lab.programs import DEADLINE_S, Program
from tests.integration.lab.shim import Listener, Shim

CLIENT, PROXY, MAIL = "198.51.100.11", "203.0.113.10", "192.0.2.25"
NOBODY = 65534
SHIM_USER = 64025  # needs no entry in /etc/passwd

RECOMMENDED = marked("master.cf: the recommended service")
MOVE_AWAY = marked("sh: move Postfix off port 25")
MOVE_BACK = marked("sh: and back again")


# The lab's configuration files, with the text of the documents.


@dataclass(frozen=True, slots=True)
class DocumentedSmtpd(Smtpd):
    """A service as a document has it."""

    text: str = ""

    def line(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class DocumentedListener(Listener):
    """The [[listener]] tables of a document."""

    text: str = ""

    def toml(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class DocumentedListen(Listen):
    """A listen section of a document."""

    def text(self) -> str:
        return self.bind


def moved(service: str, old: str, new: str) -> str:
    """Return a service of master.cf under another address."""
    assert service.startswith(old)
    return new + service.removeprefix(old)


def postfix_with(host: Host, directory: Path, *lines: str) -> Postfix:
    """Start a Postfix with these services."""
    services = {
        str(number): DocumentedSmtpd("", text=line) for number, line in enumerate(lines)
    }
    return Postfix(host, directory, services)


def run_script(host: Host, script: str, directory: Path) -> None:
    """Run commands as root on *host*, on the lab's Postfix, and without systemd."""
    environment = f"export MAIL_CONFIG={directory}/postfix/etc"
    host.run(["bash", "-ec", f"{environment}\nsystemctl() {{ :; }}\n{script}"])


def greets(host: Host, to: tuple[str, int]) -> bool:
    """Return True if an SMTP server greets at that address."""
    with Conversation.open(host, to, to[0]) as talk:
        return talk.reply().code == 220


def wait_until(host: Host, to: tuple[str, int], *, open: bool) -> None:  # noqa: A002
    """Wait until that port is open, or closed.  Postfix takes its time to reload."""
    deadline = time.monotonic() + DEADLINE_S
    while is_open(host, to) is not open:
        assert time.monotonic() < deadline, f"{to}: still open={not open}"


def is_open(host: Host, to: tuple[str, int]) -> bool:
    """Return True if a program listens at that address."""
    try:
        host.connect(to, to[0]).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        pass  # the socket was just being closed; the next try will show that
    return True


# The tutorial

PLAIN_PORT_25 = "smtp inet n - y - - smtpd\n"
NO_PIPELINING = "-o smtpd_data_restrictions=reject_unauth_pipelining"
# Postfix's services: port 25, the recommended one, and three for comparison.
REWRITING, PIPELINING, PIPELINING_DIRECT = "127.0.0.1:10726", "127.0.0.1:10727", 2527
SERVICES = (
    PLAIN_PORT_25,
    RECOMMENDED,
    moved(RECOMMENDED.splitlines()[0], "127.0.0.1:10725", REWRITING) + "\n",
    moved(RECOMMENDED.rstrip(), "127.0.0.1:10725", PIPELINING) + f" {NO_PIPELINING}\n",
    f"{MAIL}:{PIPELINING_DIRECT} inet n - y - - smtpd {NO_PIPELINING}\n",
)


@dataclass(frozen=True, slots=True)
class Tutorial:
    """The three hosts, with everything that the tutorial sets up."""

    client: Host
    proxy: Host
    mail: Host
    postfix: Postfix
    shim: Shim
    directory: Path


@pytest.fixture(scope="module")
def tutorial() -> Iterator[Tutorial]:
    """Follow steps 2 to 5 of the README."""
    need_root()
    find_program("haproxy")
    with (
        open_directory("docs") as directory,
        hosts(client=[CLIENT], proxy=[PROXY], mail=[MAIL]) as made,
    ):
        postfix = postfix_with(made["mail"], directory / "postfix", *SERVICES)
        try:
            assert greets(made["mail"], (MAIL, 25))
            run_script(made["mail"], MOVE_AWAY, directory)
            wait_until(made["mail"], (MAIL, 25), open=False)
            listeners = [
                DocumentedListener("mx", (), "", text=marked("toml: the tutorial")),
                Listener("rewriting", [f"{MAIL}:26"], REWRITING),
                Listener("pipelining", [f"{MAIL}:27"], PIPELINING),
            ]
            listed = marked("haproxy_hosts").splitlines()
            place = directory / "shim"
            shim = Shim(made["mail"], place, listeners, haproxy_hosts=listed)
            try:
                section = marked("haproxy: the tutorial")
                with balancer(made["proxy"], directory / "haproxy", section):
                    yield Tutorial(
                        made["client"],
                        made["proxy"],
                        made["mail"],
                        postfix,
                        shim,
                        directory,
                    )
            finally:
                shim.stop_cleanly()
        finally:
            postfix.stop()


@contextmanager
def balancer(host: Host, directory: Path, section: str) -> Iterator[HAProxy]:
    """Run HAProxy with a listen section of a document."""
    running = HAProxy(host, directory, [DocumentedListen("mx", section, "")])
    try:
        yield running
    finally:
        running.stop()


def test_both_messages_arrive_from_the_real_client(tutorial: Tutorial) -> None:
    find_program("swaks")
    mark = tutorial.shim.lines.mark()
    script = marked("sh: a message through HAProxy, and one directly")
    transcript = tutorial.client.run(["bash", "-ec", script])
    queue_ids = re.findall(r"queued as (\w+)", transcript)
    assert len(queue_ids) == 2
    for queue_id in queue_ids:
        client = tutorial.postfix.client_of(queue_id)
        assert client.startswith(f"unknown[{CLIENT}]:")
        assert f"(unknown [{CLIENT}])" in tutorial.postfix.stored(queue_id)
    for header in ("v2 PROXY", None):
        closed = tutorial.shim.wait_event(
            "session_closed", since=mark, header=header, messages=1
        )
        assert closed["client"].startswith(f"{CLIENT}:")
        assert closed["mode"] == "relaxed"


def test_the_log_line_looks_like_the_one_in_the_readme(tutorial: Tutorial) -> None:
    mark = tutorial.shim.lines.mark()
    with Conversation.open(tutorial.client, (PROXY, 25), CLIENT) as talk:
        talk.reply()
        talk.ask("EHLO client.example")
        talk.ask("QUIT")
    closed = tutorial.shim.wait_event("session_closed", since=mark, header="v2 PROXY")
    shown = json.loads(marked("log: session_closed"))
    # The README's site has a DNS that answers; the laboratory may have none.
    closed = {key: value for key, value in closed.items() if key != "names"}
    assert list(shown) == list(closed)
    differing = {"session", "client", "peer", "timestamp", "messages", "backend_port"}
    differing |= {key for key in shown if key.startswith(("octets", "duration"))}
    assert {k: v for k, v in shown.items() if k not in differing} == {
        k: v for k, v in closed.items() if k not in differing
    }


def test_haproxys_check_reaches_postfix_and_logs_no_warning(tutorial: Tutorial) -> None:
    tutorial.postfix.lines.wait_for(rf"disconnect from unknown\[{PROXY}\].* ehlo=")
    warnings = tutorial.shim.events(level="warning")
    assert [event for event in warnings if event["peer"].startswith(PROXY)] == []


def test_local_programs_relay_as_before_but_without_extensions(
    tutorial: Tutorial,
) -> None:
    with Conversation.open(tutorial.mail, ("127.0.0.1", 25), "127.0.0.1") as talk:
        assert talk.reply().code == 220
        offered = str(talk.ask("EHLO localhost"))
        assert "CHUNKING" not in offered
        assert "XCLIENT" not in offered
        assert talk.ask("MAIL FROM:<root@example.test>").code == 250
        assert talk.ask("RCPT TO:<someone@elsewhere.example>").code == 250


INCOMPLETE = "From: somebody\nSubject: headers\n\nNeither Date nor Message-Id.\n"


def send_incomplete(tutorial: Tutorial, port: int) -> str:
    """Send a message with few headers; return what follows its Received: header."""
    with Conversation.open(tutorial.client, (MAIL, port), CLIENT) as talk:
        talk.reply()
        for command in (
            "EHLO c.example",
            "MAIL FROM:<>",
            "RCPT TO:<user@example.test>",
        ):
            assert talk.ask(command).code == 250
        assert talk.ask("DATA").code == 354
        talk.send(INCOMPLETE.replace("\n", "\r\n").encode() + b".\r\n")
        queue_id = queue_id_of(str(talk.reply()))
    stored = tutorial.postfix.stored(queue_id)
    return re.split(r"(?m)^Received: .*\n(?:\s.*\n)+", stored)[1]


def test_postfix_leaves_the_headers_of_remote_mail_alone(tutorial: Tutorial) -> None:
    assert send_incomplete(tutorial, 25) == INCOMPLETE


def test_without_the_third_setting_postfix_completes_remote_headers(
    tutorial: Tutorial,
) -> None:
    changed = send_incomplete(tutorial, 26)
    assert "From: somebody@" in changed
    assert "\nDate: " in changed
    assert "\nMessage-Id: " in changed


@pytest.mark.parametrize("port", [27, PIPELINING_DIRECT], ids=["proxyshim", "direct"])
def test_postfix_detects_unauthorised_pipelining_at_data(
    tutorial: Tutorial, port: int
) -> None:
    with Conversation.open(tutorial.client, (MAIL, port), CLIENT) as talk:
        talk.reply()
        for command in (
            "EHLO c.example",
            "MAIL FROM:<>",
            "RCPT TO:<user@example.test>",
        ):
            assert talk.ask(command).code == 250
        talk.send(b"DATA\r\nSubject: too soon\r\n\r\n.\r\n")
        assert "Improper use of SMTP command pipelining" in str(talk.reply())


def test_haproxy_rejects_a_client_that_talks_too_soon(tutorial: Tutorial) -> None:
    section = marked("haproxy: clients that talk too soon")
    where = (PROXY, 2525)
    section = section.replace(f"{PROXY}:25", f"{PROXY}:{where[1]}")
    with balancer(tutorial.proxy, tutorial.directory / "haproxy-delay", section):
        with Conversation.open(tutorial.client, where, CLIENT) as early:
            early.send(b"EHLO client.example\r\n")
            assert early.rest() == b""
        with Conversation.open(tutorial.client, where, CLIENT) as patient:
            assert patient.reply().code == 220


def test_postfix_moves_off_port_25_and_back() -> None:
    need_root()
    with open_directory("docs") as directory, hosts(mail=[MAIL]) as made:
        mail = made["mail"]
        place = directory / "postfix"
        postfix = postfix_with(mail, place, PLAIN_PORT_25, RECOMMENDED)
        try:
            assert greets(mail, (MAIL, 25))
            run_script(mail, MOVE_AWAY, directory)
            wait_until(mail, (MAIL, 25), open=False)
            assert greets(mail, ("127.0.0.1", 10725))
            run_script(mail, MOVE_BACK, directory)
            wait_until(mail, (MAIL, 25), open=True)
            assert greets(mail, (MAIL, 25))
        finally:
            postfix.stop()


# Access by other local users


def connects(host: Host, user: int, port: int) -> bool:
    """Return True if that user can connect to that port of the loopback."""
    as_user = [find_program("setpriv"), f"--reuid={user}", f"--regid={user}"]
    script = f"exec 3<>/dev/tcp/127.0.0.1/{port}"
    done = subprocess.run(
        host.command([*as_user, "--clear-groups", "bash", "-c", script]),
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode == 0


def find_nft() -> str:
    """Return the path of nft, or skip the test."""
    found = shutil.which("nft", path=SEARCH_PATH)
    if found is None:
        pytest.skip("needs the program nft (Debian package nftables)")
    return found


def test_the_firewall_rule_lets_only_proxyshim_and_root_in() -> None:
    need_root()
    nft = find_nft()
    rules = marked("nft: only proxyshim may connect")
    user = "define shim_user = proxyshim\n"
    assert rules.startswith(user)
    rules = f"define shim_user = {SHIM_USER}\n" + rules.removeprefix(user)
    with hosts(mail=[MAIL]) as made:
        mail = made["mail"]
        with (
            mail.open_socket(socket.AF_INET) as guarded,
            mail.open_socket(socket.AF_INET) as another,
        ):
            guarded.bind(("127.0.0.1", 10725))
            guarded.listen(10)
            another.bind(("127.0.0.1", 10726))
            another.listen(10)
            assert connects(mail, NOBODY, 10725)
            mail.run([nft, "-f", "-"], stdin=rules)
            assert not connects(mail, NOBODY, 10725)
            assert connects(mail, SHIM_USER, 10725)
            assert connects(mail, 0, 10725)
            assert connects(mail, NOBODY, 10726)


CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


def as_service(argv: Sequence[str], *groups: int) -> list[str]:
    """Return a command that runs *argv* without root's power over files, as systemd does.

    It keeps root's user id, because the interpreter may be in a directory of root's.
    """
    powers = "--bounding-set=-all,+net_bind_service"
    member = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return [find_program("setpriv"), powers, "--inh-caps=-all", member, "--", *argv]


def test_postfix_on_a_unix_socket_is_reached_by_proxyshim_alone() -> None:
    need_root()
    with (
        open_directory("docs") as directory,
        hosts(client=[CLIENT], mail=[MAIL]) as made,
    ):
        service = marked("master.cf: a unix socket")
        postfix = postfix_with(made["mail"], directory / "postfix", service)
        try:
            public = directory / "postfix" / "queue" / "public"
            postdrop = public.stat().st_gid
            connect = [sys.executable, "-c", CONNECT, str(public / "proxyshim")]
            made["mail"].run(as_service(connect, postdrop))
            with pytest.raises(AssertionError, match="PermissionError"):
                made["mail"].run(as_service(connect))

            text = marked("toml: a unix socket")
            config = directory / "proxyshim.toml"
            config.write_text(text.replace("/var/spool/postfix/public", str(public)))
            (directory / "haproxy_hosts").write_text("")
            run = [sys.executable, "-m", "proxyshim", "run", "-c", str(config)]
            argv = as_service(run, postdrop)
            shim = Program("proxyshim", made["mail"], argv, directory=ROOT)
            try:
                shim.lines.wait_for('"service_ready"')
                queue_id = send_message(made["client"], 25)
                assert postfix.client_of(queue_id).startswith(f"unknown[{CLIENT}]:")
            finally:
                assert shim.stop() == 0
        finally:
            postfix.stop()


def send_message(client: Host, port: int) -> str:
    """Send a message to the mail host, and try to relay; return the queue id."""
    with Conversation.open(client, (MAIL, port), CLIENT) as talk:
        talk.reply()
        for command in (
            "EHLO c.example",
            "MAIL FROM:<>",
            "RCPT TO:<user@example.test>",
        ):
            assert talk.ask(command).code == 250
        assert talk.ask("RCPT TO:<x@elsewhere.example>").code == 554
        assert talk.ask("DATA").code == 354
        return queue_id_of(str(talk.ask("Subject: unix\r\n\r\n.")))


# Output that the README shows


def test_check_prints_what_the_readme_shows(tutorial: Tutorial) -> None:
    config = tutorial.directory / "proxyshim.toml"
    config.write_text(marked("toml: the tutorial"))
    (tutorial.directory / "haproxy_hosts").write_text(marked("haproxy_hosts"))
    check = [sys.executable, "-m", "proxyshim", "check", "-c", str(config)]
    printed = tutorial.mail.run(check)
    shown = marked("printed by: proxyshim check")
    shown = shown.replace("/etc/proxyshim/proxyshim.toml", str(config))
    assert missing_lines(shown, printed) == []


def test_the_demo_prints_what_the_readme_shows() -> None:
    pytest.importorskip("aiosmtpd")
    done = subprocess.run(
        [sys.executable, "-m", "proxyshim", "demo"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert missing_lines(marked("printed by: proxyshim demo"), done.stdout) == []


def missing_lines(shown: str, printed: str) -> list[str]:
    """Return the lines that a document shows but the program does not print."""
    lines = printed.splitlines()
    return [line for line in shown.splitlines() if line not in lines]


# Configurations of other programs, checked by those programs

GLOBAL = "global\n    maxconn 100\ndefaults\n    timeout connect 5s\n"
TIMEOUTS = "    timeout client 1m\n    timeout server 1m\n"
EXAMPLE = ROOT / "etc" / "haproxy.cfg.example"


@pytest.mark.parametrize("block", all_blocks("haproxy"), ids=str)
def test_haproxy_accepts_every_documented_example(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(GLOBAL + TIMEOUTS + block.text)
    check_with_haproxy(path)


def test_haproxy_accepts_the_complete_example() -> None:
    check_with_haproxy(EXAMPLE)


def check_with_haproxy(path: Path) -> None:
    """Fail on any message of HAProxy, even a warning."""
    done = subprocess.run(
        [find_program("haproxy"), "-c", "-dW", "-q", "-f", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("block", all_blocks("dovecot"), ids=str)
def test_dovecot_accepts_every_documented_example(block: Block, tmp_path: Path) -> None:
    find_program("dovecot")
    path = tmp_path / "dovecot.conf"
    path.write_text("protocols = submission\n" + block.text)
    done = subprocess.run(
        ["doveconf", "-n", "-c", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "address = 127.0.0.1\n" in done.stdout
