"""Advice that fits the mail server that greeted."""

import pytest

from proxyshim.conveyance.servers import how_to_expect_header, when_xclient_is_missing

POSTFIX = "write into master.cf"
SOURCE = 'convey = "source-address"'
HEADER = 'convey = "proxy-v2"'
# What a server says, how it expects a header, and what to do without XCLIENT.
SERVERS = [
    (b"220 mx.example ESMTP Postfix (Debian/GNU)", "smtpd_upstream_proxy_p", POSTFIX),
    (b"220 mx.example ESMTP Exim 4.96 Thu, 26 Nov 2026", "hosts_proxy", HEADER),
    (b"220 mx.example ESMTP OpenSMTPD", "proxy-v2", HEADER),
    (b"220 mx.example Dovecot ready.", "haproxy_trusted_networks", HEADER),
    (b"220 mx.example Python SMTP 1.4.6", "proxy_protocol_timeout", HEADER),
    (b"220 mx.example ESMTP Haraka/3.3.4 ready", 'convey = "xclient"', "xclient.hosts"),
    (b"220 mx.example ESMTP Sendmail 8.17.1.9/8.17.1.9; Fri", SOURCE, SOURCE),
    (b"220 mx.example ESMTP\r\n250-XVERP=Courier\r\n250 Ok", SOURCE, SOURCE),
    (b"220 mx.example ESMTP qpsmtpd 0.94 ready", SOURCE, SOURCE),
    (b"220 mx.example", SOURCE, SOURCE),
]


@pytest.mark.parametrize(("said", "header", "xclient"), SERVERS, ids=str)
def test_advice_names_the_setting_of_the_server_that_greeted(
    said: bytes, header: str, xclient: str
) -> None:
    assert header in how_to_expect_header(said)
    advice = when_xclient_is_missing(said, POSTFIX)
    assert xclient in advice
    # Nobody but Postfix, and a server that may be one, is told what Postfix needs.
    may_be_postfix = b"Postfix" in said or said == b"220 mx.example"
    assert (POSTFIX in advice) is may_be_postfix
