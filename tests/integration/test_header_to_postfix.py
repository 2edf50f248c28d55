"""A real Postfix that expects a PROXY header, and one that does not."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import proxyshim
from tests.integration.lab.clients import Conversation, LabSmtp, any_certificate
from tests.integration.lab.haproxy import HAProxy, Listen
from tests.integration.lab.postfix import Postfix, Smtpd, queue_id_of
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import (
    CLIENT,
    CLIENT6,
    FRIEND,
    MAIL,
    PROXY,
    PROXY6,
    TRUSTED,
    Site,
    both,
    mail_address,
)

EXPECTS, PLAIN = "127.0.0.1:12830", "127.0.0.1:12831"
PORTS = {"proxy-v1": 4830, "proxy-v2": 4831}
PLAIN_PORTS = {"proxy-v1": 4832, "proxy-v2": 4833}


@pytest.fixture(scope="module")
def postfix(site: Site) -> Iterator[Postfix]:
    tls = {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_chain_files": str(site.certificate),
    }
    expects = {"smtpd_upstream_proxy_protocol": "haproxy", **tls}
    services = {"expects": Smtpd(EXPECTS, expects), "plain": Smtpd(PLAIN)}
    settings = {"mynetworks": " ".join(TRUSTED)}
    place = site.new_place("postfix-header")
    running = Postfix(site.mail, place, services, settings)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def shim(site: Site, postfix: Postfix) -> Iterator[Shim]:
    """Run proxyshim with a HAProxy in front of it."""
    listeners = [
        Listener(f"{convey}-{port}", both(port), backend, {"convey": convey})
        for ports, backend in ((PORTS, EXPECTS), (PLAIN_PORTS, PLAIN))
        for convey, port in ports.items()
    ]
    with ExitStack() as cleanup:
        place = site.new_place("shim-header")
        running = Shim(site.mail, place, listeners, haproxy_hosts=[PROXY, PROXY6])
        # A Postfix that does not expect a header is an error, and logged as one.
        cleanup.callback(running.stop_cleanly, ["backend_failed"])
        listens = [
            Listen(
                convey,
                f"{PROXY}:{port},{PROXY6}:{port}",
                f"{MAIL}:{port}",
                "send-proxy-v2",
            )
            for convey, port in PORTS.items()
        ]
        haproxy = HAProxy(site.proxy, site.new_place("haproxy-header"), listens)
        cleanup.callback(haproxy.stop)
        yield running


def address_of(way: str, client: str, port: int) -> tuple[str, int]:
    if way == "direct":
        return (mail_address(client), port)
    return (PROXY6 if ":" in client else PROXY, port)


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize("way", ["direct", "haproxy"])
@pytest.mark.parametrize("convey", PORTS)
def test_postfix_sees_the_client(
    site: Site, shim: Shim, postfix: Postfix, convey: str, way: str, client: str
) -> None:
    to = address_of(way, client, PORTS[convey])
    with LabSmtp(site.client, to, client) as smtp:
        port = smtp.local_port
        smtp.starttls(context=any_certificate())
        smtp.ehlo("client.example.test")
        assert smtp.mail("someone@sender.example")[0] == 250
        assert smtp.rcpt("elsewhere@relayed.example")[0] == 554
        assert smtp.rcpt("user@example.test")[0] == 250
        code, text = smtp.data("Subject: hello\r\n\r\nhello\r\n")
        assert code == 250
    queue_id = queue_id_of(f"250 {text.decode()}")
    assert postfix.client_of(queue_id) == f"unknown[{client}]:{port}"
    shown = f"IPv6:{client}" if ":" in client else client
    assert f"[{shown}]" in postfix.stored(queue_id)


@pytest.mark.parametrize("convey", PORTS)
def test_a_client_may_relay_by_its_own_address(
    site: Site, shim: Shim, convey: str
) -> None:
    with LabSmtp(site.client, (PROXY, PORTS[convey]), FRIEND) as smtp:
        smtp.ehlo("friend.example.test")
        assert smtp.mail("someone@sender.example")[0] == 250
        assert smtp.rcpt("elsewhere@relayed.example")[0] == 250


@pytest.mark.parametrize("convey", PLAIN_PORTS)
def test_a_postfix_that_expects_no_header_gets_no_client(
    site: Site, shim: Shim, convey: str
) -> None:
    mark = shim.lines.mark()
    to = (MAIL, PLAIN_PORTS[convey])
    with Conversation.open(site.client, to, CLIENT) as talk:
        assert talk.reply().octets.startswith(b"421 4.3.0 ")
    listener = f"{convey}-{PLAIN_PORTS[convey]}"
    story = shim.wait_event("session_closed", since=mark, listener=listener)
    assert story["outcome"] == "backend_failed"
    if convey == "proxy-v1":
        assert story["reason"] == "header_not_understood"


def check(site: Site, convey: str, backend: str) -> tuple[int, str]:
    """Run ``proxyshim check`` on the mail host; return its exit status and what it says."""
    place = site.new_place("check-header")
    place.mkdir()
    config = place / "proxyshim.toml"
    (place / "haproxy_hosts").write_text("")
    listener = Listener("mx", [f"{MAIL}:4839"], backend, {"convey": convey})
    config.write_text(listener.toml())
    argv = [sys.executable, "-m", "proxyshim", "check", "-c", str(config)]
    root = Path(proxyshim.__file__).parent.parent
    done = subprocess.run(
        site.mail.command(argv), cwd=root, capture_output=True, text=True, timeout=50
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("convey", PORTS)
def test_check_approves_of_a_postfix_that_expects_a_header(
    site: Site, postfix: Postfix, convey: str
) -> None:
    status, output = check(site, convey, EXPECTS)
    assert status == 0, output
    assert "takes a PROXY header, and refuses a second one" in output
    assert "serves nobody without a PROXY header" in output
    assert "greets the client 192.0.2.1 in a PROXY header" in output
    assert "does not relay for a stranger (192.0.2.1)" in output
    # Postfix has no list of proxies.
    assert "takes a PROXY header from 127.0.0.2 too" in output


@pytest.mark.parametrize("convey", PORTS)
def test_check_names_the_setting_that_is_missing(
    site: Site, postfix: Postfix, convey: str
) -> None:
    status, output = check(site, convey, PLAIN)
    assert status == 1
    assert "every client would get a 421" in output
    assert "-o smtpd_upstream_proxy_protocol=haproxy" in output
