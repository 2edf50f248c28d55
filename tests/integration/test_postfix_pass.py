"""``convey = "postfix-pass"`` with a real Postfix and a real HAProxy."""

import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import proxyshim
from tests.docs import marked
from tests.integration.lab.clients import Conversation, LabSmtp, any_certificate
from tests.integration.lab.haproxy import HAProxy, Listen
from tests.integration.lab.pass_site import Pass
from tests.integration.lab.postfix import Postfix, queue_id_of
from tests.integration.lab.programs import DEADLINE_S
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import (
    CLIENT,
    CLIENT6,
    FORGOTTEN,
    FRIEND,
    FRIEND6,
    MAIL,
    MAIL6,
    PROXY,
    PROXY6,
    TRUSTED,
    Site,
    both,
    mail_address,
)
from tests.integration.scripted import headers

BOTH = ["ipv4", "ipv6"]
# The services by name, and proxyshim's port for each.
PORTS = {"plain": 4840, "chroot": 4841, "few": 4842, "limited": 4843, "only4": 4844}
HEADER = {"v1": 4850, "v2": 4851}  # HAProxy's ports, for the service "plain"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


@dataclass(frozen=True, slots=True)
class Place:
    """A Postfix with services of the type pass, and proxyshim in front of each."""

    site: Site
    postfix: Postfix
    shim: Shim
    haproxy: HAProxy

    def connect(self, source: str, service: str = "plain") -> Conversation:
        to = (mail_address(source), PORTS[service])
        return Conversation.open(self.host_of(source), to, source)

    def host_of(self, source: str):  # type: ignore[no-untyped-def]
        ours = (PROXY, PROXY6, FORGOTTEN)
        return self.site.proxy if source in ours else self.site.client


class Own(Pass):
    """The service of the how-to that has a directory of its own."""

    def line(self) -> str:
        return marked("master.cf: postfix-pass, own directory")


def start_postfix(site: Site, name: str) -> Postfix:
    tls = {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_chain_files": str(site.certificate),
    }
    limits = {
        "smtpd_client_connection_count_limit": "2",
        "smtpd_client_event_limit_exceptions": "127.0.0.1",
    }
    services = {
        "plain": Pass("plain", tls, chroot="n"),
        "chroot": Pass("chroot", tls, chroot="y"),
        "few": Pass("few", {}, processes="2"),
        "limited": Pass("limited", limits),
        "only4": Pass("only4"),
    }
    settings = {
        "mynetworks": " ".join(TRUSTED),
        # From 3.9 on, the default disconnects a client that sends more with its EHLO.
        "smtpd_forbid_unauth_pipelining": "no",
    }
    return Postfix(site.mail, site.new_place(name), services, settings)


@pytest.fixture(scope="module")
def postfix(site: Site) -> Iterator[Postfix]:
    running = start_postfix(site, "postfix-pass")
    try:
        yield running
    finally:
        running.stop()


def listener(postfix: Postfix, service: str, port: int, **settings: object) -> Listener:
    own = {"convey": "postfix-pass", "families": BOTH, **settings}
    backend = f"unix:{postfix.public / service}"
    return Listener(f"{service}-{port}", both(port), backend, own)


@pytest.fixture(scope="module")
def place(site: Site, postfix: Postfix) -> Iterator[Place]:
    with ExitStack() as cleanup:
        tables = [
            listener(
                postfix,
                service,
                port,
                families=["ipv4"] if service == "only4" else BOTH,
                reply_timeout_s=60.0,
            )
            for service, port in PORTS.items()
        ]
        shim = Shim(
            site.mail,
            site.new_place("shim-pass"),
            tables,
            haproxy_hosts=[PROXY, PROXY6],
            log_level="debug",
        )
        cleanup.callback(shim.stop_cleanly, ["backend_failed"])
        sections = [
            Listen(
                f"{version}{six}",
                f"{PROXY6 if six else PROXY}:{port}",
                f"{MAIL6 if six else MAIL}:{PORTS['plain']}",
                f"{option} check inter 1s",
                ["option smtpchk EHLO proxy.example.test"],
            )
            for version, port in HEADER.items()
            for option in (["send-proxy"] if version == "v1" else ["send-proxy-v2"])
            for six in ("", "6")
        ]
        haproxy = HAProxy(site.proxy, site.new_place("haproxy-pass"), sections)
        cleanup.callback(haproxy.stop)
        yield Place(site, postfix, shim, haproxy)


