"""TLVs of cloud load balancers, and NETNS: read, put in the log, and never an error."""

import json
from ipaddress import IPv4Address
from struct import pack

import pytest

from proxyshim.proxy_header import ProxyHeader, read_header
from tests.proxy_headers import LOCAL, PROXY, TCP4, addresses, build_v2, tlv

NETNS, AWS, AZURE, GOOGLE = 0x30, 0xEA, 0xEE, 0xE0
BLOCK = addresses(IPv4Address("192.0.2.10"), IPv4Address("198.51.100.25"), 40001, 25)

ENDPOINT = b"vpce-08d2bf15fac5001c9"
LINK = 0x80FF0102
CONNECTION = 0xFEDCBA9876543210


def aws(endpoint: bytes, subtype: int = 1) -> bytes:
    return tlv(AWS, bytes([subtype]) + endpoint)


def azure(link: int, subtype: int = 1) -> bytes:
    return tlv(AZURE, pack("<BI", subtype, link))


def google(connection: int) -> bytes:
    return tlv(GOOGLE, pack(">Q", connection))


def with_tlvs(*tlvs: bytes) -> ProxyHeader:
    result = read_header(build_v2(PROXY, TCP4, BLOCK, *tlvs))
    assert result is not None
    return result[0]


def test_the_tlvs_of_load_balancers_are_read() -> None:
    header = with_tlvs(
        aws(ENDPOINT), azure(LINK), google(CONNECTION), tlv(NETNS, b"tenant-7")
    )
    assert header.aws_vpce_id == ENDPOINT
    assert header.azure_link_id == LINK
    assert header.gcp_psc_id == CONNECTION
    assert header.netns == b"tenant-7"
    assert header.log_details() == {
        "aws_vpce_id": "vpce-08d2bf15fac5001c9",
        "azure_link_id": 2164195586,
        "gcp_psc_id": "18364758544493064720",
        "netns": "tenant-7",
    }


def test_numbers_of_every_size_are_decimal() -> None:
    for link in (0, 1, 2**31, 2**32 - 1):
        assert with_tlvs(azure(link)).log_details() == {"azure_link_id": link}
    for connection in (0, 1, 2**53 + 1, 2**63, 2**64 - 1):
        details = with_tlvs(google(connection)).log_details()
        assert details == {"gcp_psc_id": f"{connection:d}"}
        assert json.loads(json.dumps(details)) == details


def test_the_tlvs_of_a_local_header_are_logged() -> None:
    result = read_header(build_v2(LOCAL, 0, aws(ENDPOINT), google(7)))
    assert result is not None
    assert result[0].log_details() == {
        "aws_vpce_id": ENDPOINT.decode(),
        "gcp_psc_id": "7",
    }


def test_a_header_without_these_tlvs_does_not_have_them() -> None:
    for header in (with_tlvs(), with_tlvs(tlv(0xEB, b"\x01other"))):
        assert header.aws_vpce_id is None
        assert header.azure_link_id is None
        assert header.gcp_psc_id is None
        assert header.netns is None
        assert header.log_details() == {}


MALFORMED = {
    "aws-empty": tlv(AWS, b""),
    "aws-no-id": aws(b""),
    "aws-other-subtype": aws(ENDPOINT, subtype=2),
    "aws-not-ascii": aws(b"vpce-\xc3\xa9"),
    "azure-empty": tlv(AZURE, b""),
    "azure-no-number": tlv(AZURE, b"\x01"),
    "azure-short": tlv(AZURE, b"\x01\x02\x03\x04"),
    "azure-long": tlv(AZURE, b"\x01\x02\x03\x04\x05\x06"),
    "azure-other-subtype": azure(LINK, subtype=2),
    "google-empty": tlv(GOOGLE, b""),
    "google-short": tlv(GOOGLE, bytes(7)),
    "google-long": tlv(GOOGLE, bytes(9)),
}


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_tlv_is_not_shown_and_harms_no_other(malformed: bytes) -> None:
    header = with_tlvs(malformed, tlv(NETNS, b"blue"))
    assert header.source is not None
    assert header.log_details() == {"netns": "blue"}


def test_the_first_of_repeated_tlvs_counts() -> None:
    header = with_tlvs(
        aws(b"vpce-1"),
        azure(1),
        google(1),
        tlv(NETNS, b"one"),
        aws(b"vpce-2"),
        azure(2),
        google(2),
        tlv(NETNS, b"two"),
    )
    assert header.log_details() == {
        "aws_vpce_id": "vpce-1",
        "azure_link_id": 1,
        "gcp_psc_id": "1",
        "netns": "one",
    }


def test_a_later_tlv_does_not_replace_a_malformed_first_one() -> None:
    header = with_tlvs(
        aws(b"\xff"),
        tlv(AZURE, b"\x01"),
        tlv(GOOGLE, b""),
        aws(b"x"),
        azure(1),
        google(1),
    )
    assert header.log_details() == {}


def test_a_tlv_of_another_subtype_is_another_tlv() -> None:
    header = with_tlvs(aws(b"x", subtype=2), aws(ENDPOINT), azure(9, 3), azure(LINK))
    assert header.aws_vpce_id == ENDPOINT
    assert header.azure_link_id == LINK


def test_text_is_printable_and_of_bounded_length() -> None:
    header = with_tlvs(
        aws(b"vpce\x1b[2J\r\n\x00" + b"a" * 500),
        tlv(NETNS, b"n\xff\n" + b"b" * 500),
    )
    assert header.log_details() == {
        "aws_vpce_id": r"vpce\x1b[2J\r\n\x00" + "a" * 117 + "...",
        "netns": r"n\xff\n" + "b" * 125 + "...",
    }
