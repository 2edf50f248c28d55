r"""Writes the attributes that tell Postfix's smtpd whose socket it was given (pure).

Source: Postfix, ``psc_send_socket()`` in postscreen_send.c and ``smtpd_peer_from_pass_attr()``
in smtpd_peer.c; the same from Postfix 2.10 on.  A name and its value each end with NUL, and an
empty name ends the list::

    client_address\0203.0.113.7\0client_port\040111\0server_address\0…\0server_port\025\0\0

Before Postfix 3.11, one value that smtpd cannot read stops the whole service for a minute.  So
nothing but canonical addresses and ports leaves this module.
"""

import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from proxyshim.addresses import Address, Endpoint, fold_v4_mapped

# What the descriptor is sent with: postscreen sends this octet as well, and its value is ignored.
_COMPANION: Final = b"\0"
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
# The destination, where none is known.
_UNKNOWN: Final = {
    4: Endpoint(ip_address("127.0.0.1"), 25),
    6: Endpoint(ip_address("::1"), 25),
}


def write_attributes(client: Endpoint, server: Endpoint) -> bytes:
    """Return the octets that go with the descriptor."""
    pairs = {
        b"client_address": _canonical(client.address),
        b"client_port": b"%d" % client.port,
        b"server_address": _canonical(server.address),
        b"server_port": b"%d" % server.port,
    }
    body = b"".join(name + b"\0" + value + b"\0" for name, value in pairs.items())
    return _COMPANION + body + b"\0"


def choose_server(
    client: Endpoint, candidates: Iterable[Endpoint | None], families: frozenset[int]
) -> Endpoint:
    """Return the first candidate that smtpd can read, else the loopback address.

    *families* are the IP versions that Postfix has.  An address of another one stops its service.
    """
    for each in candidates:
        if each is not None and each.port and each.address.version in families:
            return each
    return _UNKNOWN[client.address.version]


def _canonical(address: Address) -> bytes:
    """Return the one text of an address that inet_ntop() writes: no zone, nothing mapped."""
    folded = fold_v4_mapped(address)
    text = socket.inet_ntop(_FAMILIES[folded.version], folded.packed)
    return text.encode("ascii")