# Who the client is.


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize("way", ["plain", "chroot", "v1", "v2"])
def test_postfix_sees_the_client(place: Place, way: str, client: str) -> None:
    to = (mail_address(client), PORTS.get(way, 0))
    if way in HEADER:
        to = (PROXY6 if ":" in client else PROXY, HEADER[way])
    with LabSmtp(place.site.client, to, client) as smtp:
        port = smtp.local_port
        smtp.starttls(context=any_certificate())
        smtp.ehlo("client.example.test")
        assert smtp.mail("someone@sender.example")[0] == 250
        assert smtp.rcpt("elsewhere@relayed.example")[0] == 554
        assert smtp.rcpt("user@example.test")[0] == 250
        code, text = smtp.data("Subject: hello\r\n\r\nhello\r\n")
        assert code == 250
    queue_id = queue_id_of(f"250 {text.decode()}")
    assert place.postfix.client_of(queue_id) == f"unknown[{client}]:{port}"
    shown = f"IPv6:{client}" if ":" in client else client
    assert f"[{shown}]" in place.postfix.stored(queue_id)
    written = f"[{client}]" if ":" in client else client
    story = place.shim.wait_event("session_closed", client=f"{written}:{port}")
    assert (story["outcome"], story["octets_out"]) == ("handed_over", 0)


@pytest.mark.parametrize("friend", [FRIEND, FRIEND6])
def test_a_client_may_relay_by_its_own_address(place: Place, friend: str) -> None:
    to = (PROXY6 if ":" in friend else PROXY, HEADER["v2"])
    with LabSmtp(place.site.client, to, friend) as smtp:
        smtp.ehlo("friend.example")
        assert smtp.mail("someone@sender.example")[0] == 250
        assert smtp.rcpt("elsewhere@relayed.example")[0] == 250


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("TCP6 ::ffff:198.51.100.11 ::ffff:192.0.2.25", "198.51.100.11"),
        ("TCP6 2001:DB8:51:0:0:0:0:11 2001:db8::1", CLIENT6),
        ("TCP4 198.51.100.11 192.0.2.25", CLIENT),
    ],
)
def test_the_address_is_canonical(place: Place, source: str, shown: str) -> None:
    mark = place.postfix.lines.mark()
    with place.connect(PROXY) as talk:
        talk.send(f"PROXY {source} 4000 25\r\n".encode())
        assert talk.reply().code == 220
    pattern = rf"connect from unknown\[{shown}\]:4000"
    place.postfix.lines.wait_for(pattern, since=mark)


@pytest.mark.parametrize("header", headers.HEADERS.values(), ids=headers.HEADERS)
def test_commands_in_the_headers_packet_reach_smtpd(
    place: Place, header: bytes
) -> None:
    mark = place.postfix.lines.mark()
    with place.connect(PROXY) as talk:
        talk.send(header + b"EHLO client.example\r\nQUIT\r\n")
        replies = [talk.reply() for _ in range(3)]
        assert [reply.code for reply in replies] == [220, 250, 221]
        assert "PIPELINING" in replies[1].lines
        assert talk.rest() == b""
    # smtpd got the two commands, and not one octet of the header.
    name = rf"unknown\[{headers.CLIENT}\]:{headers.CLIENT_PORT}"
    done = place.postfix.lines.wait_for(f"disconnect from {name} (.*)", since=mark)
    assert done[1] == "ehlo=1 quit=1 commands=2"


def test_a_header_may_come_octet_by_octet(place: Place) -> None:
    with place.connect(PROXY) as talk:
        header = f"PROXY TCP4 {CLIENT} {MAIL} 4002 25\r\nQUIT\r\n"
        talk.send_each_octet(header.encode())
        assert [talk.reply().code for _ in range(2)] == [220, 221]


