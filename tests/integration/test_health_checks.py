"""The health checks of a real HAProxy: what they find, and that they log nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.integration.lab.clients import Conversation
from tests.integration.lab.haproxy import (
    ALL_V2_OPTIONS,
    UNIQUE_ID,
    HAProxy,
    Listen,
)
from tests.integration.lab.postfix import Postfix, front_door
from tests.integration.lab.shim import Event, Listener, Shim
from tests.integration.lab.site import CLIENT, MAIL, MAIL6, PROXY, PROXY6, Site, both

SMTPCHK = "option smtpchk EHLO lb.example.net"
OFTEN = "check inter 100ms fall 2 rise 1"

# The tests stop and start the backend of the listener on this port.
FRAIL, FRAIL_BACKEND = 200, "127.0.0.1:11025"
# Only the listeners for TCP checks use this backend.
IDLE_BACKEND = "127.0.0.1:11026"


@dataclass(frozen=True, slots=True)
class Check:
    """A kind of check.  Each kind has its own listener of proxyshim, on this port."""

    port: int
    options: str
    lines: tuple[str, ...] = ()


TCP_CHECKS = {
    "tcp-v1": Check(125, "send-proxy"),
    "tcp-v2": Check(126, "send-proxy-v2"),
    "tcp-v2-tlvs": Check(127, ALL_V2_OPTIONS, (UNIQUE_ID,)),
}
SMTP_CHECKS = {
    "smtp-v1": Check(128, "send-proxy", (SMTPCHK,)),
    "smtp-v2": Check(129, "send-proxy-v2", (SMTPCHK,)),
    "smtp-v2-tlvs": Check(130, ALL_V2_OPTIONS, (SMTPCHK, UNIQUE_ID)),
}
CHECKS = {**TCP_CHECKS, **SMTP_CHECKS}


@pytest.fixture(scope="module")
def idle_postfix(site: Site) -> Iterator[Postfix]:
    """Return a Postfix that stays idle, unless a TCP check reaches it."""
    with a_postfix(site, IDLE_BACKEND) as running:
        yield running


@pytest.fixture(scope="module")
def shim(site: Site, idle_postfix: Postfix) -> Iterator[Shim]:
    backends = dict.fromkeys(TCP_CHECKS, IDLE_BACKEND)
    backends |= {name: site.backend("plain") for name in SMTP_CHECKS}
    listeners = [
        Listener(name, both(CHECKS[name].port), backend)
        for name, backend in backends.items()
    ]
    listeners.append(Listener("frail", both(FRAIL), FRAIL_BACKEND))
    running = Shim(
        site.mail,
        site.directory / "shim-checked",
        listeners,
        haproxy_hosts=[PROXY, PROXY6],
        log_level="debug",
    )
    try:
        yield running
    finally:
        running.stop_cleanly(expected_errors=["backend_failed"])


@contextmanager
def haproxy_that_checks(site: Site, check: Check, server: str) -> Iterator[HAProxy]:
    """Run a HAProxy with the one section ``mx`` whose server is checked all the time."""
    lines = ("option log-health-checks", *check.lines)
    listen = Listen("mx", f"{PROXY}:2500", server, f"{check.options} {OFTEN}", lines)
    running = HAProxy(site.proxy, site.new_place("haproxy"), [listen])
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def a_postfix(site: Site, address: str) -> Iterator[Postfix]:
    """Run a Postfix with one service, as proxyshim's backend."""
    services = {"plain": front_door(address)}
    running = Postfix(site.mail, site.new_place("postfix"), services)
    try:
        yield running
    finally:
        running.stop()


def connections(postfix: Postfix) -> list[str]:
    """Return the lines that Postfix logged about connecting clients."""
    return [line for line in postfix.lines.since() if "connect from" in line]


def loud(shim: Shim, **match: object) -> list[Event]:
    """Return the log lines with these values that are not for debugging."""
    return [event for event in shim.events(0, **match) if event["level"] != "debug"]


@pytest.mark.parametrize("mail", [MAIL, MAIL6])
@pytest.mark.parametrize("name", CHECKS)
def test_a_health_check_finds_the_shim_up_and_logs_nothing(
    site: Site, shim: Shim, idle_postfix: Postfix, name: str, mail: str
) -> None:
    check = CHECKS[name]
    mark, postfix_mark = shim.lines.mark(), site.postfix.lines.mark()
    with haproxy_that_checks(site, check, f"{mail}:{check.port}") as haproxy:
        haproxy.lines.wait_for("Health check for server mx/mx succeeded")
        shim.wait_event("session_closed", since=mark, count=5, listener=name)
        state = haproxy.server_state("mx")
    assert state["status"] == "UP"
    assert state["check_status"] == ("L7OK" if name in SMTP_CHECKS else "L4OK")
    opened = shim.events(event="listener_opened", listener=name)
    assert loud(shim, listener=name) == opened
    if name in TCP_CHECKS:
        assert connections(idle_postfix) == []
    else:
        seen = rf"disconnect from unknown\[{PROXY6 if ':' in mail else PROXY}\]"
        site.postfix.lines.wait_for(seen, since=postfix_mark)


