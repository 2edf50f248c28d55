"""What to write into the configuration of a mail server that we recognise by its greeting."""

from typing import Final

# How a server is made to expect a PROXY header.
_EXPECTS_HEADER: Final = {
    b"Postfix": "with Postfix, add -o smtpd_upstream_proxy_protocol=haproxy to the service",
    b"Exim": "with Exim, set hosts_proxy to proxyshim's address",
    b"OpenSMTPD": 'with OpenSMTPD, add proxy-v2 to the line "listen on"',
    b"Dovecot": "with Dovecot, set haproxy = yes and haproxy_trusted_networks",
}
_ANY_SERVER: Final = "set up a service of the mail server that expects it"
# Servers that have no XCLIENT, and take a PROXY header.
_WITHOUT_XCLIENT: Final = (b"Exim", b"OpenSMTPD")


def how_to_expect_header(greeting: bytes) -> str:
    """Return how the server with that *greeting* is made to expect a PROXY header."""
    return next(
        (advice for name, advice in _EXPECTS_HEADER.items() if name in greeting),
        _ANY_SERVER,
    )


def instead_of_xclient(greeting: bytes) -> str:
    """Return what to use with a server that has no XCLIENT; empty if it may have it."""
    if any(name in greeting for name in _WITHOUT_XCLIENT):
        return f'set convey = "proxy-v2"; {how_to_expect_header(greeting)}'
    return ""