# What is not handed over.


@pytest.mark.parametrize(
    "octets",
    [b"PROXY TCP4 198.51.100.77 192.0.2.25 4003 25\r\n", LOCAL],
    ids=["v1", "v2"],
)
def test_an_unlisted_sender_of_a_header_gets_421(place: Place, octets: bytes) -> None:
    mark = place.postfix.lines.mark()
    with place.connect(FORGOTTEN) as talk:
        talk.send(octets)
        assert talk.reply().octets.startswith(b"421 4.7.1 PROXY not allowed")
        assert talk.rest() == b""
    assert not any(FORGOTTEN in line for line in place.postfix.lines.since(mark))


def test_a_header_after_the_grace_is_no_header(place: Place) -> None:
    with place.connect(FORGOTTEN) as talk:
        assert talk.reply().code == 220
        reply = talk.ask(f"PROXY TCP4 {FRIEND} {MAIL} 4004 25")
        assert reply.code == 221  # smtpd_forbidden_commands
        assert talk.rest() == b""


@pytest.mark.parametrize(
    "header",
    [
        f"PROXY TCP4 127.0.0.1 {MAIL} 4005 25",
        f"PROXY TCP4 {MAIL} {MAIL} 4005 25",
        "PROXY UNKNOWN",
    ],
)
def test_a_claim_that_is_not_believed_is_a_check(place: Place, header: str) -> None:
    mark = place.postfix.lines.mark()
    with place.connect(PROXY) as talk:
        talk.send(header.encode() + b"\r\n")
        assert talk.reply().code == 220
        assert talk.ask("EHLO check.example").code == 250
        assert talk.ask("MAIL FROM:<a@b.example>").octets.startswith(b"421 4.7.1 ")
    for line in place.postfix.lines.since(mark):
        assert "MAIL" not in line


@pytest.mark.parametrize("version", ["v1", "v16", "v2", "v26"])
def test_a_health_check_tests_smtpd(place: Place, version: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while place.haproxy.server_state(version)["check_status"] != "L7OK":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert place.haproxy.server_state(version)["status"] == "UP"


def test_a_client_of_a_family_that_postfix_lacks_gets_421(place: Place) -> None:
    with place.connect(CLIENT6, "only4") as talk:
        assert talk.reply().octets.startswith(b"421 4.3.0 ")
    place.shim.wait_event("session_closed", reason="client_family_refused")
    with place.connect(CLIENT, "only4") as talk:
        assert talk.reply().code == 220


# Postfix's own limits see the client.


def test_anvil_counts_the_client(place: Place) -> None:
    with ExitStack() as cleanup:

        def greeting(client: str) -> int:
            talk = cleanup.enter_context(place.connect(PROXY, "limited"))
            talk.send(f"PROXY TCP4 {client} {MAIL} 4006 25\r\n".encode())
            return talk.reply().code

        # One client is at its limit; another is not concerned.
        assert [greeting(CLIENT) for _ in range(3)] == [220, 220, 421]
        assert greeting(FRIEND) == 220


def test_a_directory_of_its_own(site: Site) -> None:
    """Nobody but the group of the directory may reach the socket, and nothing else opens."""
    with ExitStack() as cleanup:
        spool = site.new_place("postfix-own")
        services = {"own": Own("shim/proxied")}
        script = marked("sh: postfix-pass, own directory")
        postfix = Postfix(site.mail, spool, services, before_start=script)
        cleanup.callback(postfix.stop)
        path = postfix.public.parent / "private" / "shim" / "proxied"
        table = listener(postfix, "own", 4862)
        table = replace(table, backend=f"unix:{path}")
        shim = Shim(
            site.mail, site.new_place("shim-own"), [table], haproxy_hosts=[PROXY]
        )
        cleanup.callback(shim.stop_cleanly)
        with Conversation.open(site.client, (MAIL, 4862), CLIENT) as talk:
            assert talk.reply().code == 220
        postfix.lines.wait_for(rf"connect from unknown\[{CLIENT}\]")
        group = path.parent.stat().st_gid
        for groups, opens in ((str(group), True), ("65534", False)):
            argv = ["setpriv", "--reuid=64001", f"--regid={groups}", "--clear-groups"]
            ask = (
                "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
            )
            # As with BindPaths, from a path that leads past the directory "private".
            code = f'mount --bind "{path.parent}" /mnt && exec "$@"'
            connect = [sys.executable, "-c", ask, "/mnt/proxied"]
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-c", code, "sh", *argv, *connect],
                capture_output=True,
                text=True,
            )
            assert (done.returncode == 0) == opens, done.stderr


