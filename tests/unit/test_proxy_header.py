"""Promises of read_header() and starts_header() that the vectors do not cover."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from proxyshim.addresses import Endpoint, read_address
from proxyshim.errors import ProxyHeaderError, Reason
from proxyshim.proxy_header import (
    Command,
    Family,
    ProxyHeader,
    printable,
    read_header,
    starts_header,
)
from proxyshim.proxy_header.tlv import SslInfo, crc32c
from tests.proxy_headers import (
    ALPN,
    AUTHORITY,
    CHECKSUM,
    CRC32C,
    LOCAL,
    NOOP,
    PROXY,
    SSL,
    TCP4,
    TCP6,
    UDP4,
    UNIQUE_ID,
    UNIX,
    V2_SIGNATURE,
    addresses,
    build_v1,
    build_v2,
    reads,
    refusal,
    refuses,
    ssl_tlv,
    tlv,
)

CLIENT = Endpoint(IPv4Address("192.0.2.10"), 40001)
SERVER = Endpoint(IPv4Address("198.51.100.25"), 25)
IPV4_BLOCK = addresses(CLIENT.address, SERVER.address, CLIENT.port, SERVER.port)
IPV6_BLOCK = addresses(IPv6Address("2001:db8::10"), IPv6Address("2001:db8::25"), 1, 25)
V1_LINE = b"PROXY TCP4 192.0.2.10 198.51.100.25 40001 25\r\n"
FROM_CLIENT = ProxyHeader(2, Command.PROXY, Family.TCP4, CLIENT, SERVER)
JUST_LOCAL = ProxyHeader(2, Command.LOCAL, Family.UNSPEC)


def with_tlvs(*tlvs: bytes) -> ProxyHeader:
    """Read a v2 header that conveys CLIENT and these TLVs."""
    result = read_header(build_v2(PROXY, TCP4, IPV4_BLOCK, *tlvs))
    assert result is not None
    return result[0]


# No header affects the reading of the next one

ENDS = [
    *((client, "198.51.100.25", 40001, 25) for client in ("192.0.2.10", "192.0.2.11")),
    ("192.0.2.10", "198.51.100.26", 40001, 25),
    ("192.0.2.10", "198.51.100.25", 40002, 25),
    ("192.0.2.10", "198.51.100.25", 40001, 26),
    ("2001:db8::10", "2001:db8::25", 40001, 25),
    ("2001:db8::11", "2001:db8::25", 40001, 25),
    ("2001:db8::10", "2001:db8::26", 40001, 25),
    ("2001:db8::10", "2001:db8::25", 40001, 26),
    ("::ffff:192.0.2.10", "::ffff:198.51.100.25", 40001, 25),
]


@pytest.mark.parametrize("version", [1, 2])
def test_a_header_is_read_the_same_the_second_time(version: int) -> None:
    for source, destination, source_port, destination_port in [*ENDS, *ENDS]:
        family = Family.TCP6 if ":" in source else Family.TCP4
        if version == 1:
            ends = f"{source} {destination} {source_port} {destination_port}"
            data = f"PROXY {family} {ends}\r\n".encode()
        else:
            ends_of = (ip_address(source), ip_address(destination))
            block = addresses(*ends_of, source_port, destination_port)
            data = build_v2(PROXY, TCP6 if ":" in source else TCP4, block)
        expected = ProxyHeader(
            version,
            Command.PROXY,
            family,
            Endpoint(read_address(source), source_port),
            Endpoint(read_address(destination), destination_port),
        )
        assert read_header(data) == (expected, len(data))


def test_a_port_that_is_too_large_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(ProxyHeaderError):
            read_header(b"PROXY TCP4 192.0.2.10 198.51.100.25 1 65536\r\n")


# Signatures


def test_an_empty_input_may_become_a_header() -> None:
    assert read_header(b"") is None


@pytest.mark.parametrize("signature", [b"PROXY ", V2_SIGNATURE])
def test_the_first_octet_that_fits_neither_signature_is_refused(
    signature: bytes,
) -> None:
    for count in range(len(signature)):
        for octet in range(256):
            data = signature[:count] + bytes([octet])
            if b"PROXY ".startswith(data) or V2_SIGNATURE.startswith(data):
                assert read_header(data) is None
            else:
                assert refuses(data, Reason.HEADER_UNRECOGNISED) == count + 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", None),
        (b"P", None),
        (b"PROXY", None),
        (b"PROXY ", True),
        (b"PROXY nonsense\r\n", True),
        (V1_LINE, True),
        (b"PROXY\r\n", False),
        (b"proxy ", False),
        (b"PROXYTCP4 ", False),
        (b"\r", None),
        (b"\r\n\r\n", None),
        (V2_SIGNATURE[:11], None),
        (V2_SIGNATURE, True),
        (V2_SIGNATURE + b"\xff\xff", True),
        (b"\r\n\r\nEHLO", False),
        (b"\r\n\r\n\r\n", False),
        (b"EHLO client.example\r\n", False),
        (b"\x00", False),
        (b" PROXY ", False),
    ],
)
def test_a_signature_is_recognised(data: bytes, expected: bool | None) -> None:
    assert starts_header(data) is expected


# Version 1


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.0.2.10 198.51.100.25 65536 25\r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.25 40001 25\r\n",
        b"PROXY TCP6 1:2:3:4:5:6:7:8:9 :: 0 0\r\n",
        b"PROXY TCP6 ::1%eth0 :: 0 0\r\n",
        b"PROXY TCP6 ::1.2.3 :: 0 0\r\n",
        b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0 \r\n",
        b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\n",
        b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\r\n",
        b"PROXY UNKNOWN\n",
        b"PROXY UNKNOWN\r\r\n",
        b"PROXY UNKNOWN\tx\r\n",
        b"PROXY UNKNOWN some text\n",
    ],
)
def test_an_invalid_v1_line_is_refused_at_its_lf(line: bytes) -> None:
    assert refuses(line, Reason.HEADER_MALFORMED) == len(line)


@pytest.mark.parametrize("text", [b"", b" ", b" 192.0.2.1", b" a\rb", b" \x00\xff\r"])
def test_unknown_may_be_followed_by_any_text(text: bytes) -> None:
    header = ProxyHeader(1, Command.UNKNOWN, Family.UNSPEC)
    reads(b"PROXY UNKNOWN" + text + b"\r\n", header)


def test_107_octets_are_a_v1_header_and_108_are_not() -> None:
    header = ProxyHeader(1, Command.UNKNOWN, Family.UNSPEC)
    reads(b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", header)
    assert len(b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n") == 107
    too_long = b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n"
    assert refuses(too_long, Reason.HEADER_TOO_LONG) == 107
    refused = refusal(too_long)
    assert refused
    assert refused.detail == "v1 header exceeds 107 octets"


def test_the_longest_spellings_are_refused_if_the_line_exceeds_107_octets() -> None:
    longest = "0000:0000:0000:0000:0000:ffff:255.255.255.255"
    line = build_v1("TCP6", longest, longest, 65535, 65535)
    assert len(line) == 116
    assert refuses(line, Reason.HEADER_TOO_LONG) == 107
    fits = build_v1("TCP6", longest, longest[1:], 1, 2)
    assert len(fits) == 107
    folded = IPv4Address("255.255.255.255")
    ends = Endpoint(folded, 1), Endpoint(folded, 2)
    reads(fits, ProxyHeader(1, Command.PROXY, Family.TCP6, *ends))


# Version 2: the sixteen octets


def test_exactly_two_version_and_command_octets_are_valid() -> None:
    for octet in range(256):
        header = build_v2(octet, TCP4, IPV4_BLOCK)
        if octet == LOCAL:
            reads(header, JUST_LOCAL)
        elif octet == PROXY:
            reads(header, FROM_CLIENT)
        else:
            wrong_version = octet >> 4 != 2
            reason = (
                Reason.HEADER_BAD_VERSION if wrong_version else Reason.HEADER_MALFORMED
            )
            assert refuses(header, reason) == 13


FORMS = {
    0x00: (Command.UNSPEC, Family.UNSPEC, 0),
    0x01: (Command.UNSPEC, Family.UNSPEC, 0),
    0x02: (Command.UNSPEC, Family.UNSPEC, 0),
    0x10: (Command.UNSPEC, Family.UNSPEC, 12),
    0x11: (Command.PROXY, Family.TCP4, 12),
    0x12: (Command.UNSPEC, Family.UDP4, 12),
    0x20: (Command.UNSPEC, Family.UNSPEC, 36),
    0x21: (Command.PROXY, Family.TCP6, 36),
    0x22: (Command.UNSPEC, Family.UDP6, 36),
    0x30: (Command.UNSPEC, Family.UNSPEC, 216),
    0x31: (Command.PROXY, Family.UNIX, 216),
    0x32: (Command.PROXY, Family.UNIXDGRAM, 216),
}


def test_exactly_twelve_family_octets_are_valid() -> None:
    for octet in range(256):
        if octet not in FORMS:
            data = build_v2(PROXY, octet, bytes(216))
            assert refuses(data, Reason.HEADER_BAD_FAMILY) == 14
            continue
        command, family, size = FORMS[octet]
        result = read_header(build_v2(PROXY, octet, bytes(size)))
        assert result is not None
        assert (result[0].command, result[0].family) == (command, family)
        assert (result[0].source is None) is (
            size not in (12, 36) or command != "PROXY"
        )
        assert (result[0].source_path is None) is (size != 216 or command != "PROXY")


def test_a_local_header_may_have_any_family_and_any_body() -> None:
    for octet in range(256):
        for body in (b"", IPV4_BLOCK, IPV6_BLOCK, bytes(216), b"\xff" * 7):
            reads(build_v2(LOCAL, octet, body), JUST_LOCAL)


@pytest.mark.parametrize("family", [octet for octet in FORMS if octet >= 0x10])
def test_addresses_that_do_not_fit_the_length_are_refused_at_octet_16(
    family: int,
) -> None:
    size = FORMS[family][2]
    for length in {0, 1, size - 1}:
        data = build_v2(PROXY, family, bytes(length)) + bytes(300)
        assert refuses(data, Reason.HEADER_BAD_LENGTH) == 16


@pytest.mark.parametrize("command", [PROXY, LOCAL])
def test_a_length_over_the_limit_is_refused_at_octet_16(command: int) -> None:
    def header(length: int) -> bytes:
        return V2_SIGNATURE + bytes([command, 0x00]) + length.to_bytes(2)

    assert refuses(header(4097), Reason.HEADER_TOO_LONG) == 16
    assert refuses(header(65535), Reason.HEADER_TOO_LONG) == 16
    assert read_header(header(4096)) is None
    assert read_header(header(65535), max_octets=65535) is None
    assert refusal(header(4097)) is not None
    refused = refusal(header(65535))
    assert refused
    assert refused.detail == "v2 header declares 65535 octets, limit 4096"


def test_the_length_limit_is_exact() -> None:
    def padded(length: int) -> bytes:
        return build_v2(PROXY, TCP4, IPV4_BLOCK, tlv(NOOP, bytes(length - 15)))

    header, taken = read_header(padded(4096)) or (None, 0)
    assert header is not None
    assert taken == 4112
    refuses(padded(4097), Reason.HEADER_TOO_LONG)


# Version 2: addresses


def test_v4_mapped_addresses_are_folded() -> None:
    block = addresses(
        IPv6Address("::ffff:192.0.2.10"), IPv6Address("::ffff:198.51.100.25"), 40001, 25
    )
    expected = ProxyHeader(2, Command.PROXY, Family.TCP6, CLIENT, SERVER)
    reads(build_v2(PROXY, TCP6, block), expected)


def test_datagram_addresses_are_ignored_but_their_tlvs_are_read() -> None:
    expected = ProxyHeader(2, Command.UNSPEC, Family.UDP4, tlvs=((UNIQUE_ID, b"id"),))
    reads(build_v2(PROXY, UDP4, IPV4_BLOCK, tlv(UNIQUE_ID, b"id")), expected)


def test_unix_paths_end_at_the_first_nul() -> None:
    block = b"/run/a.sock".ljust(108, b"\0") + b"\0abstract".ljust(108, b"x")
    expected = ProxyHeader(
        2,
        Command.PROXY,
        Family.UNIX,
        source_path=b"/run/a.sock",
        destination_path=b"",
    )
    reads(build_v2(PROXY, UNIX, block), expected)


# Version 2: TLVs and their checksum


@pytest.mark.parametrize(
    "broken",
    [
        tlv(SSL, b"")[:-1],
        tlv(ALPN, b"smtp")[:-1],
        tlv(ALPN, b"smtp") + b"\x00",
        tlv(SSL, b"1234"),
        ssl_tlv(7, 0, b"\x21"),
        ssl_tlv(7, 0, tlv(0x21, b"TLSv1.3")[:-1]),
        ssl_tlv(7, 0) + ssl_tlv(7, 0, b"\x21\x00"),
        tlv(CRC32C, b""),
        tlv(CRC32C, b"12345"),
        CHECKSUM + CHECKSUM,
    ],
)
def test_broken_tlvs_are_refused(broken: bytes) -> None:
    data = build_v2(PROXY, TCP4, IPV4_BLOCK, broken)
    assert refuses(data, Reason.HEADER_BAD_TLV) == len(data)


def test_nested_ssl_tlvs_do_not_exhaust_the_stack() -> None:
    nested = b""
    for _ in range(8000):
        nested = tlv(SSL, bytes(5) + nested)
    for kind in (0x00, TCP4):
        data = build_v2(PROXY, kind, IPV4_BLOCK if kind else b"", nested)
        result = read_header(data, max_octets=65535)
        assert result is not None
        assert result[0].ssl == SslInfo(0, 0, None, None)


@pytest.mark.parametrize("family", [0x00, TCP4, UDP4, TCP6, UNIX])
@pytest.mark.parametrize("before", [b"", tlv(NOOP, b"\x03\x00\x04abcd")])
def test_a_checksum_is_verified(family: int, before: bytes) -> None:
    block = bytes(FORMS[family][2])
    right = build_v2(PROXY, family, block, before, CHECKSUM, tlv(UNIQUE_ID, b"id"))
    assert read_header(right) is not None
    checksum_at = 16 + len(block) + len(before) + 3
    in_addresses = range(16, 16 + len(block))
    in_checksum = range(checksum_at, checksum_at + 4)
    in_unique_id = range(len(right) - 2, len(right))
    for at in (*in_addresses, *in_checksum, *in_unique_id):
        wrong = right[:at] + bytes([right[at] ^ 0x01]) + right[at + 1 :]
        refused = refusal(wrong)
        assert refused
        assert refused.reason is Reason.HEADER_BAD_CHECKSUM


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        # RFC 3720, B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_the_checksum_is_crc_32c(octets: bytes, expected: int) -> None:
    assert crc32c(octets) == expected


def test_tlvs_that_fill_the_body_of_a_local_header_are_read() -> None:
    body = tlv(UNIQUE_ID, b"id") + tlv(NOOP, b"")
    expected = ProxyHeader(
        2, Command.LOCAL, Family.UNSPEC, tlvs=((UNIQUE_ID, b"id"), (NOOP, b""))
    )
    for family in (0x00, TCP4, TCP6, 0xFF):
        reads(build_v2(LOCAL, family, body), expected)


@pytest.mark.parametrize(
    "body",
    [
        tlv(UNIQUE_ID, b"id") + b"\x00",
        tlv(UNIQUE_ID, b"id") + tlv(SSL, b""),
        tlv(UNIQUE_ID, b"id") + tlv(CRC32C, b"oops"),
        IPV4_BLOCK + tlv(UNIQUE_ID, b"id"),
        bytes(12),
        bytes(36),
    ],
)
def test_a_local_header_with_another_body_is_valid_without_tlvs(
    body: bytes,
) -> None:
    reads(build_v2(LOCAL, TCP4, body), JUST_LOCAL)


def test_the_tlvs_of_an_unspecified_protocol_follow_the_addresses() -> None:
    data = build_v2(PROXY, 0x10, IPV4_BLOCK, tlv(UNIQUE_ID, b"id"), CHECKSUM)
    result = read_header(data)
    assert result is not None
    assert result[0].unique_id == b"id"


# Details for the log


def test_the_first_of_repeated_tlvs_counts() -> None:
    header = with_tlvs(
        tlv(AUTHORITY, b"first.example"),
        tlv(AUTHORITY, b"second.example"),
        tlv(ALPN, b"smtp"),
        tlv(ALPN, b"h2"),
        tlv(UNIQUE_ID, b"first"),
        tlv(UNIQUE_ID, b"second"),
        ssl_tlv(1, 1, tlv(0x22, b"first"), tlv(0x22, b"second")),
        ssl_tlv(7, 0),
    )
    assert header.authority == b"first.example"
    assert header.alpn == b"smtp"
    assert header.unique_id == b"first"
    assert header.ssl == SslInfo(client=1, verify=1, version=None, cn=b"first")


def test_a_header_without_tlvs_has_nothing_to_log() -> None:
    for header in (FROM_CLIENT, ProxyHeader(1, Command.UNKNOWN, Family.UNSPEC)):
        assert header.authority is None
        assert header.alpn is None
        assert header.unique_id is None
        assert header.ssl is None
        assert header.log_details() == {}


@pytest.mark.parametrize(("length", "exposed"), [(0, 1), (128, 1), (129, 0)])
def test_a_unique_id_over_128_octets_is_not_exposed(length: int, exposed: int) -> None:
    header = with_tlvs(tlv(UNIQUE_ID, b"u" * length), tlv(UNIQUE_ID, b"short"))
    assert header.unique_id == (b"u" * length if exposed else None)


def test_log_details_are_printable_text_of_bounded_length() -> None:
    header = with_tlvs(
        tlv(AUTHORITY, b"mx.example\x1b[2J\r\n\xff" + b"a" * 500),
        tlv(ALPN, b"smtp"),
        tlv(UNIQUE_ID, b""),
        ssl_tlv(7, 0, tlv(0x21, b"TLSv1.3"), tlv(0x22, b"'\"\\\x00")),
    )
    details = header.log_details()
    assert details == {
        "authority": r"mx.example\x1b[2J\r\n\xff" + "a" * 111 + "...",
        "alpn": "smtp",
        "unique_id": "",
        "ssl_client": 7,
        "ssl_verify": 0,
        "ssl_version": "TLSv1.3",
        "ssl_cn": r"\'" + r'"\\\x00',
    }


def test_any_octet_becomes_printable() -> None:
    for octet in range(256):
        text = printable(bytes([octet]) * 2000)
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= 4 * 128 + 3


def test_error_texts_are_one_printable_line_of_bounded_length() -> None:
    for data in (
        b"\xff\r\n\x1b" * 5000,
        b"PROXY \xff\n" * 5000,
        b"PROXY TCP4 \x1b" * 5000,
        V2_SIGNATURE + b"\xff" * 5000,
        build_v2(PROXY, TCP4, IPV4_BLOCK, b"\xff" * 5000),
    ):
        refused = refusal(data)
        assert refused
        assert refused.detail.isprintable()
        assert len(refused.detail) < 600
