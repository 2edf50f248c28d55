"""The v1 PROXY header: one line of text (PROXY spec, 2.1).

Reading has three outcomes: the header and the number of its octets; None, which means that more
octets are needed; or ProxyHeaderError.  A line is judged when it ends, or at the latest when it
is as long as the spec allows.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from proxyshim.addresses import Address, Endpoint, fold_v4_mapped
from proxyshim.errors import ProxyHeaderError, Reason
from proxyshim.proxy_header.header import (
    MAX_DESTINATIONS,
    Command,
    Family,
    ProxyHeader,
    shortened,
)

V1_SIGNATURE = b"PROXY "

# The longest line that the spec can produce, including CRLF (2.1).  A peer that sends a longer
# one is not a proxy, so we stop reading instead of searching for its CRLF.
MAX_V1_OCTETS = 107

# The spec has one space between fields, no sign and no leading zero in a number, and no zone id;
# int(), inet_aton() and ipaddress would each accept more than that.  The conversion that follows
# checks how large a number is, and how many groups an IPv6 address has.
_NUMBER = rb"(?:0|[1-9][0-9]{0,2})"
_IPV4 = b"(" + rb"\.".join([_NUMBER] * 4) + b")"
# Dots are included because dual-stack senders write ::ffff:192.0.2.1; the spec does not mention it.
_IPV6 = rb"([0-9A-Fa-f:.]{2,45})"
_PORT = rb"(0|[1-9][0-9]{0,4})"
_TCP4 = re.compile(b" ".join([b"PROXY TCP4", _IPV4, _IPV4, _PORT, _PORT]) + b"\r\n")
_TCP6 = re.compile(b" ".join([b"PROXY TCP6", _IPV6, _IPV6, _PORT, _PORT]) + b"\r\n")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\n]*)?\r\n")
MAX_PORT = 65535

_UNKNOWN_HEADER = ProxyHeader(1, Command.UNKNOWN, Family.UNSPEC)


def read_v1(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Read a v1 header at the start of *data*, which begins with the v1 signature.

    Returns the header and the number of its octets; None while the line has no end.  Raises
    ProxyHeaderError.  A bare LF also ends the line, and makes it invalid.
    """
    end = data.find(b"\n", 0, MAX_V1_OCTETS) + 1
    if end == 0:
        if len(data) < MAX_V1_OCTETS:
            return None
        raise ProxyHeaderError(
            Reason.HEADER_TOO_LONG, f"v1 header exceeds {MAX_V1_OCTETS} octets"
        )
    header = _read_line(data[:end])
    if header is None:
        raise ProxyHeaderError(
            Reason.HEADER_MALFORMED, f"v1 header is invalid: {shortened(data[:end])}"
        )
    return header, end


def _read_line(line: bytes) -> ProxyHeader | None:
    """Read a complete line of any length; return None if it is not valid."""
    try:
        if match := _TCP4.fullmatch(line):
            return _tcp_header(Family.TCP4, _read_ipv4, match)
        if match := _TCP6.fullmatch(line):
            return _tcp_header(Family.TCP6, _read_ipv6, match)
    except ValueError:
        return None
    return _UNKNOWN_HEADER if _UNKNOWN.fullmatch(line) else None


def _tcp_header(
    family: Family, read_address: Callable[[bytes], Address], match: re.Match[bytes]
) -> ProxyHeader:
    source, destination, source_port, destination_port = match.groups()
    return ProxyHeader(
        1,
        Command.PROXY,
        family,
        Endpoint(read_address(source), _read_port(source_port)),
        _read_destination(read_address, destination, destination_port),
    )


@lru_cache(maxsize=MAX_DESTINATIONS)
def _read_destination(
    read_address: Callable[[bytes], Address], address: bytes, port: bytes
) -> Endpoint:
    return Endpoint(read_address(address), _read_port(port))


def _read_ipv4(text: bytes) -> IPv4Address:
    # Twice as fast as IPv4Address(str), whose checks the pattern has already done.
    return IPv4Address(bytes(map(int, text.split(b"."))))


def _read_ipv6(text: bytes) -> Address:
    return fold_v4_mapped(IPv6Address(text.decode("ascii")))


def _read_port(text: bytes) -> int:
    port = int(text)
    if port > MAX_PORT:
        raise ValueError(port)
    return port
