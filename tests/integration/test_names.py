"""The resolver against a scripted DNS server on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import uvloop
from dns.name import Name
from dns.rcode import REFUSED, SERVFAIL, Rcode

from proxyshim.dns.client import TRY_S
from proxyshim.dns.system import System
from proxyshim.metrics import Metrics
from proxyshim.names import Resolver, ResolverSettings, Result, resolver
from proxyshim.names.lookup import (
    DEFAULT_TTL_S,
    FAILURE_TTL_S,
    MAX_TTL_S,
    MIN_TTL_S,
)
from proxyshim.smtp.xclient import NO_NAMES, TEMPUNAVAIL, UNAVAILABLE, Names
from tests.dns_responder import Responder, labels, responder

LIMIT_S = 20.0  # for a whole scenario, on however busy a machine
PATIENCE_S = 10.0  # how long a session waits if the test expects an answer
CLIENT, CLIENT6 = "198.51.100.7", "2001:db8:51::7"
NAME = "client.example."

CONFIRMED = Names(b"client.example", b"client.example")
UNCONFIRMED = Names(UNAVAILABLE, b"client.example")
HALF = Names(TEMPUNAVAIL, b"client.example")
FAILED = Names(TEMPUNAVAIL, TEMPUNAVAIL)


class Bench:
    """A resolver that asks that server, with a clock that the test sets."""

    def __init__(self, dns: Responder, settings: ResolverSettings) -> None:
        self.dns = dns
        self.metrics = Metrics()
        self.now = 0.0
        self.resolver = Resolver(
            settings, self.metrics, System(), clock=lambda: self.now
        )

    def use_servers(self, *servers: str) -> None:
        """Ask other servers from now on; none means those of the system."""
        self.resolver = Resolver(ResolverSettings(servers), self.metrics, System())

    def use_system_servers(self) -> None:
        """Ask the servers in /etc/resolv.conf from now on."""
        self.use_servers()

    async def names_of(
        self, address: str = CLIENT, timeout_s: float = PATIENCE_S
    ) -> Names:
        return await self.resolver.ask(ip_address(address), timeout_s).answer()

    def results(self) -> dict[str, int]:
        return dict(self.metrics.name_results)


Scenario = Callable[[Bench], Awaitable[None]]


@asynccontextmanager
async def open_bench(**bounds: int) -> AsyncIterator[Bench]:
    async with responder() as dns:
        bench = Bench(dns, ResolverSettings([dns.address], **bounds))
        try:
            yield bench
        finally:
            await bench.resolver.close()


def play(scenario: Scenario, **bounds: int) -> None:
    """Run a scenario on the loop that proxyshim runs on."""

    async def run() -> None:
        async with asyncio.timeout(LIMIT_S), open_bench(**bounds) as bench:
            await scenario(bench)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


# The names of a client.

Setting = Callable[[Responder], None]


def resolves(*, with_records: Setting, to: Names, address: str = CLIENT) -> None:
    """Check the names, and that the second answer comes from the cache."""

    async def scenario(bench: Bench) -> None:
        with_records(bench.dns)
        assert await bench.names_of(address) == to
        asked = len(bench.dns.asked)
        assert await bench.names_of(address) == to
        assert len(bench.dns.asked) == asked

    play(scenario)


@pytest.mark.parametrize("address", [CLIENT, CLIENT6])
def test_a_name_that_has_the_address_is_confirmed(address: str) -> None:
    def records(dns: Responder) -> None:
        dns.add_ptr(address, NAME)
        dns.add_host(NAME, "192.0.2.1", "2001:db8::1", address)

    resolves(with_records=records, to=CONFIRMED, address=address)


def test_a_name_that_has_another_address_is_only_the_reverse_name() -> None:
    def records(dns: Responder) -> None:
        dns.add_ptr(CLIENT, NAME)
        dns.add_host(NAME, "192.0.2.1")

    resolves(with_records=records, to=UNCONFIRMED)


def test_a_name_that_does_not_exist_is_only_the_reverse_name() -> None:
    resolves(with_records=lambda dns: dns.add_ptr(CLIENT, NAME), to=UNCONFIRMED)


def test_the_other_family_confirms_nothing() -> None:
    def records(dns: Responder) -> None:
        dns.add_ptr(CLIENT, NAME)
        dns.add_host(NAME, f"::ffff:{CLIENT}")

    resolves(with_records=records, to=UNCONFIRMED)


def test_without_a_ptr_record_there_are_no_names() -> None:
    resolves(with_records=lambda dns: None, to=NO_NAMES)


def test_cnames_are_followed_in_both_directions() -> None:
    def records(dns: Responder) -> None:
        dns.add_ptr_alias(CLIENT, "7.0/25.100.51.198.in-addr.arpa.")
        dns.add_ptr(CLIENT, NAME)
        dns.add_alias(NAME, "host.provider.example.", CLIENT)

    resolves(with_records=records, to=CONFIRMED)


def test_the_first_of_several_ptr_records_counts() -> None:
    def records(dns: Responder) -> None:
        dns.add_ptr(CLIENT, NAME, "other.example.")
        dns.add_host("other.example.", CLIENT)

    resolves(with_records=records, to=UNCONFIRMED)


def test_a_host_name_after_a_bad_ptr_record_does_not_count() -> None:
    def records(dns: Responder) -> None:
        dns.add_ptr(CLIENT, "-bad.example.", NAME)
        dns.add_host(NAME, CLIENT)

    resolves(with_records=records, to=NO_NAMES)


def test_a_name_keeps_its_case() -> None:
    def records(dns: Responder) -> None:
        dns.add_ptr(CLIENT, "Client.Example.")
        dns.add_host("Client.Example.", CLIENT)

    resolves(with_records=records, to=Names(b"Client.Example", b"Client.Example"))


@pytest.mark.parametrize("bare", ["localhost.", "mail.", "0xc6336407."])
def test_a_forged_bare_name_is_not_confirmed(bare: str) -> None:
    """No search domain is appended, and a number is not read as an address."""
    reverse = bare.removesuffix(".").encode()
    resolves(
        with_records=lambda dns: dns.add_ptr(CLIENT, bare),
        to=Names(UNAVAILABLE, reverse),
    )


def test_a_name_that_etc_hosts_gives_to_another_host_is_not_confirmed() -> None:
    """/etc/hosts says that localhost is 127.0.0.1, and overrides the DNS."""

    def records(dns: Responder) -> None:
        dns.add_ptr(CLIENT, "localhost.")
        dns.add_host("localhost.", CLIENT)

    resolves(with_records=records, to=Names(UNAVAILABLE, b"localhost"))


HOSTILE = {
    "attribute": labels(b"x=1 ADDR=127", b"attacker", b"example"),
    "nul": labels(b"localhost\0", b"attacker", b"example"),
    "space": labels(b"a b", b"example"),
    "line_end": labels(b"a\r\nQUIT", b"example"),
    "equals": labels(b"a=b", b"example"),
    "dot_in_a_label": labels(b"a.b", b"example"),
    "latin1": labels(b"m\xfcller", b"example"),
    "utf8": labels("müller".encode(), b"example"),
    "numeric": labels(*CLIENT.encode().split(b".")),
    "marker": labels(b"[UNAVAILABLE]"),
    "leading_hyphen": labels(b"-a", b"example"),
    "trailing_hyphen": labels(b"a-", b"example"),
    "root": labels(),
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_invalid_host_name_counts_as_none(name: Name) -> None:
    def records(dns: Responder) -> None:
        dns.add_ptr(CLIENT, name)
        dns.add_host(str(name), CLIENT)

    resolves(with_records=records, to=NO_NAMES)


def test_the_longest_name_passes() -> None:
    longest = labels(b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61)
    octets = str(longest).removesuffix(".").encode()

    def records(dns: Responder) -> None:
        dns.add_ptr(CLIENT, longest)
        dns.add_host(str(longest), CLIENT)

    resolves(with_records=records, to=Names(octets, octets))


def test_an_answer_too_long_for_a_datagram_comes_by_tcp() -> None:
    async def scenario(bench: Bench) -> None:
        bench.dns.add_ptr(CLIENT, NAME)
        bench.dns.add_host(NAME, *(f"192.0.2.{n}" for n in range(256)), CLIENT)
        bench.dns.truncate(NAME, "A")
        assert await bench.names_of() == CONFIRMED
        assert bench.dns.asked_by_tcp == 1

    play(scenario)


# Failures and time limits.


@pytest.mark.parametrize("code", [SERVFAIL, REFUSED])
def test_a_dns_error_is_a_temporary_failure(code: Rcode) -> None:
    resolves(with_records=lambda dns: dns.fail(CLIENT, "PTR", code), to=FAILED)


@pytest.mark.parametrize("code", [SERVFAIL, REFUSED])
def test_the_reverse_name_is_kept_when_the_forward_lookup_fails(code: Rcode) -> None:
    def records(dns: Responder) -> None:
        dns.add_ptr(CLIENT, NAME)
        dns.fail(NAME, "A", code)

    resolves(with_records=records, to=HALF)


def test_a_session_waits_no_longer_than_its_limit() -> None:
    async def scenario(bench: Bench) -> None:
        bench.dns.be_silent(CLIENT, "PTR")
        assert await bench.names_of(timeout_s=0.05) == FAILED
        assert bench.results() == {Result.TIMED_OUT: 1}

    play(scenario)


def test_the_reverse_name_is_kept_when_the_forward_lookup_times_out() -> None:
    async def scenario(bench: Bench) -> None:
        bench.dns.add_ptr(CLIENT, NAME)
        bench.dns.be_silent(NAME, "A")
        question = bench.resolver.ask(ip_address(CLIENT), 1.0)
        await bench.dns.wait_asked(2)
        assert await question.answer() == HALF

    play(scenario)


def test_a_lookup_continues_without_the_session_that_asked() -> None:
    async def scenario(bench: Bench) -> None:
        bench.dns.add_ptr(CLIENT, NAME)
        bench.dns.add_host(NAME, CLIENT)
        answering = bench.dns.hold(CLIENT, "PTR")
        gone = asyncio.create_task(bench.names_of())
        await bench.dns.wait_asked(1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        answering.set()
        assert await bench.names_of() == CONFIRMED
        assert bench.dns.asked == [_PTR_OF_CLIENT, ("client.example.", "A")]

    play(scenario)


_PTR_OF_CLIENT = ("7.100.51.198.in-addr.arpa.", "PTR")


def test_a_lookup_gives_up_on_a_dead_dns_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lookup frees its place, and for a while no session waits for that client."""
    monkeypatch.setattr(resolver, "LOOKUP_LIMIT_S", 0.05)

    async def scenario(bench: Bench) -> None:
        bench.dns.be_silent(CLIENT, "PTR")
        # The library alone would keep trying for some seconds.
        async with asyncio.timeout(TRY_S):
            assert await bench.names_of() == FAILED
        assert bench.metrics.name_lookups_in_flight == 0
        assert await bench.names_of() == FAILED
        assert bench.results() == {Result.FAILED: 1, Result.CACHED: 1}

    play(scenario)


