"""The type-length-value extensions of a v2 header, and its checksum (PROXY spec, 2.2.1-2.2.6).

Reading returns all TLVs in their order, or raises ProxyHeaderError.  It checks their structure;
code that uses a value has to check what it means.  An SSL TLV has a structure of its own: five
octets, followed by TLVs, which we parse one level deep and no deeper.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct

from proxyshim.errors import ProxyHeaderError, Reason

Tlv = tuple[int, bytes]

# Types, PROXY spec 2.2.1 and following.
ALPN = 0x01
AUTHORITY = 0x02
CRC32C = 0x03
UNIQUE_ID = 0x05
SSL = 0x20
SSL_VERSION = 0x21  # this and the next occur only inside an SSL TLV
SSL_CN = 0x22
NETNS = 0x30

# Types of load balancers in clouds, from the range that the spec leaves to applications (2.2.7).
# AWS and Azure begin the value with a subtype.
GOOGLE = 0xE0
AWS = 0xEA
AZURE = 0xEE
AWS_VPCE_ID = 0x01
AZURE_LINK_ID = 0x01

TLV_HEAD_OCTETS = 3
SSL_HEAD = Struct("!BI")
CRC32C_OCTETS = 4
AZURE_NUMBER = Struct("<I")
GOOGLE_NUMBER = Struct("!Q")


@dataclass(frozen=True, slots=True)
class SslInfo:
    """The SSL TLV (PROXY spec, 2.2.6), as the proxy sent it."""

    client: int  # bits: 1 TLS, 2 certificate in this connection, 4 in this TLS session
    verify: (
        int  # 0 if the client's certificate was verified, and also if there was none
    )
    version: bytes | None
    cn: bytes | None


def read_tlvs(block: bytes) -> tuple[Tlv, ...]:
    """Read the TLVs that fill *block* to its last octet.

    Raises ProxyHeaderError if they do not fill it, or if an SSL TLV is malformed inside.
    """
    tlvs = tuple(_walk(block))
    for kind, value in tlvs:
        if kind == SSL:
            _check_ssl(value)
    return tlvs


def first(tlvs: Iterable[Tlv], wanted: int) -> bytes | None:
    """Return the value of the first TLV of the *wanted* type."""
    for kind, value in tlvs:
        if kind == wanted:
            return value
    return None


# A value that a vendor does not send is no reason to refuse a client, so these return None for it.


def read_aws_vpce_id(tlvs: Iterable[Tlv]) -> bytes | None:
    """Return the VPC endpoint through which a client of an AWS endpoint service came."""
    value = _first_of_subtype(tlvs, AWS, AWS_VPCE_ID)
    return value if value and value.isascii() else None


def read_azure_link_id(tlvs: Iterable[Tlv]) -> int | None:
    """Return the LinkID of the private endpoint through which a client of Azure came."""
    value = _first_of_subtype(tlvs, AZURE, AZURE_LINK_ID)
    return _read_number(AZURE_NUMBER, value)


def read_gcp_psc_id(tlvs: Iterable[Tlv]) -> int | None:
    """Return the id of the Private Service Connect connection of a client of Google's."""
    return _read_number(GOOGLE_NUMBER, first(tlvs, GOOGLE))


def _first_of_subtype(tlvs: Iterable[Tlv], wanted: int, subtype: int) -> bytes | None:
    for kind, value in tlvs:
        if kind == wanted and value[:1] == bytes([subtype]):
            return value[1:]
    return None


def _read_number(form: Struct, value: bytes | None) -> int | None:
    if value is None or len(value) != form.size:
        return None
    number: int = form.unpack(value)[0]
    return number


def read_ssl(value: bytes) -> SslInfo:
    """Parse the value of an SSL TLV that ``read_tlvs`` has accepted."""
    client, verify = SSL_HEAD.unpack_from(value)
    parts = tuple(_walk(value[SSL_HEAD.size :]))
    return SslInfo(client, verify, first(parts, SSL_VERSION), first(parts, SSL_CN))


def check_crc32c(header: bytes, tlvs: Iterable[Tlv], tlvs_at: int) -> None:
    """Verify the checksum among the *tlvs* of *header*, which is complete, if there is one.

    The TLVs begin at octet *tlvs_at*.  Raises ProxyHeaderError for a wrong checksum, and for a
    second one: the checksum is computed with its field set to zero, and the spec does not define
    which of two fields that would be.
    """
    found_at = None
    value_at = tlvs_at
    for kind, value in tlvs:
        value_at += TLV_HEAD_OCTETS
        if kind == CRC32C:
            if found_at is not None:
                raise _bad_tlv("v2 header has a second CRC32C TLV")
            if len(value) != CRC32C_OCTETS:
                raise _bad_tlv(f"CRC32C TLV has {len(value)} octets, needs 4")
            found_at = value_at
        value_at += len(value)
    if found_at is not None:
        _compare_crc32c(header, found_at)


def crc32c(octets: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of *octets*.

    This is pure Python, because zlib.crc32 has another polynomial, and because a header of
    about 60 octets takes only 4 microseconds: a compiled dependency would not be worth it.
    """
    crc = 0xFFFFFFFF
    for octet in octets:
        crc = _CRC32C_TABLE[(crc ^ octet) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _walk(block: bytes) -> Iterator[Tlv]:
    at, end = 0, len(block)
    while at < end:
        if end - at < TLV_HEAD_OCTETS:
            raise _bad_tlv(f"{end - at} octets left after the last TLV, a TLV has 3")
        kind = block[at]
        declared = block[at + 1] << 8 | block[at + 2]
        at += TLV_HEAD_OCTETS
        if declared > end - at:
            raise _bad_tlv(
                f"TLV 0x{kind:02x} declares {declared} octets, {end - at} are left"
            )
        yield kind, block[at : at + declared]
        at += declared


def _check_ssl(value: bytes) -> None:
    if len(value) < SSL_HEAD.size:
        raise _bad_tlv(f"SSL TLV has {len(value)} octets, needs 5")
    for _ in _walk(value[SSL_HEAD.size :]):
        pass


def _compare_crc32c(header: bytes, at: int) -> None:
    after = at + CRC32C_OCTETS
    claimed = int.from_bytes(header[at:after])
    actual = crc32c(header[:at] + bytes(CRC32C_OCTETS) + header[after:])
    if actual != claimed:
        raise ProxyHeaderError(
            Reason.HEADER_BAD_CHECKSUM,
            f"v2 header has CRC32C 0x{claimed:08x}, but 0x{actual:08x} is correct",
        )


def _bad_tlv(detail: str) -> ProxyHeaderError:
    return ProxyHeaderError(Reason.HEADER_BAD_TLV, detail)


def _crc32c_of_octet(octet: int) -> int:
    for _ in range(8):
        octet = octet >> 1 ^ (0x82F63B78 if octet & 1 else 0)  # reversed 0x1EDC6F41
    return octet


_CRC32C_TABLE = tuple(_crc32c_of_octet(octet) for octet in range(256))
