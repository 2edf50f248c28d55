"""Rights that leak: what a stranger may do behind real HAProxys and a real Postfix.

In the first part an outer HAProxy sends no header, so that every stranger appears with its address,
for which Postfix relays.  In the second part proxyshim still has Postfix's right to XFORWARD, which
forges ``orig_client`` in its log.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from proxyshim.addresses import Endpoint, read_address
from proxyshim.smtp.xclient import xclient_command
from tests.integration.lab.clients import Conversation
from tests.integration.lab.haproxy import HAProxy, Listen
from tests.integration.lab.postfix import Postfix, Smtpd
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import CLIENT, FORGOTTEN, MAIL, PROXY, Site

PORT, OUTER, INNER = 4625, 4626, 4627

# Two tiers of proxies.


@pytest.fixture(scope="module")
def tiers(site: Site) -> Iterator[Shim]:
    """Run proxyshim after two HAProxys, both listed; the outer one sends no header.

    The inner one connects from FORGOTTEN, which is in no list of Postfix.
    """
    place = site.new_place("two-tiers")
    with ExitStack() as cleanup:
        shim = Shim(
            site.mail,
            place,
            [Listener("mx", [f"{MAIL}:{PORT}"], site.backend("plain"))],
            haproxy_hosts=[PROXY, FORGOTTEN],
        )
        cleanup.callback(shim.stop_cleanly)
        inner = f"{MAIL}:{PORT}"
        listens = [
            Listen(
                "outer",
                f"{PROXY}:{OUTER}",
                f"{FORGOTTEN}:{INNER}",
                f"source {PROXY}",
            ),
            Listen(
                "inner",
                f"{FORGOTTEN}:{INNER}",
                inner,
                f"send-proxy-v2 source {FORGOTTEN}",
            ),
        ]
        haproxy = HAProxy(site.proxy, site.new_place("two-tiers-haproxy"), listens)
        cleanup.callback(haproxy.stop)
        yield shim


def test_a_stranger_behind_two_tiers_cannot_relay(site: Site, tiers: Shim) -> None:
    mark = tiers.lines.mark()
    with Conversation.open(site.client, (PROXY, OUTER), CLIENT) as talk:
        assert talk.reply().code == 220
        assert talk.ask("EHLO client.example").code == 250
        refusal = talk.ask("MAIL FROM:<sender@client.example>")
        assert str(refusal) == "421 4.7.1 claimed address not believed"
    refused = tiers.wait_event("command_refused", since=mark)
    assert refused["reason"] == "claim_not_believed"
    assert refused["claimed"].startswith(f"{PROXY}:")
    assert "send-proxy" in refused["hint"]


# The right to XFORWARD.

SPOOFED = "192.0.2.77"
XFORWARD = f"XFORWARD NAME=spoof.example ADDR={SPOOFED}\r\n".encode()
MESSAGE = (
    b"MAIL FROM:<sender@client.example>\r\nRCPT TO:<user@example.test>\r\nDATA\r\n"
)
# What a client sends after its EHLO: it tries to hide the XFORWARD from proxyshim.
WAYS = {
    "at-a-command": XFORWARD,
    "after-auth": b"AUTH PLAIN AAAA\r\n" + XFORWARD,
    "after-a-refused-data": b"DATA\r\n" + XFORWARD,
    "after-a-refused-starttls": b"STARTTLS now\r\n" + XFORWARD,
    "after-513-empty-lines": b"\r\n" * 513 + XFORWARD,
    "after-an-unknown-verb": b"XXXX\r\n" + XFORWARD,
    "after-bdat": b"BDAT 5\r\n" + XFORWARD,
    "after-lf-dot-lf": MESSAGE + b"Subject: a\n\nx\n.\n" + XFORWARD,
    "after-lf-dot-crlf": MESSAGE + b"Subject: a\r\n\r\nx\n.\r\n" + XFORWARD,
}


@pytest.fixture(scope="module")
def forgeable(site: Site) -> Iterator[Postfix]:
    """Run a Postfix that gives proxyshim the right to XFORWARD, and proxyshim before it."""
    settings = {
        "smtpd_authorized_xclient_hosts": "127.0.0.1",
        "smtpd_authorized_xforward_hosts": "127.0.0.0/8",
        "smtpd_tls_security_level": "may",
        "smtpd_tls_chain_files": str(site.certificate),
        "smtpd_junk_command_limit": "10000",
        "smtpd_hard_error_limit": "10000",
        "smtpd_error_sleep_time": "0",
    }
    services = {"forgeable": Smtpd("127.0.0.1:12725", settings)}
    with ExitStack() as cleanup:
        postfix = Postfix(site.mail, site.new_place("postfix-forgeable"), services)
        cleanup.callback(postfix.stop)
        listener = Listener("mx", [f"{MAIL}:{PORT + 100}"], "127.0.0.1:12725")
        place = site.new_place("shim-forgeable")
        shim = Shim(site.mail, place, [listener], haproxy_hosts=[PROXY])
        cleanup.callback(shim.stop_cleanly)
        yield postfix


def logged_after(postfix: Postfix, mark: int, talk: Conversation) -> str:
    """End the conversation; return what Postfix logged about it."""
    talk.finish()
    talk.rest()
    postfix.lines.wait_for(r"disconnect from ", since=mark)
    return "\n".join(postfix.lines.since(mark))


def test_the_right_to_xforward_forges_the_log(site: Site, forgeable: Postfix) -> None:
    """Postfix obeys an XFORWARD from our address: without it the next test shows nothing."""
    mark = forgeable.lines.mark()
    with Conversation.open(site.mail, ("127.0.0.1", 12725), "127.0.0.1") as talk:
        talk.reply()
        talk.send(b"EHLO client.example\r\n" + XFORWARD + MESSAGE + b".\r\nQUIT\r\n")
        assert f"orig_client=spoof.example[{SPOOFED}]" in logged_after(
            forgeable, mark, talk
        )


@pytest.mark.parametrize("way", WAYS)
def test_no_xforward_of_a_client_reaches_postfix(
    site: Site, forgeable: Postfix, way: str
) -> None:
    mark = forgeable.lines.mark()
    with Conversation.open(site.client, (MAIL, PORT + 100), CLIENT) as talk:
        talk.reply()
        offered = str(talk.ask("EHLO client.example"))
        assert "XFORWARD" not in offered
        assert "STARTTLS" not in offered
        talk.send(WAYS[way] + MESSAGE + b"Subject: b\r\n\r\ny\r\n.\r\nQUIT\r\n")
        logged = logged_after(forgeable, mark, talk)
    assert "orig_client=" not in logged
    assert "xforward=" not in logged  # counted at the end, refused ones as well


@pytest.mark.usefixtures("forgeable")
def test_no_client_can_hide_an_xforward_in_tls(site: Site) -> None:
    with Conversation.open(site.client, (MAIL, PORT + 100), CLIENT) as talk:
        talk.reply()
        talk.ask("EHLO client.example")
        assert str(talk.ask("STARTTLS")) == "454 4.7.0 TLS not available"


# An unknown destination.


@pytest.mark.usefixtures("forgeable")
def test_postfix_takes_a_client_whose_destination_is_unknown(site: Site) -> None:
    with Conversation.open(site.mail, ("127.0.0.1", 12725), "127.0.0.1") as talk:
        talk.reply()
        offered = str(talk.ask("EHLO shim.example")).upper()
        assert "DESTADDR DESTPORT" in offered
        client = Endpoint(read_address(CLIENT), 40_001)
        line = xclient_command(b"ADDR PORT NAME DESTADDR DESTPORT", client, None)
        assert b"DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE]" in line
        talk.send(line)
        assert talk.reply().code == 220
        assert talk.ask("EHLO client.example").code == 250
