"""Builders and checkers of PROXY headers for tests, independent of the code under test.

The reader keeps no state: each call gets all octets received so far.  Every split of an input
is therefore a selection from the same calls, one for each number of octets, and the checkers
make all of these calls.
"""

from collections.abc import Iterable
from struct import pack

from proxyshim.addresses import Address
from proxyshim.errors import ProxyHeaderError, Reason
from proxyshim.proxy_header import ProxyHeader, read_header

V2_SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")

LOCAL, PROXY = 0x20, 0x21
TCP4, UDP4, TCP6, UDP6, UNIX, UNIXDGRAM = 0x11, 0x12, 0x21, 0x22, 0x31, 0x32
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20

# What may follow a header in a session: nothing, SMTP, and octets that look like a header.
FOLLOWING = (
    b"",
    b"\n",
    b"EHLO client.example\r\nMAIL FROM:<>\r\n",
    b"PROXY TCP4 203.0.113.66 198.51.100.25 1 25\r\n",
    V2_SIGNATURE + b"\x21\x11\x00\x0c" + bytes(12),
    bytes(5000),
)


def reads(data: bytes, expected: ProxyHeader) -> None:
    """Check that *data* is always read as *expected*.

    The header comes whole, cut in two at every octet, one octet at a time, and followed by SMTP.
    """
    for count in range(len(data)):
        assert read_header(data[:count]) is None, f"not complete: {data[:count]!r}"
    for following in FOLLOWING:
        assert read_header(data + following) == (expected, len(data))


def refuses(data: bytes, reason: Reason) -> int:
    """Check that *data* is refused for *reason*, in any split, and stays refused.

    Returns the number of octets after which it is refused.
    """
    count = 0
    while not (refused := refusal(data[:count])):
        count += 1
        assert count <= len(data), f"not refused: {data!r}"
    assert refused.reason is reason
    for more in range(count, len(data) + 1):
        refused = refusal(data[:more])
        assert refused, f"refused with fewer octets, but not with {more}"
        assert refused.reason is reason
    for following in FOLLOWING:
        refused = refusal(data + following)
        assert refused
        assert refused.reason is reason
    return count


def refusal(data: bytes) -> ProxyHeaderError | None:
    """Return the error that *data* raises; None if it is a header or can become one."""
    try:
        read_header(data)
    except ProxyHeaderError as error:
        return error
    return None


def in_pieces(pieces: Iterable[bytes]) -> tuple[ProxyHeader, int] | Reason | None:
    """Return the result of reading a header that arrives in *pieces*."""
    received = b""
    for piece in pieces:
        received += piece
        try:
            result = read_header(received)
        except ProxyHeaderError as error:
            return error.reason
        if result is not None:
            return result
    return None


def build_v1(
    family: str, source: str, destination: str, source_port: int, destination_port: int
) -> bytes:
    """Write a v1 header."""
    line = f"PROXY {family} {source} {destination} {source_port} {destination_port}"
    return line.encode() + b"\r\n"


def build_v2(version_command: int, family: int, *body: bytes) -> bytes:
    """Write a v2 header, and compute its checksum if *body* has the TLV CHECKSUM."""
    block = b"".join(body)
    fixed = pack("!12sBBH", V2_SIGNATURE, version_command, family, len(block))
    if CHECKSUM in body:
        at = sum(map(len, body[: body.index(CHECKSUM)])) + 3
        crc = crc32c_bit_by_bit(fixed + block)
        block = block[:at] + crc.to_bytes(4) + block[at + 4 :]
    return fixed + block


def addresses(
    source: Address, destination: Address, source_port: int, destination_port: int
) -> bytes:
    """Write the address block for TCP and UDP."""
    ports = pack("!HH", source_port, destination_port)
    return source.packed + destination.packed + ports


def tlv(kind: int, value: bytes) -> bytes:
    """Write one TLV."""
    return pack("!BH", kind, len(value)) + value


def ssl_tlv(client: int, verify: int, *parts: bytes) -> bytes:
    """Write an SSL TLV that contains the TLVs *parts*."""
    return tlv(SSL, pack("!BI", client, verify) + b"".join(parts))


CHECKSUM = tlv(CRC32C, bytes(4))


def crc32c_bit_by_bit(octets: bytes) -> int:
    """Compute CRC-32C as RFC 3720 defines it, without a table."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF
