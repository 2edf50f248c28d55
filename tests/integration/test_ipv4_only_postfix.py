"""A real Postfix with inet_protocols = ipv4 takes no IPv6 client, and serves the others."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.integration.lab.clients import Conversation
from tests.integration.lab.postfix import Postfix, front_door
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import CLIENT, CLIENT6, Site, both, mail_address

PORT = 4826
BACKEND = "127.0.0.1:12826"


@pytest.fixture(scope="module")
def shim(site: Site) -> Iterator[Shim]:
    """Run proxyshim before that Postfix."""
    with ExitStack() as cleanup:
        postfix = Postfix(
            site.mail,
            site.new_place("postfix-ipv4"),
            {"front": front_door(BACKEND)},
            {"inet_protocols": "ipv4"},
        )
        cleanup.callback(postfix.stop)
        listener = Listener("mx", both(PORT), BACKEND)
        place = site.new_place("shim-ipv4")
        running = Shim(site.mail, place, [listener], haproxy_hosts=[])
        cleanup.callback(running.stop_cleanly)  # fails if there was an error line
        yield running


def first_reply(site: Site, source: str) -> bytes:
    """Return what a client with that address is greeted with."""
    to = (mail_address(source), PORT)
    with Conversation.open(site.client, to, source) as talk:
        return talk.reply().octets


def test_an_ipv6_client_is_delayed_and_an_ipv4_client_is_served(
    site: Site, shim: Shim
) -> None:
    for _ in range(2):
        mark = shim.lines.mark()
        assert first_reply(site, CLIENT6).startswith(b"421 4.3.0 ")
        refused = "client_family_refused"
        shim.wait_event("session_closed", since=mark, reason=refused)
        assert first_reply(site, CLIENT).startswith(b"220 ")
    (event,) = shim.events(event="backend_failed")
    assert event["level"] == "warning"
    assert "Bad ADDR syntax" in event["detail"]
    assert "inet_protocols = all" in event["hint"]
    assert shim.events(event="names_refused") == []
