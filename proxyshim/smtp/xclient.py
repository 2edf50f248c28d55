"""Our own XCLIENT command: who the client is, in the words of the backend.

An attribute left out keeps *the shim's* value at the backend, so what is not known is sent as
``[UNAVAILABLE]``.  Source: Postfix XCLIENT_README; xtext: RFC 3461, 4.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

from proxyshim.addresses import Endpoint

UNAVAILABLE: Final = b"[UNAVAILABLE]"
TEMPUNAVAIL: Final = b"[TEMPUNAVAIL]"

# Under the 512 of RFC 5321, 4.5.3.1.4, line end and all: some servers cut a longer line in
# silence.
MAX_COMMAND_OCTETS: Final = 511

_NOT_XTEXT: Final = re.compile(rb"[^!-*,-<>-~]")


@dataclass(frozen=True, slots=True)
class Names:
    """What the DNS says of the client: host names, or one of the two markers above."""

    name: bytes = UNAVAILABLE  # forward-confirmed
    reverse_name: bytes = (
        UNAVAILABLE  # as the PTR record has it; NAME, where there is one
    )

    @property
    def are_from_dns(self) -> bool:
        """Tell whether one of them is more than a marker."""
        return any(
            name not in (UNAVAILABLE, TEMPUNAVAIL)
            for name in (self.name, self.reverse_name)
        )


NO_NAMES: Final = Names()


# What the backends' EHLO replies say: a few texts, the same for every session.
@lru_cache(maxsize=64)
def _attributes_in(parameters: bytes) -> frozenset[bytes]:
    return frozenset(parameters.upper().split())


def offers_identity(parameters: bytes | None) -> bool:
    """Tell whether XCLIENT's EHLO *parameters* (None: not offered) let us say who it is."""
    return parameters is not None and b"ADDR" in _attributes_in(parameters)


def xclient_command(
    parameters: bytes,
    client: Endpoint | None,
    destination: Endpoint | None,
    names: Names = NO_NAMES,
) -> bytes:
    """Return the command, line end and all, with the offered ones of its attributes.

    *parameters* is what stands behind XCLIENT in the EHLO reply.  A *client* of None is one
    without an address (a unix socket's).  Raises ValueError when the line gets too long.
    """
    offered = _attributes_in(parameters)
    line = b"XCLIENT"
    if b"ADDR" in offered:
        line += b" ADDR=" + _address(client)
    if b"PORT" in offered:
        line += b" PORT=%d" % client.port if client else b" PORT=" + UNAVAILABLE
    if b"NAME" in offered:
        line += b" NAME=" + _xtext(names.name)
    # A NAME that is one sets both at Postfix; after a marker the reverse name would stay ours.
    if b"REVERSE_NAME" in offered and names.name in (UNAVAILABLE, TEMPUNAVAIL):
        line += b" REVERSE_NAME=" + _xtext(names.reverse_name)
    if destination is not None:
        if b"DESTADDR" in offered:
            line += b" DESTADDR=" + _address(destination)
        if b"DESTPORT" in offered:
            line += b" DESTPORT=%d" % destination.port
    line += b"\r\n"
    if len(line) > MAX_COMMAND_OCTETS:
        raise ValueError(f"XCLIENT line exceeds {MAX_COMMAND_OCTETS} octets")
    return line


def _address(endpoint: Endpoint | None) -> bytes:
    """Return an address, or what says that there is none: both are xtext as they are."""
    if endpoint is None:
        return UNAVAILABLE
    prefix = b"IPV6:" if isinstance(endpoint.address, IPv6Address) else b""
    return prefix + endpoint.host.encode("ascii")


def _xtext(value: bytes) -> bytes:
    return _NOT_XTEXT.sub(_escape, value)


def _escape(found: re.Match[bytes]) -> bytes:
    return b"+%02X" % found[0][0]
