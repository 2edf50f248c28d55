"""What a v1 header's error names, and headers with addresses of two families."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from proxyshim.addresses import Endpoint
from proxyshim.errors import Reason
from proxyshim.proxy_header import Command, Family, ProxyHeader
from tests.proxy_headers import build_v1, reads, refusal, refuses

V4, V6 = "192.0.2.10", "2001:db8::10"
SERVER4, SERVER6 = "198.51.100.25", "2001:db8::25"
LONG6 = "2001:db8:1111:2222:3333:4444:5555:6666"

# The protocol word matches the source, and the destination is of the other family.
TWO_FAMILIES = [
    ("TCP6", V6, SERVER4, IPv6Address(V6)),
    ("TCP4", V4, SERVER6, IPv4Address(V4)),
    ("TCP6", "::ffff:192.0.2.10", SERVER4, IPv4Address(V4)),
    ("TCP4", V4, "::ffff:198.51.100.25", IPv4Address(V4)),
    ("TCP6", LONG6, "255.255.255.255", IPv6Address(LONG6)),
    ("TCP6", "::", "0.0.0.0", IPv6Address("::")),
    ("TCP4", "0.0.0.0", "::", IPv4Address("0.0.0.0")),
]


@pytest.mark.parametrize(("word", "source", "destination", "client"), TWO_FAMILIES)
def test_the_destination_is_unknown_if_it_is_of_another_family_than_the_source(
    word: str,
    source: str,
    destination: str,
    client: IPv4Address | IPv6Address,
) -> None:
    reads(
        build_v1(word, source, destination, 40001, 25),
        ProxyHeader(1, Command.PROXY, Family(word), Endpoint(client, 40001)),
    )


def test_a_v4_mapped_destination_of_a_tcp6_header_is_known() -> None:
    source, destination = IPv6Address(V6), IPv4Address(SERVER4)
    header = ProxyHeader(
        1,
        Command.PROXY,
        Family.TCP6,
        Endpoint(source, 1),
        Endpoint(destination, 2),
    )
    reads(build_v1("TCP6", V6, f"::ffff:{SERVER4}", 1, 2), header)


FAULTS = {
    # The line end.
    "TCP4 192.0.2.10 198.51.100.25 1 25\n": "line end is LF without CR",
    "UNKNOWN\n": "line end is LF without CR",
    "TCP4 192.0.2.10\rEHLO x\r\n": "line end is wrong: a CR comes before its CRLF",
    "UNKNOWN\r\r\n": "line end is wrong: a CR comes before its CRLF",
    # The protocol word.
    "\r\n": "protocol word b'' is not TCP4, TCP6 or UNKNOWN",
    " TCP4 192.0.2.10 198.51.100.25 1 25\r\n": (
        "protocol word b'' is not TCP4, TCP6 or UNKNOWN"
    ),
    "tcp4 192.0.2.10 198.51.100.25 1 25\r\n": (
        "protocol word b'tcp4' is not TCP4, TCP6 or UNKNOWN"
    ),
    "UDP4 192.0.2.10 198.51.100.25 1 25\r\n": (
        "protocol word b'UDP4' is not TCP4, TCP6 or UNKNOWN"
    ),
    "TCP4\t192.0.2.10 198.51.100.25 1 25\r\n": (
        r"protocol word b'TCP4\t192.0.2.10' is not TCP4, TCP6 or UNKNOWN"
    ),
    # The number of fields.
    "TCP4\r\n": "number of fields after TCP4 is 0, needs 4",
    "TCP4 192.0.2.10\r\n": "number of fields after TCP4 is 1, needs 4",
    "TCP6 ::1 ::1 1\r\n": "number of fields after TCP6 is 3, needs 4",
    "TCP4 192.0.2.10 198.51.100.25 1 25 x\r\n": (
        "number of fields after TCP4 is 5, needs 4"
    ),
    "TCP4 192.0.2.10  198.51.100.25 1 25\r\n": (
        "number of fields after TCP4 is 5, needs 4: there is one space too many"
    ),
    "TCP4 192.0.2.10 198.51.100.25 1 25 \r\n": (
        "number of fields after TCP4 is 5, needs 4: there is one space too many"
    ),
    # The source address, also where it does not match the protocol word.
    "TCP4  198.51.100.25 1 25\r\n": "source address is empty",
    "TCP4 2001:db8::10 198.51.100.25 1 25\r\n": (
        "source address b'2001:db8::10' is IPv6, but the protocol word is TCP4"
    ),
    "TCP4 ::ffff:192.0.2.10 198.51.100.25 1 25\r\n": (
        "source address b'::ffff:192.0.2.10' is IPv6, but the protocol word is TCP4"
    ),
    "TCP6 192.0.2.10 2001:db8::25 1 25\r\n": (
        "source address b'192.0.2.10' is IPv4, but the protocol word is TCP6"
    ),
    "TCP6 192.0.2.10 198.51.100.25 1 25\r\n": (
        "source address b'192.0.2.10' is IPv4, but the protocol word is TCP6"
    ),
    "TCP4 192.0.2.256 198.51.100.25 1 25\r\n": (
        "source address b'192.0.2.256' has a number over 255"
    ),
    "TCP4 192.0.2.1000 198.51.100.25 1 25\r\n": (
        "source address b'192.0.2.1000' has a number over 255"
    ),
    "TCP4 192.0.02.1 198.51.100.25 1 25\r\n": (
        "source address b'192.0.02.1' has a number with a leading zero"
    ),
    "TCP4 192.0.2 198.51.100.25 1 25\r\n": (
        "source address b'192.0.2' has 3 numbers, an IPv4 address has 4"
    ),
    "TCP4 client.example 198.51.100.25 1 25\r\n": (
        "source address b'client.example' is not an IP address"
    ),
    "TCP6 fe80::1%eth0 ::1 1 25\r\n": "source address b'fe80::1%eth0' has a zone id",
    "TCP6 [::1] ::1 1 25\r\n": "source address b'[::1]' is not a valid IPv6 address",
    "TCP6 1:2:3:4:5:6:7:8:9 ::1 1 25\r\n": (
        "source address b'1:2:3:4:5:6:7:8:9' is not a valid IPv6 address"
    ),
    # The destination address.  It must be valid also where its family does not count.
    "TCP6 2001:db8::10 198.51.100.256 1 25\r\n": (
        "destination address b'198.51.100.256' has a number over 255"
    ),
    "TCP6 2001:db8::10 198.051.100.25 1 25\r\n": (
        "destination address b'198.051.100.25' has a number with a leading zero"
    ),
    "TCP4 192.0.2.10 fe80::1%eth0 1 25\r\n": (
        "destination address b'fe80::1%eth0' has a zone id"
    ),
    "TCP4 192.0.2.10 2001:db8:::25 1 25\r\n": (
        "destination address b'2001:db8:::25' is not a valid IPv6 address"
    ),
    "TCP4 192.0.2.10 unix:/run/x 1 25\r\n": (
        "destination address b'unix:/run/x' is not a valid IPv6 address"
    ),
    # The ports, in both families.
    "TCP4 192.0.2.10 198.51.100.25  25\r\n": "source port is empty",
    "TCP4 192.0.2.10 198.51.100.25 65536 25\r\n": "source port b'65536' is over 65535",
    "TCP4 192.0.2.10 198.51.100.25 040001 25\r\n": (
        "source port b'040001' has a leading zero"
    ),
    "TCP6 2001:db8::10 198.51.100.25 +1 25\r\n": "source port b'+1' is not a number",
    "TCP4 192.0.2.10 198.51.100.25 1 2_5\r\n": (
        "destination port b'2_5' is not a number"
    ),
    "TCP4 192.0.2.10 198.51.100.25 1 \r\n": "destination port is empty",
    "TCP6 2001:db8::10 198.51.100.25 1 100000\r\n": (
        "destination port b'100000' is over 65535"
    ),
    f"TCP6 {LONG6} {LONG6} 40001 025\r\n": (
        "destination port b'025' has a leading zero"
    ),
}


@pytest.mark.parametrize(("rest", "fault"), FAULTS.items(), ids=list(FAULTS.values()))
def test_the_error_names_the_field_and_what_is_wrong_with_it(
    rest: str, fault: str
) -> None:
    line = b"PROXY " + rest.encode()
    assert refuses(line, Reason.HEADER_MALFORMED) == len(line)
    # The same each time, although destinations are cached.
    for _ in range(2):
        refused = refusal(line)
        assert refused
        assert refused.detail == f"v1 header: {fault}"


def test_a_line_that_is_too_long_is_refused_whatever_its_families_are() -> None:
    longest = "0000:0000:0000:0000:0000:ffff:255.255.255.255"
    line = build_v1("TCP6", longest, longest, 65535, 65535)
    assert refuses(line, Reason.HEADER_TOO_LONG) == 107
