"""Which claims are believed, which make a check, and which addresses a host can have."""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from proxyshim.addresses import Address, Endpoint
from proxyshim.allowlist import Networks
from proxyshim.errors import Reason
from proxyshim.identity import Identity
from proxyshim.proxy_header import Command, Family, ProxyHeader
from proxyshim.session.trust import Trust, identify_claim, identify_peer, is_unicast

PROXY = Endpoint(ip_address("192.0.2.4"), 51_000)
LOCAL = Endpoint(ip_address("192.0.2.25"), 25)
CLIENT = Endpoint(ip_address("203.0.113.7"), 40_001)
SERVER = Endpoint(ip_address("198.51.100.25"), 2525)
CLIENT_6 = Endpoint(ip_address("2001:db8::7"), 40_001)
SERVER_6 = Endpoint(ip_address("2001:db8::25"), 25)


def believes_all(_: Address, __: Endpoint | None) -> bool:
    return True


def believes_none(_: Address, __: Endpoint | None) -> bool:
    return False


CLAIMS = {
    "v1 TCP4": ProxyHeader(1, Command.PROXY, Family.TCP4, CLIENT, SERVER),
    "v2 TCP4": ProxyHeader(2, Command.PROXY, Family.TCP4, CLIENT, SERVER),
    "v2 TCP6": ProxyHeader(2, Command.PROXY, Family.TCP6, CLIENT_6, SERVER_6),
}
NO_CLAIMS = {
    "v1 UNKNOWN": ProxyHeader(1, Command.UNKNOWN, Family.UNSPEC),
    "v2 LOCAL": ProxyHeader(2, Command.LOCAL, Family.UNSPEC),
    "v2 UNSPEC": ProxyHeader(2, Command.UNSPEC, Family.UNSPEC),
    "v2 UDP4": ProxyHeader(2, Command.UNSPEC, Family.UDP4),
    "v2 UNIX": ProxyHeader(
        2,
        Command.PROXY,
        Family.UNIX,
        source_path=b"/run/a",
        destination_path=b"/run/b",
    ),
}


@pytest.mark.parametrize("header", CLAIMS.values(), ids=CLAIMS.keys())
def test_a_believed_claim_is_the_client(header: ProxyHeader) -> None:
    identity = identify_claim(header, PROXY, lambda: LOCAL, believes_all)
    assert identity == Identity(header.source, header.destination)
    assert identity.check_only is None


@pytest.mark.parametrize("header", CLAIMS.values(), ids=CLAIMS.keys())
def test_a_claim_that_is_not_believed_is_a_check_by_the_proxy(
    header: ProxyHeader,
) -> None:
    identity = identify_claim(header, PROXY, lambda: LOCAL, believes_none)
    assert identity == Identity(PROXY, LOCAL, Reason.CLAIM_NOT_BELIEVED)


@pytest.mark.parametrize("header", NO_CLAIMS.values(), ids=NO_CLAIMS.keys())
def test_a_header_without_addresses_is_a_check_by_the_proxy(
    header: ProxyHeader,
) -> None:
    identity = identify_claim(header, PROXY, lambda: LOCAL, believes_all)
    assert identity == Identity(PROXY, LOCAL, Reason.NO_CLIENT_ADDRESS)


def test_the_rule_is_asked_only_about_the_claimed_source_address() -> None:
    asked: list[Address] = []

    def believes(address: Address, proxy: Endpoint | None) -> bool:
        assert proxy == PROXY
        asked.append(address)
        return False

    for header in CLAIMS.values():
        identify_claim(header, PROXY, lambda: LOCAL, believes)
    assert asked == [CLIENT.address, CLIENT.address, CLIENT_6.address]


@pytest.mark.parametrize("header", NO_CLAIMS.values(), ids=NO_CLAIMS.keys())
def test_a_check_over_a_unix_socket_has_no_address(header: ProxyHeader) -> None:
    identity = identify_claim(header, None, lambda: None, believes_all)
    assert identity == Identity(None, None, Reason.NO_CLIENT_ADDRESS)


