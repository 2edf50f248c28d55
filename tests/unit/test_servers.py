"""Advice that fits the mail server that greeted."""

import pytest

from proxyshim.conveyance.servers import how_to_expect_header, instead_of_xclient

GREETINGS = {
    b"220 mx.example ESMTP Postfix (Debian/GNU)\r\n": "smtpd_upstream_proxy_protocol",
    b"220 mx.example ESMTP Exim 4.96 Thu, 26 Nov 2026\r\n": "hosts_proxy",
    b"220 mx.example ESMTP OpenSMTPD\r\n": "proxy-v2",
    b"220 mx.example Dovecot (Debian) ready.\r\n": "haproxy_trusted_networks",
    b"220 mx.example\r\n": "a service of the mail server",
}


@pytest.mark.parametrize(("greeting", "setting"), GREETINGS.items(), ids=str)
def test_the_setting_that_makes_a_server_expect_a_header(
    greeting: bytes, setting: str
) -> None:
    assert setting in how_to_expect_header(greeting)


@pytest.mark.parametrize("greeting", GREETINGS, ids=str)
def test_servers_without_xclient_are_sent_to_the_header(greeting: bytes) -> None:
    has_none = b"Exim" in greeting or b"OpenSMTPD" in greeting
    assert ('convey = "proxy-v2"' in instead_of_xclient(greeting)) is has_none