# Shared, cached, bounded.


def test_many_sessions_of_a_client_share_one_lookup() -> None:
    async def scenario(bench: Bench) -> None:
        bench.dns.add_ptr(CLIENT, NAME)
        bench.dns.add_host(NAME, CLIENT)
        answering = bench.dns.hold(CLIENT, "PTR")
        questions = [
            bench.resolver.ask(ip_address(CLIENT), PATIENCE_S) for _ in range(50)
        ]
        await bench.dns.wait_asked(1)
        assert bench.metrics.name_lookups_in_flight == 1
        answering.set()
        answers = await asyncio.gather(*(each.answer() for each in questions))
        assert set(answers) == {CONFIRMED}
        assert bench.dns.asked == [_PTR_OF_CLIENT, ("client.example.", "A")]

    play(scenario)


@pytest.mark.parametrize(
    ("ptr_ttl", "a_ttl", "kept_s"),
    [
        (300, 60, 60.0),
        (60, 300, 60.0),
        (300, 0, MIN_TTL_S),
        (86_400, 86_400, MAX_TTL_S),
    ],
)
def test_a_name_is_cached_for_the_smallest_ttl(
    ptr_ttl: int, a_ttl: int, kept_s: float
) -> None:
    async def scenario(bench: Bench) -> None:
        bench.dns.add_ptr(CLIENT, NAME, ttl=ptr_ttl)
        bench.dns.add_host(NAME, CLIENT, ttl=a_ttl)
        await kept_for(bench, kept_s)

    play(scenario)