@pytest.mark.parametrize(
    "peer", [PROXY, CLIENT_6, Endpoint(ip_address("127.0.0.1"), 9)]
)
def test_a_peer_without_a_header_is_the_client_whatever_its_address(
    peer: Endpoint,
) -> None:
    assert identify_peer(peer, LOCAL) == Identity(peer, LOCAL)


# The rule itself.


def trust(
    *,
    untrusted: str = "",
    believed: str = "",
    backend: Collection[Address] = (),
    listed: str = "",
) -> Trust:
    """Return the rule of a listener with these lists, whose entries are separated by spaces."""

    def read(entries: str) -> Networks:
        return Networks.from_entries(entries.split(), "test")

    return Trust(read(untrusted), read(believed), frozenset(backend), read(listed))


def test_the_proxys_own_address_is_not_believed() -> None:
    claimed = ip_address("203.0.113.50")
    proxy = Endpoint(claimed, 4_000)
    assert not trust().believes(claimed, proxy)
    assert trust().believes(ip_address("203.0.113.51"), proxy)
    assert trust().believes(claimed, None)


def test_an_address_of_the_backend_is_not_believed() -> None:
    claimed = ip_address("203.0.113.90")
    assert not trust(backend={claimed}).believes(claimed, PROXY)


def test_believed_claims_override_the_rule_and_untrusted_claims_both() -> None:
    loopback = ip_address("127.0.0.1")
    assert not trust().believes(loopback, PROXY)
    assert trust(believed="127.0.0.1").believes(loopback, PROXY)
    both = trust(believed="127.0.0.1", untrusted="127.0.0.0/8")
    assert not both.believes(loopback, PROXY)


# Addresses that no single host can have on a network.


def test_every_first_octet_of_ipv4_is_judged() -> None:
    believable = {
        octet
        for octet in range(256)
        if is_unicast(IPv4Address(bytes([octet, 0, 2, 1])))
    }
    assert believable == set(range(1, 224)) - {127} | set(range(240, 256))


def test_every_first_octet_of_ipv6_is_judged() -> None:
    believable = {
        octet
        for octet in range(256)
        if is_unicast(IPv6Address(bytes([octet]) + bytes(14) + b"\x02"))
    }
    assert believable == set(range(255))


def by_ipaddress(address: Address) -> bool:
    """Judge by the properties of ipaddress, and by two rules that it lacks."""
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        return False
    return address not in ip_network("0.0.0.0/8") and str(address) != "255.255.255.255"


@pytest.mark.parametrize("version", [4, 6])
def test_is_unicast_agrees_with_ipaddress(version: int) -> None:
    """Rules change between first octets, so test the lowest and highest addresses of each."""
    octets = 4 if version == 4 else 16
    new = IPv4Address if version == 4 else IPv6Address
    for first in range(256):
        lowest = first << 8 * (octets - 1)
        highest = lowest + (1 << 8 * (octets - 1)) - 1
        for number in (lowest, lowest + 1, lowest + 2, highest - 1, highest):
            address = new(number)
            assert is_unicast(address) is by_ipaddress(address), address


BELIEVABLE = [
    "1.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "126.255.255.255",
    "128.0.0.0",
    "169.254.1.1",
    "192.0.2.1",
    "192.168.1.255",
    "223.255.255.255",
    "255.255.255.254",
    "::2",
    "64:ff9b::c000:201",
    "2001:db8::1",
    "fc00::1",
    "fe80::1",
    "feff:ffff::1",
]
NOT_BELIEVABLE = [
    "0.0.0.0",
    "0.0.0.1",
    "0.255.255.255",
    "127.0.0.0",
    "127.0.0.1",
    "127.255.255.255",
    "224.0.0.0",
    "239.255.255.255",
    "255.255.255.255",
    "::",
    "::1",
    "ff00::",
    "ff02::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
]


@pytest.mark.parametrize("text", BELIEVABLE)
def test_an_address_that_a_host_can_have_is_unicast(text: str) -> None:
    assert is_unicast(ip_address(text))


@pytest.mark.parametrize("text", NOT_BELIEVABLE)
def test_an_address_that_no_single_host_can_have_is_not_unicast(text: str) -> None:
    assert not is_unicast(ip_address(text))
