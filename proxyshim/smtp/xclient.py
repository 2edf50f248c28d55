"""The XCLIENT command that we send: it says who the client is, as far as the backend asks.

If we left out an attribute, the backend would keep *our own* value for it.  So we send what we do
not know as ``[UNAVAILABLE]``.  Sources: Postfix XCLIENT_README; RFC 3461, 4 (xtext).
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

from proxyshim.addresses import Endpoint

UNAVAILABLE: Final = b"[UNAVAILABLE]"
TEMPUNAVAIL: Final = b"[TEMPUNAVAIL]"

# Below the 512 of RFC 5321, 4.5.3.1.4, including the line end.  Some servers cut a longer line
# without any error.
MAX_COMMAND_OCTETS: Final = 511

_NOT_XTEXT: Final = re.compile(rb"[^!-*,-<>-~]")


@dataclass(frozen=True, slots=True)
class Names:
    """The client's host names from the DNS.  Each may be one of the two markers instead."""

    name: bytes = UNAVAILABLE  # forward-confirmed
    # From the PTR record; equal to ``name`` if that is a name.
    reverse_name: bytes = UNAVAILABLE

    @property
    def are_from_dns(self) -> bool:
        """Return True if at least one of them is a name and not a marker."""
        return any(
            name not in (UNAVAILABLE, TEMPUNAVAIL)
            for name in (self.name, self.reverse_name)
        )


NO_NAMES: Final = Names()


# Cached, because a backend sends the same XCLIENT parameters in every session.
@lru_cache(maxsize=64)
def _attributes_in(parameters: bytes) -> frozenset[bytes]:
    return frozenset(parameters.upper().split())


def offers_identity(parameters: bytes | None) -> bool:
    """Return True if we can convey a client with these XCLIENT *parameters* of an EHLO reply.

    *parameters* is None if XCLIENT is not offered.
    """
    return parameters is not None and b"ADDR" in _attributes_in(parameters)


def xclient_command(
    parameters: bytes,
    client: Endpoint | None,
    destination: Endpoint | None,
    names: Names = NO_NAMES,
) -> bytes:
    """Return the whole command line, with those attributes that the backend offers.

    *parameters* is what follows XCLIENT in the EHLO reply.  *client* and *destination* are None if
    they are unknown, as on a unix socket.  Raises ValueError if the line would be too long.
    """
    offered = _attributes_in(parameters)
    line = b"XCLIENT"
    if b"ADDR" in offered:
        line += b" ADDR=" + _address(client)
    if b"PORT" in offered:
        line += b" PORT=" + _port(client)
    if b"NAME" in offered:
        line += b" NAME=" + _xtext(names.name)
    # A host name as NAME sets both names at Postfix.  After a marker, Postfix would keep our own
    # reverse name.
    if b"REVERSE_NAME" in offered and names.name in (UNAVAILABLE, TEMPUNAVAIL):
        line += b" REVERSE_NAME=" + _xtext(names.reverse_name)
    if b"DESTADDR" in offered:
        line += b" DESTADDR=" + _address(destination)
    if b"DESTPORT" in offered:
        line += b" DESTPORT=" + _port(destination)
    line += b"\r\n"
    if len(line) > MAX_COMMAND_OCTETS:
        raise ValueError(f"XCLIENT line exceeds {MAX_COMMAND_OCTETS} octets")
    return line


def _address(endpoint: Endpoint | None) -> bytes:
    """Return the address, or the marker for none.  Neither needs to be escaped as xtext."""
    if endpoint is None:
        return UNAVAILABLE
    prefix = b"IPV6:" if isinstance(endpoint.address, IPv6Address) else b""
    return prefix + endpoint.host.encode("ascii")


def _port(endpoint: Endpoint | None) -> bytes:
    return UNAVAILABLE if endpoint is None else b"%d" % endpoint.port


def _xtext(value: bytes) -> bytes:
    return _NOT_XTEXT.sub(_escape, value)


def _escape(found: re.Match[bytes]) -> bytes:
    return b"+%02X" % found[0][0]
