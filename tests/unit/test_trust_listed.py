"""A proxy is never believed to be a client, and how far believed_claims overrides that."""

from ipaddress import ip_address

import pytest

from proxyshim.addresses import Endpoint
from tests.unit.test_trust import trust

PROXY = Endpoint(ip_address("192.0.2.4"), 51_000)


def believed_of(listed: str, claimed: str, believed: str = "") -> bool:
    """Return True if PROXY may claim *claimed* for a client."""
    rule = trust(listed=f"192.0.2.4 {listed}", believed=believed)
    return rule.believes(ip_address(claimed), PROXY)


@pytest.mark.parametrize(
    ("listed", "claimed"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9/32", "203.0.113.9"),
        ("203.0.113.0/24", "203.0.113.77"),
        ("::ffff:203.0.113.0/120", "203.0.113.77"),
        ("2001:db8::9", "2001:db8::9"),
        ("2001:db8::/64", "2001:db8::77"),
    ],
)
def test_a_listed_address_is_not_believed_as_a_client(
    listed: str, claimed: str
) -> None:
    assert not believed_of(listed, claimed)
    assert believed_of("198.51.100.1", claimed)


def test_no_proxy_is_a_client_on_a_unix_socket_either() -> None:
    rule = trust(listed="203.0.113.9")
    assert not rule.believes(ip_address("203.0.113.9"), None)


def test_a_listed_network_whose_clients_are_believed() -> None:
    assert believed_of("203.0.113.0/24", "203.0.113.77", believed="203.0.113.0/24")
    assert believed_of("203.0.113.0/24", "203.0.113.77", believed="203.0.113.64/26")
    assert not believed_of("203.0.113.0/24", "203.0.113.7", believed="203.0.113.64/26")
    assert believed_of("2001:db8::/64", "2001:db8::7", believed="2001:db8::/32")


@pytest.mark.parametrize("believed", ["203.0.113.0/24", "128.0.0.0/1"])
def test_a_believed_network_never_covers_a_single_listed_address(believed: str) -> None:
    listed = "203.0.113.0/24 203.0.113.9"
    assert not believed_of(listed, "203.0.113.9", believed)
    assert believed_of(listed, "203.0.113.10", believed)
    assert believed_of(listed, "203.0.113.9", f"{believed} 203.0.113.9")


def test_a_believed_network_never_covers_the_proxys_own_address() -> None:
    proxy = Endpoint(ip_address("203.0.113.50"), 4_000)
    own = ip_address("203.0.113.50")
    network = trust(listed="203.0.113.0/24", believed="203.0.113.0/24")
    assert not network.believes(own, proxy)
    single = trust(listed="203.0.113.0/24", believed="203.0.113.50")
    assert single.believes(own, proxy)


def test_a_believed_network_never_covers_an_address_of_the_backend() -> None:
    backend = ip_address("203.0.113.90")
    network = trust(backend={backend}, believed="203.0.113.0/24")
    assert not network.believes(backend, PROXY)
    assert trust(backend={backend}, believed="203.0.113.90").believes(backend, PROXY)


@pytest.mark.parametrize(
    ("network", "claimed"),
    [
        ("127.0.0.0/8", "127.0.0.1"),
        ("127.0.0.0/31", "127.0.0.1"),
        ("64.0.0.0/2", "127.9.9.9"),
        ("::/127", "::1"),
        ("::/127", "::"),
        ("0.0.0.0/8", "0.0.0.0"),
        ("224.0.0.0/4", "224.0.0.1"),
        ("255.255.255.0/24", "255.255.255.255"),
    ],
)
def test_a_believed_network_never_covers_loopback_or_what_no_host_has(
    network: str, claimed: str
) -> None:
    address = ip_address(claimed)
    assert not trust(believed=network).believes(address, PROXY)
    assert trust(believed=f"{network} {claimed}").believes(address, PROXY)


def test_a_believed_network_never_covers_this_hosts_own_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = ip_address("203.0.113.25")
    monkeypatch.setattr("proxyshim.session.trust.is_local", lambda it: it == own)
    assert not trust(believed="203.0.113.0/24").believes(own, PROXY)
    assert trust(believed="203.0.113.25").believes(own, PROXY)


def test_untrusted_claims_are_stronger_than_a_single_believed_address() -> None:
    rule = trust(
        listed="203.0.113.9", believed="203.0.113.9", untrusted="203.0.113.0/24"
    )
    assert not rule.believes(ip_address("203.0.113.9"), PROXY)