class Screen(Pass):
    """A service that must not be proxyshim's: postscreen, and what it hands over to."""

    def line(self) -> str:
        return (
            "screened pass n - n - 1 postscreen\n"
            "smtpd pass - - n - - smtpd\n"
            "dnsblog unix - - n - 0 dnsblog\n"
        )


def test_postscreen_takes_the_proxy_for_the_client(site: Site) -> None:
    """The how-to and ``proxyshim check`` warn of it: what the proxy may, everybody may."""
    with ExitStack() as cleanup:
        directory = site.new_place("postfix-screen")
        settings = {"mynetworks": " ".join(TRUSTED)}
        services = {"screened": Screen("screened")}
        postfix = Postfix(site.mail, directory, services, settings)
        cleanup.callback(postfix.stop)
        shim = Shim(
            site.mail,
            site.new_place("shim-screen"),
            [listener(postfix, "screened", 4864)],
            haproxy_hosts=[PROXY],
        )
        cleanup.callback(shim.stop_cleanly)
        with Conversation.open(site.proxy, (MAIL, 4864), PROXY) as talk:
            talk.send(headers.HEADERS["v1"])
            assert talk.reply().code == 220
        postfix.lines.wait_for(rf"postscreen\[\d+\]: ALLOWLISTED \[{PROXY}\]")


# Busy, and gone.


def test_busy_is_not_down(place: Place) -> None:
    """All processes are taken: clients wait in the queue, and then there is no room."""
    mark = place.shim.lines.mark()
    with ExitStack() as cleanup:
        talks = [cleanup.enter_context(place.connect(CLIENT, "few")) for _ in range(2)]
        for talk in talks:
            assert talk.reply().code == 220
        waiting = [
            cleanup.enter_context(place.connect(CLIENT, "few")) for _ in range(103)
        ]
        refused = place.shim.wait_event(
            "session_closed", since=mark, reason="pass_busy"
        )
        assert "EAGAIN" not in refused["detail"]
        assert "queue is full" in refused["detail"]
        talks[0].ask("QUIT")
        # The first in the queue gets the free process.
        replies = []
        for talk in waiting:
            talk.sock.settimeout(0.2)
            try:
                replies.append(talk.reply().octets[:9])
            except TimeoutError:
                continue
        assert b"220 mail." in replies
        assert b"421 4.3.2" in replies
    assert not place.shim.events(since=mark, event="pass_failed")


def test_while_postfix_is_gone_clients_get_421(site: Site) -> None:
    with ExitStack() as cleanup:
        first = start_postfix(site, "postfix-goes")
        cleanup.callback(first.stop)
        shim = Shim(
            site.mail,
            site.new_place("shim-goes"),
            [listener(first, "plain", 4860)],
            haproxy_hosts=[PROXY],
        )
        cleanup.callback(shim.stop_cleanly, ["backend_failed"])

        def greeting() -> bytes:
            with Conversation.open(site.client, (MAIL, 4860), CLIENT) as talk:
                octets = talk.reply().octets
                if octets.startswith(b"421"):
                    assert talk.rest() == b""
                return octets

        assert greeting().startswith(b"220 ")
        first.stop()
        assert greeting() == b"421 4.3.2 All server ports are busy\r\n"
        failed = shim.wait_event("backend_failed", reason="pass_refused")
        assert "ECONNREFUSED" in failed["detail"]


