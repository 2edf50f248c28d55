"""The addresses of a backend: what is remembered of them, and for how long."""

import asyncio
from ipaddress import ip_address

import pytest

from proxyshim.addresses import Address, SocketName
from proxyshim.backend import addresses as module
from proxyshim.backend.address import AVOID_FAILED_S
from proxyshim.backend.addresses import (
    MAX_TTL_S,
    MIN_TTL_S,
    PROTECTED_S,
    RETRY_S,
    BackendAddresses,
)
from proxyshim.backend.backend_list import BackendList
from proxyshim.backend.lookup import Found, LookupFailed

ONE, TWO = ip_address("192.0.2.1"), ip_address("192.0.2.2")
SIX = ip_address("2001:db8::1")


class Lookup:
    """Answers what the test says."""

    def __init__(self) -> None:
        self.answer: Found | None = None

    def become(self, *found: Address, ttl_s: float = 60.0) -> None:
        by_version = {
            version: tuple(each for each in found if each.version == version)
            for version in (4, 6)
        }
        self.answer = Found(by_version, ttl_s)

    async def find(self, name: str) -> Found:
        assert name == "mx.example"
        if self.answer is None:
            raise LookupFailed("no answer")
        return self.answer


class Bench:
    """Addresses on a clock of the test, resolved when it says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lookup = Lookup()
        self.addresses = BackendAddresses(
            SocketName(host="mx.example", port=25),
            self.lookup,
            clock=lambda: self.now,
        )

    def refresh(self) -> float:
        return asyncio.run(self.addresses.refresh())

    def order(self) -> list[str]:
        return [str(each) for each in BackendList([self.addresses]).in_order()]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module, "in_order", list)
    return Bench()


def test_nothing_is_known_before_the_first_answer(bench: Bench) -> None:
    assert bench.refresh() == RETRY_S
    assert not bench.addresses.is_known
    assert not bench.addresses.knows(4)
    assert bench.addresses.failure == "no answer"


def test_an_answer_is_valid_for_its_ttl_within_limits(bench: Bench) -> None:
    for ttl_s, valid_s in ((60.0, 60.0), (0.0, MIN_TTL_S), (1e6, MAX_TTL_S)):
        bench.lookup.become(ONE, ttl_s=ttl_s)
        assert bench.refresh() == valid_s


def test_an_old_address_is_protected_for_a_day_after_its_last_answer(
    bench: Bench,
) -> None:
    bench.lookup.become(ONE)
    bench.refresh()
    bench.now = 1_000.0
    bench.refresh()
    bench.lookup.become(TWO)
    bench.now = 2_000.0
    bench.refresh()
    assert bench.order() == ["192.0.2.2"]
    bench.now = 1_000.0 + PROTECTED_S - 1.0
    bench.refresh()
    assert ONE in bench.addresses
    bench.now += 1.0
    assert ONE not in bench.addresses
    assert TWO in bench.addresses


def test_the_last_addresses_stay_for_as_long_as_the_name_fails(bench: Bench) -> None:
    bench.lookup.become(ONE)
    bench.refresh()
    bench.lookup.answer = None
    bench.now = 10 * PROTECTED_S
    bench.refresh()
    assert bench.order() == ["192.0.2.1"]
    assert ONE in bench.addresses
    assert bench.addresses.knows(4)


def test_a_family_without_an_answer_is_not_known(bench: Bench) -> None:
    bench.lookup.answer = Found({4: (ONE,)})
    bench.refresh()
    assert bench.addresses.knows(4)
    assert not bench.addresses.knows(6)
    bench.lookup.become(ONE)
    bench.refresh()
    assert bench.addresses.knows(6)  # it has none


def test_the_last_addresses_of_a_family_that_fails_stay(bench: Bench) -> None:
    bench.lookup.become(ONE, SIX)
    bench.refresh()
    bench.lookup.answer = Found({4: (TWO,)})
    bench.refresh()
    assert sorted(bench.order()) == ["192.0.2.2", "2001:db8::1"]


def test_a_mapped_address_is_protected_as_the_ipv4_address(bench: Bench) -> None:
    bench.lookup.become(ip_address("::ffff:192.0.2.1"))
    bench.refresh()
    assert ONE in bench.addresses


def test_nothing_is_believed_with_more_addresses_than_we_remember(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    bench.lookup.become(ONE)
    bench.refresh()
    assert bench.addresses.knows(4)
    bench.lookup.become(TWO)
    bench.refresh()
    assert not bench.addresses.knows(4)


def test_a_record_outlives_an_answer_without_it(bench: Bench) -> None:
    bench.lookup.become(ONE, TWO)
    bench.refresh()
    [first, second] = bench.addresses.current
    bench.addresses.note_failure(first, "refused", has_others=True)
    bench.lookup.become(TWO)
    bench.refresh()
    bench.lookup.become(ONE, TWO)
    bench.refresh()
    assert list(bench.addresses.current) == [first, second]
    assert first.is_failing


def test_an_address_that_failed_is_tried_last_and_tested_by_one_session(
    bench: Bench,
) -> None:
    bench.lookup.become(ONE, TWO)
    bench.refresh()
    [first, _] = bench.addresses.current
    bench.addresses.note_failure(first, "silent", has_others=True)
    assert bench.order() == ["192.0.2.2", "192.0.2.1"]
    bench.now += AVOID_FAILED_S
    assert bench.order() == ["192.0.2.1", "192.0.2.2"]
    assert bench.order() == ["192.0.2.2", "192.0.2.1"]
    bench.addresses.note_success(first, has_others=True)
    assert bench.order() == ["192.0.2.1", "192.0.2.2"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.1"])
def test_an_address_is_its_own_and_needs_no_lookup(host: str) -> None:
    found = BackendAddresses(SocketName(host=host, port=25), Lookup())
    assert found.is_known
    assert found.knows(6)
    assert len(found.current) == 1
    own = found.current[0].ip
    assert own is not None
    assert own in found


def test_a_unix_socket_has_no_ip_address() -> None:
    found = BackendAddresses(SocketName(path="/run/mta"), Lookup())
    assert found.knows(4)
    assert ONE not in found
    assert found.ips() == frozenset()


@pytest.mark.parametrize("host", ["192.0.2.1", "mx.example"])
def test_another_port_of_the_same_host_knows_the_same_addresses(host: str) -> None:
    lookup = Lookup()
    lookup.become(ONE)
    first = BackendAddresses(SocketName(host=host, port=25), lookup)
    asyncio.run(first.refresh())
    second = BackendAddresses(SocketName(host=host, port=26), lookup)
    second.inherit(first)
    assert second.ips() == {ONE}
    assert [each.socket_address for each in second.current] == [("192.0.2.1", 26)]
    assert second.knows(4)
    assert ONE in second
