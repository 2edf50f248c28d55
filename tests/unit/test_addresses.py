"""Addresses have one form, in which we compare and convey them."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from proxyshim.addresses import (
    Endpoint,
    fold_v4_mapped,
    read_address,
    read_socket_address,
)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("192.0.2.1", "192.0.2.1:25"),
        ("2001:DB8::0:1", "[2001:db8::1]:25"),
        ("::", "[::]:25"),
    ],
)
def test_an_endpoint_is_shown_with_its_port(address: str, text: str) -> None:
    assert str(Endpoint(ip_address(address), 25)) == text


def test_using_an_endpoints_text_does_not_change_the_endpoint() -> None:
    asked, other = (Endpoint(ip_address("2001:DB8::0:1"), 25) for _ in range(2))
    assert asked.host == asked.host == "2001:db8::1"
    assert asked == other
    assert hash(asked) == hash(other)
    assert repr(asked) == repr(other)


@pytest.mark.parametrize(
    ("address", "folded"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:0:0", "0.0.0.0"),
        ("::ffff:ffff:ffff", "255.255.255.255"),
        # These are ordinary IPv6 addresses, whatever their last 32 bits contain.
        ("::192.0.2.1", "::192.0.2.1"),
        ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.1"),
        ("::ffff:0:192.0.2.1", "::ffff:0:192.0.2.1"),
        ("1::ffff:192.0.2.1", "1::ffff:192.0.2.1"),
        ("::fffe:192.0.2.1", "::fffe:192.0.2.1"),
        ("2002:c000:201::", "2002:c000:201::"),
        ("::1", "::1"),
    ],
)
def test_only_v4_mapped_addresses_are_folded(address: str, folded: str) -> None:
    assert fold_v4_mapped(ip_address(address)) == ip_address(folded)
    assert read_address(address) == ip_address(folded)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("fe80::1%eth0", IPv6Address("fe80::1")),
        ("fe80::1%2", IPv6Address("fe80::1")),
        ("::ffff:192.0.2.1%eth0", IPv4Address("192.0.2.1")),
    ],
)
def test_a_zone_id_is_dropped(text: str, address: IPv4Address | IPv6Address) -> None:
    assert read_address(text) == address


@pytest.mark.parametrize("text", ["", "%eth0", "localhost", "192.0.2", "[::1]"])
def test_a_text_that_is_not_an_address_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6"):
        read_address(text)


@pytest.mark.parametrize(
    ("sockaddr", "text"),
    [
        (("192.0.2.1", 25), "192.0.2.1:25"),
        (("2001:db8::1", 25, 0, 0), "[2001:db8::1]:25"),
        (("fe80::1%eth0", 25, 0, 2), "[fe80::1]:25"),
        (("::ffff:192.0.2.1", 25, 0, 0), "192.0.2.1:25"),
    ],
)
def test_a_socket_address_becomes_an_endpoint(
    sockaddr: tuple[object, ...], text: str
) -> None:
    assert str(read_socket_address(sockaddr)) == text


@pytest.mark.parametrize("sockaddr", ["", "/run/a.sock", b"\0abstract", None, ()])
def test_a_unix_socket_has_no_endpoint(sockaddr: object) -> None:
    assert read_socket_address(sockaddr) is None