def test_a_killed_smtpd_loses_no_waiting_client(place: Place) -> None:
    # If a process dies in its first session, Postfix stops the service for a minute.  And
    # the first time that all are taken, Postfix replaces them (STRESS_README).
    for _ in range(5):
        with place.connect(CLIENT, "few") as one:
            assert one.reply().code == 220
            mark = place.postfix.lines.mark()
            with place.connect(FRIEND, "few") as two:
                assert two.reply().code == 220
                connected = rf"smtpd\[(\d+)\]: connect from unknown\[{FRIEND}\]"
                pid = place.postfix.lines.wait_for(connected, since=mark)[1]
                if has_served(place.postfix, pid):
                    with place.connect(CLIENT, "few") as third:
                        os.kill(int(pid), signal.SIGKILL)
                        assert third.reply().code == 220
                    return
            place.postfix.lines.wait_for(rf"\[{pid}\]: disconnect from", since=mark)
    raise AssertionError("every session has a new process")


def has_served(postfix: Postfix, pid: str) -> bool:
    return any(f"smtpd[{pid}]: disconnect" in line for line in postfix.lines.since())


def test_a_reload_keeps_who_waits_and_a_stop_refuses(site: Site) -> None:
    with ExitStack() as cleanup:
        postfix = start_postfix(site, "postfix-reload")
        cleanup.callback(postfix.stop)
        shim = Shim(
            site.mail,
            site.new_place("shim-reload"),
            [listener(postfix, "few", 4863)],
            haproxy_hosts=[PROXY],
        )
        cleanup.callback(shim.stop_cleanly, ["backend_failed"])

        def connect() -> Conversation:
            to = (MAIL, 4863)
            talk = Conversation.open(site.client, to, CLIENT)
            return cleanup.enter_context(talk)

        served = [connect(), connect()]
        assert [talk.reply().code for talk in served] == [220, 220]
        waiting = connect()
        postfix.signal(signal.SIGHUP)
        postfix.lines.wait_for("reload -- version")
        served[0].ask("QUIT")
        assert waiting.reply().code == 220
        again = connect()
        shim.wait_event("listener_opened")
        assert not select.select([again.sock], [], [], 0.3)[0]  # it waits
        postfix.stop()
        assert b"421 4.3.2" in again.rest()


