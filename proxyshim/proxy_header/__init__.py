"""The PROXY protocol header, v1 and v2, in which a proxy states who its client is.

Source: HAProxy's doc/proxy-protocol.txt ("PROXY spec").  Reading has three outcomes: the
header and the number of its octets; None, which means that more octets are needed; or
ProxyHeaderError.  The reader keeps no state: each call gets all octets received so far.
"""

from proxyshim.errors import ProxyHeaderError, Reason
from proxyshim.proxy_header.header import (
    Command,
    Family,
    ProxyHeader,
    printable,
    shortened,
)
from proxyshim.proxy_header.v1 import V1_SIGNATURE, read_v1
from proxyshim.proxy_header.v2 import V2_SIGNATURE, read_v2

__all__ = [
    "DEFAULT_MAX_OCTETS",
    "Command",
    "Family",
    "ProxyHeader",
    "printable",
    "read_header",
    "starts_header",
]

# The limit of what follows the first 16 octets of a v2 header.  The spec allows 65,535; a header
# with everything that HAProxy can send, and a client certificate, is shorter than half of this.
DEFAULT_MAX_OCTETS = 4096


def read_header(
    data: bytes, max_octets: int = DEFAULT_MAX_OCTETS
) -> tuple[ProxyHeader, int] | None:
    """Read a PROXY header of either version at the start of *data*.

    Returns the header and the number of its octets; None while *data* can still become a
    valid header.  Raises ProxyHeaderError as soon as that is ruled out.  *max_octets* limits
    the length field of v2; a v1 line has the spec's own limit.
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
    """Return True if *data* begins with a PROXY signature; None while it is part of one.

    This is for peers that must not send a header at all, so the header need not be valid.
    """
    if data.startswith((V1_SIGNATURE, V2_SIGNATURE)):
        return True
    if V1_SIGNATURE.startswith(data) or V2_SIGNATURE.startswith(data):
        return None
    return False
