"""Write a PROXY header, v1 or v2, for a backend that reads one (PROXY spec, 2.1 and 2.2).

A header is written from a session's identity, never copied.  Reading it gives the identity back.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final

from proxyshim.addresses import Address, Endpoint
from proxyshim.identity import TlsFacts
from proxyshim.proxy_header.tlv import (
    CRC32C,
    CRC32C_OCTETS,
    SSL,
    SSL_CN,
    SSL_HEAD,
    SSL_VERSION,
    Tlv,
    crc32c,
)
from proxyshim.proxy_header.v2 import V2_SIGNATURE

# What may follow the first 16 octets.  Receivers have limits of their own, and common ones take
# no more than this.
MAX_BODY_OCTETS: Final = 4_096
# PROXY spec, 2.2.4: it is padding, and means nothing.
NOOP: Final = 0x04

_UNSPECIFIED: Final[Mapping[int, Address]] = {4: IPv4Address(0), 6: IPv6Address(0)}
# The port of an unknown destination.  Dovecot refuses a v1 header with port 0.
SMTP_PORT: Final = 25
_VERSION_AND_COMMAND: Final = 0x21
_FAMILY: Final = {4: 0x11, 6: 0x21}
_FIXED: Final = Struct("!BBH")
_PORTS: Final = Struct("!HH")
_TLV_HEAD: Final = Struct("!BH")
# PROXY spec, 2.2.6.
_CLIENT_SSL: Final = 0x01
_CLIENT_CERT_CONN: Final = 0x02
_CLIENT_CERT_SESS: Final = 0x04
_VERIFIED: Final = 0
_NOT_VERIFIED: Final = 1
_SSL_CIPHER: Final = 0x23


def write_v1(source: Endpoint, *destinations: Endpoint | None) -> bytes:
    """Return the line that names *source* as the client: at most 107 octets.

    The destination is the first of *destinations* that has the source's family; if there is none,
    it is the unspecified address, with the port of the first one, or else 25.
    """
    destination = _of_family(source.address, destinations)
    return (
        f"PROXY TCP{source.address.version} {source.host} {destination.host}"
        f" {source.port} {destination.port}\r\n"
    ).encode("ascii")


def write_v2(
    source: Endpoint,
    *destinations: Endpoint | None,
    tlvs: Iterable[Tlv] = (),
    with_checksum: bool = True,
) -> bytes:
    """Return the header that names *source* as the client, with these *tlvs* in their order.

    The destination is chosen as for v1.  A TLV that would make the header too long is left out.
    """
    destination = _of_family(source.address, destinations)
    addresses = (
        source.address.packed
        + destination.address.packed
        + _PORTS.pack(source.port, destination.port)
    )
    checksum = _write_tlv(CRC32C, bytes(CRC32C_OCTETS)) if with_checksum else b""
    left = MAX_BODY_OCTETS - len(addresses) - len(checksum)
    body = addresses + b"".join(_fitting(tlvs, left)) + checksum
    family = _FAMILY[source.address.version]
    header = V2_SIGNATURE + _FIXED.pack(_VERSION_AND_COMMAND, family, len(body)) + body
    if with_checksum:
        header = header[:-CRC32C_OCTETS] + crc32c(header).to_bytes(CRC32C_OCTETS)
    return header


def tlvs_to_pass_on(tlvs: Iterable[Tlv], *, with_ssl: bool) -> Iterator[Tlv]:
    """Yield those of the received *tlvs* that describe the client's connection.

    The checksum and the padding belong to the old header.  An SSL TLV makes the backend call the
    session secure, so it passes only *with_ssl*.
    """
    for kind, value in tlvs:
        if kind not in (CRC32C, NOOP) and (with_ssl or kind != SSL):
            yield kind, value


def ssl_tlv(facts: TlsFacts) -> Tlv:
    """Return the TLV that tells the backend of our TLS with the client (PROXY spec, 2.2.6)."""
    client, verify = _CLIENT_SSL, _NOT_VERIFIED
    parts = [(SSL_VERSION, facts.version.encode("ascii"))]
    if facts.has_client_certificate:
        client, verify = client | _CLIENT_CERT_CONN | _CLIENT_CERT_SESS, _VERIFIED
        if facts.client_name is not None:
            parts.append((SSL_CN, facts.client_name.encode("utf-8")))
    parts.append((_SSL_CIPHER, facts.cipher.encode("ascii")))
    head = SSL_HEAD.pack(client, verify)
    return SSL, head + b"".join(_write_tlv(kind, value) for kind, value in parts)


def _of_family(address: Address, endpoints: Sequence[Endpoint | None]) -> Endpoint:
    for endpoint in endpoints:
        if endpoint is not None and endpoint.address.version == address.version:
            return endpoint
    port = next((each.port for each in endpoints if each is not None), SMTP_PORT)
    return Endpoint(_UNSPECIFIED[address.version], port)


def _fitting(tlvs: Iterable[Tlv], left: int) -> Iterator[bytes]:
    for kind, value in tlvs:
        if _TLV_HEAD.size + len(value) <= left:
            left -= _TLV_HEAD.size + len(value)
            yield _write_tlv(kind, value)


def _write_tlv(kind: int, value: bytes) -> bytes:
    return _TLV_HEAD.pack(kind, len(value)) + value