# A restart, a crash, an upgrade: nothing that was handed over notices.


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_sessions_outlive_proxyshim(
    site: Site, postfix: Postfix, how: signal.Signals
) -> None:
    shim = Shim(
        site.mail,
        site.new_place("shim-dies"),
        [listener(postfix, "plain", 4861)],
        haproxy_hosts=[PROXY],
    )
    ids = [f"{uuid.uuid4()}@client.example" for _ in range(50)]
    with ExitStack() as cleanup:
        clients = []
        for _ in ids:
            smtp = LabSmtp(site.client, (MAIL, 4861), CLIENT)
            cleanup.callback(smtp.close)
            clients.append(smtp)
        for smtp in clients[:25]:
            smtp.ehlo("client.example")
            assert smtp.mail("a@client.example")[0] == 250
        shim.signal(how)
        shim.wait_for_exit()
        codes = []
        for smtp, message_id in zip(clients, ids, strict=True):
            if smtp not in clients[:25]:
                smtp.ehlo("client.example")
                smtp.mail("a@client.example")
            smtp.rcpt("user@example.test")
            code, _ = smtp.data(f"Message-ID: <{message_id}>\r\n\r\nhello\r\n")
            codes.append(code)
    assert codes == [250] * len(ids)
    deadline = time.monotonic() + DEADLINE_S
    while len(found := stored(postfix, set(ids))) < len(ids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert sorted(found) == sorted(ids)


def stored(postfix: Postfix, ids: set[str]) -> list[str]:
    """Return which of *ids* are in the Maildir, each as often as it is there."""
    found = []
    for path in (postfix.mail / "inbox" / "new").glob("*"):
        lines = path.read_text("utf-8", "replace").splitlines()
        names = [line[13:-1] for line in lines if line.startswith("Message-ID: <")]
        found += [name for name in names if name in ids]
    return found


# check.


def check(
    site: Site,
    backend: str,
    families: list[str],
    main_cf: str = "",
    master_cf: str = "",
) -> tuple[int, str]:
    place = site.new_place("check-pass")
    place.mkdir()
    (place / "haproxy_hosts").write_text("")
    settings = {"convey": "postfix-pass", "families": families}
    table = Listener("mx", [f"{MAIL}:4869"], backend, settings)
    config = place / "proxyshim.toml"
    config.write_text(table.toml())
    argv = [sys.executable, "-m", "proxyshim", "check", "-c", str(config)]
    root = Path(proxyshim.__file__).parent.parent
    (place / "main.cf").write_text(f"compatibility_level = 3.6\n{main_cf}")
    (place / "master.cf").write_text(master_cf)
    done = subprocess.run(
        site.mail.command(argv),
        cwd=root,
        env={**os.environ, "MAIL_CONFIG": str(place)},  # postconf reads it
        capture_output=True,
        text=True,
        timeout=50,
    )
    return done.returncode, done.stdout + done.stderr


def test_check_hands_over_probes(site: Site, postfix: Postfix) -> None:
    status, said = check(site, f"unix:{postfix.public / 'plain'}", BOTH)
    assert "takes a socket, and greets the client 192.0.2.1" in said
    assert "takes a socket, and greets the client 2001:db8::1" in said
    assert "does not relay for a stranger (192.0.2.1)" in said
    assert "Postfix does not promise the interface" in said
    assert status == 0, said


def test_check_compares_families_with_postfix(site: Site, postfix: Postfix) -> None:
    backend = f"unix:{postfix.public / 'plain'}"
    status, said = check(site, backend, BOTH, "inet_protocols = ipv4\n")
    assert status == 1
    assert "families lists ipv6, but Postfix has inet_protocols = ipv4" in said
    status, said = check(site, backend, ["ipv4"], "inet_protocols = all\n")
    assert status == 0, said
    assert "ipv6 clients get a 421" in said


def test_check_names_the_limit_that_its_probes_count_for(
    site: Site, postfix: Postfix
) -> None:
    limits = "smtpd_client_connection_rate_limit = 4\nmynetworks = 192.0.2.0/24\n"
    exceptions = "smtpd_client_event_limit_exceptions = 192.0.2.0/24\n"
    backend = f"unix:{postfix.public / 'plain'}"
    _, said = check(site, backend, BOTH, limits + exceptions)
    assert "let smtpd_client_event_limit_exceptions have 127.0.0.1" in said
    _, said = check(site, backend, BOTH, "mynetworks = 127.0.0.0/8\n")
    assert "smtpd_client_event_limit_exceptions" not in said


def test_check_refuses_postscreen(site: Site, postfix: Postfix) -> None:
    backend = f"unix:{postfix.public / 'plain'}"
    others = "other pass n - n - 1 postscreen\nplain inet n - n - 1 postscreen\n"
    smtpd = "plain pass n - n - - smtpd\n    -o { one = two }\n"
    status, said = check(site, backend, BOTH, master_cf=others + smtpd)
    assert status == 0, said
    screen = "d/plain pass n - n - 1 postscreen -o soft_bounce=yes\n"
    status, said = check(site, backend, BOTH, master_cf=others + screen)
    assert status == 1
    assert "is postscreen, which would take the proxy for the client" in said


def test_check_names_a_service_that_is_not_there(site: Site, postfix: Postfix) -> None:
    status, said = check(site, f"unix:{postfix.public / 'missing'}", BOTH)
    assert status == 1
    assert "ENOENT" in said


def test_the_probes_stop_when_nobody_comes(place: Place) -> None:
    """There is one at the start, and then at most one every ten seconds."""
    lines = place.postfix.lines.since()
    probes = sum("]: connect from unknown[127.0.0.1]:0" in line for line in lines)
    checks = len(place.shim.events(event="session_closed", outcome="checked"))
    refused = len(place.shim.events(event="command_refused"))
    assert probes < len(PORTS) + checks + refused + 20