async def kept_for(bench: Bench, seconds: float) -> None:
    """Check that the cache keeps a result for exactly that time."""
    await bench.names_of()
    assert bench.metrics.names_cached == 1
    bench.now = seconds - 0.001
    await bench.names_of()
    assert bench.results()[Result.CACHED] == 1
    bench.now = seconds
    await bench.names_of()
    assert bench.results()[Result.CACHED] == 1


def test_the_absence_of_a_name_is_cached_too() -> None:
    play(lambda bench: kept_for(bench, DEFAULT_TTL_S))


def test_a_failed_lookup_is_cached_for_a_short_time() -> None:
    async def scenario(bench: Bench) -> None:
        bench.dns.fail(CLIENT, "PTR", SERVFAIL)
        await kept_for(bench, FAILURE_TTL_S)

    play(scenario)


def test_the_cache_drops_the_least_recently_seen_client() -> None:
    async def scenario(bench: Bench) -> None:
        for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3"):
            await bench.names_of(address)
        assert bench.metrics.names_cached == 2
        bench.metrics.name_results.clear()
        for address in ("192.0.2.1", "192.0.2.3", "192.0.2.2"):
            await bench.names_of(address)
        assert bench.results() == {Result.CACHED: 2, Result.UNKNOWN: 1}

    play(scenario, max_cached=2)


