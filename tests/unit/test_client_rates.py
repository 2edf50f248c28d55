"""New connections per second of one client, and of all clients together."""

import pytest

from proxyshim.errors import PeerError, Reason
from proxyshim.limits import ClientRates, ConnectionRates

START = 1_000_000.0  # like the kernel's clock, which does not start at zero


def admitted(rates: ClientRates, client: str, events: int, at: float) -> int:
    """Return how many of *events* events of *client* at one time are admitted."""
    return sum(rates.admits(client, at) for _ in range(events))


@pytest.mark.parametrize(
    ("per_second", "burst"), [(20, 20), (2.5, 2), (1, 1), (0.1, 1)]
)
def test_each_client_has_a_burst_of_one_second(per_second: float, burst: int) -> None:
    rates = ClientRates(per_second)
    assert admitted(rates, "a", 100, START) == burst
    assert admitted(rates, "b", 100, START) == burst


def test_a_clients_rate_recovers_with_time() -> None:
    rates = ClientRates(20)
    admitted(rates, "a", 100, START)
    assert admitted(rates, "a", 100, START + 0.25) == 5
    assert admitted(rates, "a", 100, START + 0.25) == 0
    assert admitted(rates, "a", 100, START + 1.25) == 20
    assert admitted(rates, "a", 100, START + 3600) == 20


@pytest.mark.parametrize("per_second", [0.1, 0.5, 1.0])
def test_a_rate_below_one_admits_one_event_now_and_then(per_second: float) -> None:
    rates = ClientRates(per_second)
    assert admitted(rates, "a", 5, START) == 1
    assert admitted(rates, "a", 5, START + 0.9 / per_second) == 0
    assert admitted(rates, "a", 5, START + 1.1 / per_second) == 1


@pytest.mark.parametrize("per_second", [0.7, 3, 7.5, 10])
def test_a_clients_rate_holds_over_time(per_second: float) -> None:
    rates = ClientRates(per_second)
    times = [START + tick / 100 for tick in range(10_001)]
    count = sum(rates.admits("a", at) for at in times)
    assert per_second * 100 - 1 <= count <= per_second * 100 + max(per_second, 1) + 1


def test_refused_events_do_not_make_a_client_wait_longer() -> None:
    rates = ClientRates(1)
    for tick in range(100):
        rates.admits("a", START + tick / 100)
    assert rates.admits("a", START + 1.0)


def test_a_client_rate_of_zero_means_unlimited() -> None:
    rates = ClientRates(0)
    assert admitted(rates, "a", 10_000, START) == 10_000
    assert len(rates) == 0


def test_clients_are_forgotten_when_their_bucket_is_full_again() -> None:
    rates = ClientRates(10)
    for client in range(5_000):
        rates.admits(str(client), START)
    assert len(rates) == 5_000
    rates.admits("a", START + 1.1)
    rates.admits("a", START + 2.2)
    assert len(rates) <= 2


def test_the_number_of_clients_that_are_remembered_is_bounded() -> None:
    rates = ClientRates(0.001)
    for client in range(5 * ClientRates.MAX_CLIENTS):
        rates.admits(str(client), START)
        assert len(rates) <= 2 * ClientRates.MAX_CLIENTS


def reason_of(rates: ConnectionRates, client: str, at: float) -> Reason | None:
    try:
        rates.check(client, at)
    except PeerError as error:
        return error.reason
    return None


def test_a_connection_over_its_clients_rate_does_not_count_for_all() -> None:
    rates = ConnectionRates()
    rates.adopt(per_second=3, per_client_per_second=1)
    assert reason_of(rates, "a", START) is None
    for _ in range(50):
        assert reason_of(rates, "a", START) is Reason.TOO_MANY_FROM_CLIENT
    assert [reason_of(rates, client, START) for client in "bcd"] == [
        None,
        None,
        Reason.TOO_MANY_CONNECTIONS,
    ]


def test_rates_without_limits_admit_everything() -> None:
    rates = ConnectionRates()
    assert not rates.are_limited
    assert {reason_of(rates, "a", START) for _ in range(100)} == {None}


@pytest.mark.parametrize("changed", [(5, 1), (3, 2)])
def test_adopting_other_limits_starts_again_and_equal_ones_do_not(
    changed: tuple[float, float],
) -> None:
    rates = ConnectionRates()
    rates.adopt(3, 1)
    assert reason_of(rates, "a", START) is None
    rates.adopt(3, 1)
    assert reason_of(rates, "a", START) is Reason.TOO_MANY_FROM_CLIENT
    rates.adopt(*changed)
    assert reason_of(rates, "a", START) is None
