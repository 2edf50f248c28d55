"""A real Postfix refuses a client and hangs up: no reply of our own follows."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.integration.lab.clients import Conversation
from tests.integration.lab.postfix import Postfix, front_door
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import CLIENT, MAIL, Site

PORT = 4825
SETTINGS = {
    "smtpd_recipient_restrictions": "check_recipient_access inline:{"
    " { away@example.test = 521 5.7.1 go away },"
    " { never@example.test = 550 5.7.1 never } }",
    "smtpd_hard_error_limit": "3",
    "smtpd_error_sleep_time": "0",
    "smtpd_forbid_unauth_pipelining": "yes",
}


@pytest.fixture(scope="module")
def shim(site: Site) -> Iterator[Shim]:
    """Run proxyshim before a Postfix that hangs up on several occasions."""
    services = {"stern": front_door("127.0.0.1:12825", **SETTINGS)}
    with ExitStack() as cleanup:
        postfix = Postfix(site.mail, site.new_place("postfix-stern"), services)
        cleanup.callback(postfix.stop)
        listener = Listener("mx", [f"{MAIL}:{PORT}"], "127.0.0.1:12825")
        place = site.new_place("shim-stern")
        running = Shim(site.mail, place, [listener], haproxy_hosts=[])
        cleanup.callback(running.stop_cleanly)  # fails if there was an error line
        yield running


def play(site: Site, shim: Shim, *packets: bytes) -> bytes:
    """Send packets, each after a reply to the one before; return what the client got in all.

    Check that proxyshim reports no failure.
    """
    mark = shim.lines.mark()
    with Conversation.open(site.client, (MAIL, PORT), CLIENT) as talk:
        name = talk.name
        got = talk.reply().octets
        for packet in packets:
            talk.send(packet)
            got += talk.reply().octets
        got += talk.rest()
    closed = shim.wait_event("session_closed", since=mark, client=name)
    assert closed["outcome"] == "client_refused"
    events = [each["event"] for each in shim.events(mark)]
    assert "backend_failed" not in events
    assert "backend_recovered" not in events
    assert b"421 4.3.0 " not in got
    return got


EHLO = b"EHLO client.example\r\n"
MAIL_FROM = b"MAIL FROM:<sender@client.example>\r\n"
AWAY = b"RCPT TO:<away@example.test>\r\n"


def test_a_521_is_the_last_word(site: Site, shim: Shim) -> None:
    got = play(site, shim, EHLO, MAIL_FROM, AWAY)
    assert got.endswith(b"go away\r\n")


def test_a_521_is_the_last_word_for_a_client_that_answers_it(
    site: Site, shim: Shim
) -> None:
    got = play(site, shim, EHLO, MAIL_FROM, AWAY, b"QUIT\r\n")
    assert got.endswith(b"go away\r\n")


def test_a_521_is_the_last_word_for_a_client_that_pipelines(
    site: Site, shim: Shim
) -> None:
    got = play(site, shim, EHLO, MAIL_FROM + AWAY + AWAY + b"DATA\r\n")
    assert got.endswith(b"go away\r\n")


def test_too_many_errors_are_the_clients_fault(site: Site, shim: Shim) -> None:
    never = b"RCPT TO:<never@example.test>\r\n"
    got = play(site, shim, EHLO, MAIL_FROM, never, never, never)
    assert b"421 4.7.0 " in got.splitlines()[-1]


def test_a_client_that_pipelines_without_permission(site: Site, shim: Shim) -> None:
    got = play(site, shim, b"HELO client.example\r\n" + MAIL_FROM + AWAY)
    last = got.splitlines()[-1]
    assert last.startswith((b"554 5.5.0 ", b"521 5.7.1 "))
