"""The agent check of a real HAProxy: how HAProxy acts on our answers, and how soon."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.lab.clients import Conversation
from tests.integration.lab.haproxy import HAProxy, Listen
from tests.integration.lab.netns import Host
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import (
    CLIENT,
    CLIENT6,
    MAIL,
    MAIL6,
    PROXY,
    PROXY6,
    Site,
    both,
)
from tests.integration.test_health_checks import a_postfix

PORT, AGENT_PORT = 210, 9210
BACKEND = "127.0.0.1:11027"
# The plain TCP check only sees whether the shim listens.  Anything else that HAProxy knows
# comes from the agent.
CHECKS = (
    "send-proxy-v2 check inter 200ms fall 1 rise 1"
    f" agent-check agent-port {AGENT_PORT} agent-inter 200ms"
)
LOG_CHECKS = ("option log-health-checks",)
UP, DOWN = "Server mx/mx is UP", "Server mx/mx is DOWN"


@contextmanager
def a_shim(site: Site, agent: str = f"{MAIL}:{AGENT_PORT}") -> Iterator[Shim]:
    """Run a shim that answers agent checks."""
    listener = Listener("mx", both(PORT), BACKEND, {"agent_bind": agent})
    place = site.new_place("shim-with-agent")
    running = Shim(site.mail, place, [listener], haproxy_hosts=[PROXY, PROXY6])
    try:
        yield running
    finally:
        running.stop_cleanly(expected_errors=["backend_failed"])


@contextmanager
def a_haproxy(site: Site) -> Iterator[HAProxy]:
    """Run a HAProxy that asks the agent all the time; wait until it sees "up"."""
    listen = Listen("mx", f"{PROXY}:2510", f"{MAIL}:{PORT}", CHECKS, LOG_CHECKS)
    running = HAProxy(site.proxy, site.new_place("haproxy"), [listen])
    try:
        running.lines.wait_for('Agent check .* info: "via agent : up"')
        yield running
    finally:
        running.stop()


def ask(host: Host, to: str, source: str) -> bytes:
    """Ask the agent as HAProxy does: connect, and read to the end."""
    with Conversation.open(host, (to, AGENT_PORT), source) as talk:
        return talk.rest()


def status(haproxy: HAProxy) -> str:
    return haproxy.server_state("mx")["status"]


def test_the_agent_check_takes_a_dead_mail_server_out_and_puts_it_back(
    site: Site,
) -> None:
    with (
        a_shim(site) as shim,
        a_postfix(site, BACKEND) as postfix,
        a_haproxy(site) as haproxy,
    ):
        assert status(haproxy) == "UP"

        mark = haproxy.lines.mark()
        postfix.stop()
        haproxy.lines.wait_for(DOWN, since=mark)
        assert status(haproxy) == "DOWN (agent)"

        mark = haproxy.lines.mark()
        with a_postfix(site, BACKEND):
            haproxy.lines.wait_for(UP, since=mark)
            assert status(haproxy) == "UP"
        # HAProxy's checks and questions are not sessions.
        assert shim.events(event="session_closed") == []


ENVELOPE = ("EHLO c", "MAIL FROM:<a@c.test>", "RCPT TO:<b@example.test>")


def test_haproxy_stops_using_a_draining_shim_and_returns_to_the_next_process(
    site: Site,
) -> None:
    with a_postfix(site, BACKEND), a_shim(site) as shim, a_haproxy(site) as haproxy:
        with Conversation.open(site.client, (MAIL, PORT), CLIENT) as talk:
            talk.reply()
            for line in ENVELOPE:
                assert talk.ask(line).code == 250
            assert talk.ask("DATA").code == 354
            shim.signal(signal.SIGTERM)
            haproxy.lines.wait_for("Server mx/mx enters drain state")
            assert talk.ask("hello\r\n.").code == 250
            assert talk.reply().code == 421
        # The drain ends the process.  A SIGTERM at that moment could hit the interpreter
        # after the event loop has given up its signal handlers, and kill it with -15.
        assert shim.wait_for_exit() == 0
        haproxy.lines.wait_for(DOWN)  # at the next check, of either kind
        mark = haproxy.lines.mark()
        with a_shim(site):
            haproxy.lines.wait_for("leaving forced drain", since=mark)
            haproxy.lines.wait_for(UP, since=mark)
            assert status(haproxy) == "UP"


@pytest.mark.parametrize(
    ("agent", "to", "listed", "stranger"),
    [
        (f"{MAIL}:{AGENT_PORT}", MAIL, PROXY, CLIENT),
        (f"[{MAIL6}]:{AGENT_PORT}", MAIL6, PROXY6, CLIENT6),
    ],
)
def test_the_agent_answers_listed_hosts_only(
    site: Site, agent: str, to: str, listed: str, stranger: str
) -> None:
    with a_shim(site, agent):
        assert ask(site.proxy, to, listed) == b"down ready\n"
        assert ask(site.client, to, stranger) == b""