@pytest.mark.parametrize("name", SMTP_CHECKS)
def test_smtpchk_takes_a_dead_backend_out(site: Site, shim: Shim, name: str) -> None:
    check = SMTP_CHECKS[name]
    with (
        a_postfix(site, FRAIL_BACKEND) as postfix,
        haproxy_that_checks(site, check, f"{MAIL}:{FRAIL}") as haproxy,
    ):
        haproxy.lines.wait_for("Health check for server mx/mx succeeded")
        assert haproxy.server_state("mx")["status"] == "UP"

        postfix.stop()
        down = haproxy.lines.wait_for(r"mx/mx failed, .*status: 0/\d DOWN")
        assert "Layer7 wrong status, code: 421" in down[0]
        haproxy.lines.wait_for("Server mx/mx is DOWN")
        assert haproxy.server_state("mx")["status"] == "DOWN"
        # Logged once a minute, so perhaps for the check before this one.
        failed = shim.wait_event("backend_failed", listener="frail")
        assert failed["level"] == "error"

        back = haproxy.lines.mark()
        with a_postfix(site, FRAIL_BACKEND):
            haproxy.lines.wait_for("Server mx/mx is UP", since=back)
            assert haproxy.server_state("mx")["status"] == "UP"


@pytest.mark.parametrize("name", TCP_CHECKS)
def test_a_tcp_check_does_not_notice_a_dead_backend(
    site: Site, shim: Shim, name: str
) -> None:
    """A TCP check succeeds in spite of a dead backend; the docs recommend smtpchk."""
    mark = shim.lines.mark()
    with haproxy_that_checks(site, TCP_CHECKS[name], f"{MAIL}:{FRAIL}") as haproxy:
        haproxy.lines.wait_for("Health check for server mx/mx succeeded")
        shim.wait_event("session_closed", since=mark, count=3, listener="frail")
        assert haproxy.server_state("mx")["status"] == "UP"


def test_a_forgotten_send_proxy_is_in_the_log(site: Site, shim: Shim) -> None:
    """HAProxy says no more than that no greeting came in time."""
    lines = (SMTPCHK, "timeout check 700ms")
    mark = shim.lines.mark()
    with haproxy_that_checks(
        site, Check(FRAIL, "", lines), f"{MAIL}:{FRAIL}"
    ) as haproxy:
        haproxy.lines.wait_for("Layer7 timeout")
        warning = shim.wait_event("proxy_silent", since=mark, listener="frail")
    assert warning["peer"].startswith(f"{PROXY}:")
    assert warning["level"] == "warning"


@pytest.mark.usefixtures("shim")
def test_a_client_of_a_dead_backend_gets_a_421(site: Site) -> None:
    with Conversation.open(site.client, (MAIL, FRAIL), CLIENT) as talk:
        assert str(talk.reply()).startswith("421 4.")
        assert talk.rest() == b""


def test_a_bare_connection_from_a_proxy_logs_nothing(
    site: Site, shim: Shim, idle_postfix: Postfix
) -> None:
    port = CHECKS["tcp-v1"].port
    with Conversation.open(site.proxy, (MAIL, port), PROXY) as talk:
        peer = talk.name
    shim.wait_event("session_closed", peer=peer)
    assert loud(shim, peer=peer) == []
    assert connections(idle_postfix) == []


@pytest.mark.parametrize(
    "header", [b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n \0\0\0"]
)
def test_the_five_commands_of_a_check_log_nothing(
    site: Site, shim: Shim, header: bytes
) -> None:
    port = CHECKS["smtp-v1"].port
    with Conversation.open(site.proxy, (MAIL, port), PROXY) as talk:
        peer = talk.name
        talk.send(header)
        assert talk.reply().code == 220
        for command in ("EHLO lb", "HELO lb", "NOOP", "RSET"):
            assert talk.ask(command).code == 250
        assert talk.ask("QUIT").code == 221
        assert talk.rest() == b""
    shim.wait_event("session_closed", peer=peer)
    assert loud(shim, peer=peer) == []
