"""What to write into the configuration of a mail server that we recognise.

Most servers name themselves in the greeting, Courier in its reply to EHLO.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class _Server:
    """One kind of mail server: what it says, and what to do about it."""

    name: bytes  # a part of its greeting or of its reply to EHLO
    to_expect_header: str  # or what else to use
    without_xclient: str = ""  # where it does not offer it; empty for Postfix


def _takes_header(name: bytes, to_expect_header: str) -> _Server:
    return _Server(
        name, to_expect_header, f'set convey = "proxy-v2"; {to_expect_header}'
    )


def _takes_neither(name: bytes) -> _Server:
    advice = (
        "this server takes neither XCLIENT nor a PROXY header: set convey ="
        ' "source-address", and run proxyshim routes'
    )
    return _Server(name, advice, advice)


_SERVERS: Final = (
    _Server(
        b"Postfix",
        "with Postfix, add -o smtpd_upstream_proxy_protocol=haproxy to the service",
    ),
    _takes_header(b"Exim", "with Exim, set hosts_proxy to proxyshim's address"),
    _takes_header(b"OpenSMTPD", 'with OpenSMTPD, add proxy-v2 to the line "listen on"'),
    _takes_header(
        b"Dovecot", "with Dovecot, set haproxy = yes and haproxy_trusted_networks"
    ),
    _takes_header(b"Python SMTP", "with aiosmtpd, set proxy_protocol_timeout"),
    _Server(
        b"Haraka",
        'with Haraka, set convey = "xclient"',
        "with Haraka, enable the plugin xclient, and write proxyshim's address into"
        " config/xclient.hosts",
    ),
    _takes_neither(b"Sendmail"),
    _takes_neither(b"XVERP=Courier"),
    _takes_neither(b"qpsmtpd"),
)
_UNKNOWN_SERVER: Final = (
    "set up a service of the mail server that expects it; if it cannot, set convey ="
    ' "source-address"'
)


def how_to_expect_header(said: bytes) -> str:
    """Return how the server that *said* this is made to expect a PROXY header.

    *said* is its greeting and its reply to EHLO.  For a server that takes no header, the
    text names the conveyance to use instead.
    """
    server = _recognise(said)
    return _UNKNOWN_SERVER if server is None else server.to_expect_header


def when_xclient_is_missing(said: bytes, postfix: str) -> str:
    """Return what to do about the server that *said* this and does not offer XCLIENT.

    *postfix* is the advice for a Postfix.
    """
    server = _recognise(said)
    if server is not None:
        return server.without_xclient or postfix
    return (
        f'{postfix}; with another server, set convey = "proxy-v2" if it can expect a'
        ' PROXY header, otherwise convey = "source-address"'
    )


def _recognise(said: bytes) -> _Server | None:
    return next((server for server in _SERVERS if server.name in said), None)