def test_a_new_client_does_not_wait_when_all_lookups_are_taken() -> None:
    """Clients that are cached, or are being looked up already, are not affected."""

    async def scenario(bench: Bench) -> None:
        assert await bench.names_of("192.0.2.1") == NO_NAMES
        answering = bench.dns.hold(CLIENT, "PTR")
        first = bench.resolver.ask(ip_address(CLIENT), PATIENCE_S)
        await bench.dns.wait_asked(2)

        assert await bench.names_of("192.0.2.2") == FAILED
        assert bench.results() == {Result.UNKNOWN: 1, Result.OVERLOADED: 1}
        assert await bench.names_of("192.0.2.1") == NO_NAMES
        shared = bench.resolver.ask(ip_address(CLIENT), PATIENCE_S)
        answering.set()
        assert [await first.answer(), await shared.answer()] == [NO_NAMES, NO_NAMES]
        assert await bench.names_of("192.0.2.2") == NO_NAMES

    play(scenario, max_in_flight=1)


def test_a_dead_dns_server_does_not_pile_up_sessions() -> None:
    """Of a hundred clients at once ten wait, and the others continue immediately."""

    async def scenario(bench: Bench) -> None:
        clients = [f"192.0.2.{n}" for n in range(100)]
        for client in clients:
            bench.dns.be_silent(client, "PTR")
        answers = [
            asyncio.create_task(bench.names_of(client, timeout_s=0.2))
            for client in clients
        ]
        assert set(await asyncio.gather(*answers)) == {FAILED}
        assert bench.results() == {Result.OVERLOADED: 90, Result.TIMED_OUT: 10}
        assert bench.metrics.name_lookups_in_flight == 10

    play(scenario, max_in_flight=10)


def test_closing_the_resolver_cancels_lookups_in_flight() -> None:
    async def scenario(bench: Bench) -> None:
        bench.dns.be_silent(CLIENT, "PTR")
        bench.resolver.ask(ip_address(CLIENT), PATIENCE_S)
        await bench.dns.wait_asked(1)
        await bench.resolver.close()
        assert bench.metrics.name_lookups_in_flight == 0

    play(scenario)


# Metrics.


def test_each_result_of_a_lookup_is_counted() -> None:
    async def scenario(bench: Bench) -> None:
        bench.dns.add_ptr("192.0.2.1", "a.example.")
        bench.dns.add_host("a.example.", "192.0.2.1")
        bench.dns.add_ptr("192.0.2.2", "b.example.")
        bench.dns.fail("192.0.2.4", "PTR", SERVFAIL)
        for last in (1, 2, 3, 4, 4):
            await bench.names_of(f"192.0.2.{last}")
        assert bench.results() == {
            Result.CONFIRMED: 1,
            Result.UNCONFIRMED: 1,
            Result.UNKNOWN: 1,
            Result.FAILED: 1,
            Result.CACHED: 1,
        }
        shown = {
            sample.name: sample.value
            for metric in bench.metrics.collect()
            for sample in metric.samples
            if sample.name.startswith("proxyshim_name") and "le" not in sample.labels
        }
        assert shown["proxyshim_name_lookup_seconds_count"] == 4
        assert shown["proxyshim_name_lookup_seconds_sum"] > 0
        assert shown["proxyshim_names_cached"] == 4
        assert shown["proxyshim_name_lookups_in_flight"] == 0

    play(scenario)
