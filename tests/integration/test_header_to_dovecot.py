"""A real Dovecot submission service that takes a PROXY header: nothing is withheld there."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.integration.lab.clients import Conversation, LabSmtp, any_certificate
from tests.integration.lab.dovecot import PASSWORD, USER, Dovecot
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import CLIENT, CLIENT6, MAIL, Site, both, mail_address

EXPECTS, PLAIN = ("127.0.0.1", 10588), ("127.0.0.1", 10589)
PORTS = {"proxy-v1": 4840, "proxy-v2": 4841}
PLAIN_PORTS = {"proxy-v1": 4842, "proxy-v2": 4843}


@dataclass(frozen=True, slots=True)
class Running:
    """Two Dovecots, of which one expects a header, and proxyshim before them."""

    expects: Dovecot
    plain: Dovecot
    shim: Shim


@pytest.fixture(scope="module")
def running(site: Site) -> Iterator[Running]:
    with ExitStack() as cleanup:
        expects, plain = [
            Dovecot(
                site.mail,
                site.new_place("dovecot"),
                listen=listen,
                relay=site.direct("plain", MAIL),
                certificate=site.certificate,
                expects_header=listen is EXPECTS,
            )
            for listen in (EXPECTS, PLAIN)
        ]
        for server in (expects, plain):
            cleanup.callback(server.stop)
        listeners = [
            Listener(f"{convey}-{port}", both(port), f"{to[0]}:{to[1]}", keys)
            for ports, to in ((PORTS, EXPECTS), (PLAIN_PORTS, PLAIN))
            for convey, port in ports.items()
            for keys in [{"convey": convey}]
        ]
        place = site.new_place("shim-header-dovecot")
        shim = Shim(site.mail, place, listeners, haproxy_hosts=[])
        cleanup.callback(shim.stop_cleanly, ["backend_failed"])
        yield Running(expects, plain, shim)


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize("convey", PORTS)
def test_a_client_logs_in_inside_the_servers_own_tls(
    site: Site, running: Running, convey: str, client: str
) -> None:
    mark = running.expects.lines.mark()
    with LabSmtp(site.client, (mail_address(client), PORTS[convey]), client) as smtp:
        smtp.starttls(context=any_certificate())
        smtp.login(USER, PASSWORD)
        # The server judges the client by its own address.
        assert smtp.docmd("XCLIENT", "ADDR=198.51.100.1")[0] >= 500
    running.expects.lines.wait_for(rf"Login: .*rip={client},", since=mark)


@pytest.mark.parametrize("convey", PLAIN_PORTS)
def test_a_dovecot_that_expects_no_header_gets_no_client(
    site: Site, running: Running, convey: str
) -> None:
    """It would obey an XCLIENT of the client, because it trusts proxyshim's address."""
    mark = running.shim.lines.mark()
    to = (mail_address(CLIENT), PLAIN_PORTS[convey])
    with Conversation.open(site.client, to, CLIENT) as talk:
        assert talk.reply().octets.startswith(b"421 4.3.0 ")
    listener = f"{convey}-{PLAIN_PORTS[convey]}"
    story = running.shim.wait_event("session_closed", since=mark, listener=listener)
    assert story["outcome"] == "backend_failed"
