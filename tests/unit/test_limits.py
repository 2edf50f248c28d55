"""Limits: connections per second, and sessions per client."""

from ipaddress import ip_address

import pytest

from proxyshim.limits import RateLimit, Shares, client_key

START = 1_000_000.0  # like the kernel's clock, which does not start at zero


def admitted(limit: RateLimit, events: int, at: float) -> int:
    """Return how many of *events* events at one time are admitted."""
    return sum(limit.admits(at) for _ in range(events))


# RateLimit.


def test_a_burst_of_one_seconds_events_is_admitted_and_no_more() -> None:
    assert admitted(RateLimit(20), 100, START) == 20


def test_a_used_up_rate_recovers_with_time() -> None:
    limit = RateLimit(20)
    admitted(limit, 100, START)
    assert admitted(limit, 100, START + 0.25) == 5
    assert admitted(limit, 100, START + 0.25) == 0
    assert admitted(limit, 100, START + 1.25) == 20


def test_silence_does_not_save_up_a_larger_burst() -> None:
    limit = RateLimit(20)
    admitted(limit, 100, START)
    assert admitted(limit, 100, START + 3600) == 20


def test_the_rate_holds_over_time() -> None:
    limit = RateLimit(10)
    admitted(limit, 10, START)
    times = [START + tick / 100 for tick in range(1, 1001)]
    assert sum(limit.admits(at) for at in times) in (99, 100)


@pytest.mark.parametrize("per_second", [0.1, 0.5, 1.0])
def test_a_rate_below_one_admits_one_event_in_its_period(per_second: float) -> None:
    limit = RateLimit(per_second)
    assert admitted(limit, 5, START) == 1
    assert admitted(limit, 5, START + 0.9 / per_second) == 0
    assert admitted(limit, 5, START + 1.1 / per_second) == 1


def test_a_rate_of_zero_means_unlimited() -> None:
    assert admitted(RateLimit(0), 10_000, START) == 10_000


# Shares.


def test_each_client_has_its_own_share() -> None:
    shares = Shares()
    assert [shares.take("a", 2) for _ in range(3)] == [True, True, False]
    assert shares.take("b", 2)


def test_a_share_given_back_can_be_taken_again() -> None:
    shares = Shares()
    assert shares.take("a", 1)
    assert not shares.take("a", 1)
    shares.give_back("a")
    assert shares.take("a", 1)


def test_giving_one_share_back_keeps_the_others() -> None:
    shares = Shares()
    assert [shares.take("a", 3) for _ in range(4)] == [True, True, True, False]
    shares.give_back("a")
    shares.give_back("a")
    assert len(shares) == 1
    assert [shares.take("a", 3) for _ in range(3)] == [True, True, False]


def test_a_client_without_shares_is_forgotten() -> None:
    shares = Shares()
    for client in map(str, range(1000)):
        assert shares.take(client, 1)
        assert not shares.take(client, 1)
        shares.give_back(client)
    assert len(shares) == 0


# client_key.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"),
        ("2001:db8:1:2::1", "2001:db8:1:2::1"),
        ("192.0.2.1", "192.0.2.1"),
    ],
)
def test_the_addresses_of_one_client_have_one_key(one: str, other: str) -> None:
    assert client_key(ip_address(one)) == client_key(ip_address(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:3::1"),
        ("192.0.2.1", "192.0.2.2"),
        ("192.0.2.1", "::192.0.2.1"),
        ("0.0.0.1", "::1"),
    ],
)
def test_the_addresses_of_two_clients_have_two_keys(one: str, other: str) -> None:
    assert client_key(ip_address(one)) != client_key(ip_address(other))


def test_a_client_key_is_an_address_or_a_64_network() -> None:
    assert client_key(ip_address("192.0.2.1")) == "192.0.2.1"
    assert client_key(ip_address("2001:db8:1:2:3::4")) == "2001:db8:1:2::/64"
