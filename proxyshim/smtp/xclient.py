"""Our own XCLIENT command: who the client is, in the words of the backend.

An attribute left out keeps *the shim's* value at the backend, so what is not known is sent as
``[UNAVAILABLE]``.  Source: Postfix XCLIENT_README; xtext: RFC 3461, 4.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from proxyshim.addresses import Address, Endpoint

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


def offers_identity(parameters: bytes | None) -> bool:
    """Tell whether XCLIENT's EHLO *parameters* (None: not offered) let us say who it is."""
    return parameters is not None and b"ADDR" in parameters.upper().split()


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
    attributes = {
        b"ADDR": _address(client),
        b"PORT": b"%d" % client.port if client else UNAVAILABLE,
        b"NAME": names.name,
    }
    # A NAME that is one sets both at Postfix; after a marker the reverse name would stay ours.
    if names.name in (UNAVAILABLE, TEMPUNAVAIL):
        attributes[b"REVERSE_NAME"] = names.reverse_name
    if destination is not None:
        attributes[b"DESTADDR"] = _address(destination)
        attributes[b"DESTPORT"] = b"%d" % destination.port
    return _command(attributes, parameters.upper().split())


def _command(attributes: dict[bytes, bytes], offered: Collection[bytes]) -> bytes:
    words = [b"XCLIENT"]
    for attribute, value in attributes.items():
        if attribute in offered:
            words.append(attribute + b"=" + _NOT_XTEXT.sub(_escape, value))
    line = b" ".join(words) + b"\r\n"
    if len(line) > MAX_COMMAND_OCTETS:
        raise ValueError(f"XCLIENT line exceeds {MAX_COMMAND_OCTETS} octets")
    return line


def _address(endpoint: Endpoint | None) -> bytes:
    if endpoint is None:
        return UNAVAILABLE
    return _convey(endpoint.address)


def _convey(address: Address) -> bytes:
    prefix = b"IPV6:" if address.version == 6 else b""
    return prefix + str(address).encode("ascii")


def _escape(found: re.Match[bytes]) -> bytes:
    return b"+%02X" % found[0][0]
