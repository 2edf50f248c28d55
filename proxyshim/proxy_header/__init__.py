"""The PROXY protocol header, v1 and v2: who the client is, in the words of the proxy.

Source: HAProxy's doc/proxy-protocol.txt ("PROXY spec").  Reading has three outcomes: the
header and the octets it took; None, not yet; or ProxyHeaderError.  It keeps no state: put
the octets that have come so far, all of them, each time.
"""

from proxyshim.errors import ProxyHeaderError, Reason
from proxyshim.proxy_header.header import (
    Command,
    Family,
    ProxyHeader,
    printable,
    shortened,
)
from proxyshim.proxy_header.tlv import SslInfo
from proxyshim.proxy_header.v1 import V1_SIGNATURE, read_v1
from proxyshim.proxy_header.v2 import V2_SIGNATURE, read_v2

__all__ = [
    "DEFAULT_MAX_OCTETS",
    "Command",
    "Family",
    "ProxyHeader",
    "SslInfo",
    "printable",
    "read_header",
    "starts_header",
]

# Of a v2 header behind its first 16 octets.  The spec allows 65,535; one with all that
# HAProxy can send and a client certificate stays below half of this.
DEFAULT_MAX_OCTETS = 4096


def read_header(
    data: bytes, max_octets: int = DEFAULT_MAX_OCTETS
) -> tuple[ProxyHeader, int] | None:
    """Read a PROXY header of either version at the start of *data*.

    Returns the header and the octets it took; None while *data* is the beginning of what
    can still become valid.  Raises ProxyHeaderError as soon as that is ruled out.
    *max_octets* limits the length field of v2; the line of v1 has the spec's own limit.
    """
    if data.startswith(V2_SIGNATURE):
        return read_v2(data, max_octets)
    if data.startswith(V1_SIGNATURE):
        return read_v1(data)
    if starts_header(data) is None:
        return None
    raise ProxyHeaderError(
        Reason.HEADER_UNRECOGNISED,
        f"neither a v1 nor a v2 PROXY header: {shortened(data)}",
    )


def starts_header(data: bytes) -> bool | None:
    """Does *data* begin with a PROXY signature?  None while it is a part of one.

    For peers that must not send a header at all: it need not be a valid one.
    """
    if data.startswith((V1_SIGNATURE, V2_SIGNATURE)):
        return True
    if V1_SIGNATURE.startswith(data) or V2_SIGNATURE.startswith(data):
        return None
    return False
