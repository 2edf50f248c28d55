"""The lookup of a backend's name: /etc/hosts, and a scripted DNS server."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from dns.rcode import SERVFAIL

from proxyshim.backend.lookup import NO_TTL_S, Found, LookupFailed, SystemLookup
from proxyshim.dns import client, system
from proxyshim.dns.system import System
from tests.dns_responder import Responder, responder

LIMIT_S = 20.0

Scenario = Callable[[SystemLookup, Responder], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Return a function that runs a scenario with these two files."""
    monkeypatch.setattr(system, "HOSTS", tmp_path / "hosts")
    monkeypatch.setattr(system, "RESOLV_CONF", tmp_path / "resolv.conf")

    def play(scenario: Scenario, *, hosts: str = "", conf: str = "") -> None:
        async def run() -> None:
            async with asyncio.timeout(LIMIT_S), responder() as dns:
                dns.replace_port_53(monkeypatch)
                text = f"nameserver {dns.host}\n{conf}"
                (tmp_path / "resolv.conf").write_text(text)
                (tmp_path / "hosts").write_text(hosts)
                await scenario(SystemLookup(System()), dns)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())

    return play


def shown(found: Found) -> list[str]:
    return [str(each) for version in (4, 6) for each in found.by_version[version]]


def test_both_families_are_found_with_the_lowest_ttl(play: Play) -> None:
    async def scenario(lookup: SystemLookup, dns: Responder) -> None:
        dns.add_host("mx.example.", "192.0.2.1", "192.0.2.2", ttl=300)
        dns.add_host("mx.example.", "2001:db8::1", ttl=60)
        found = await lookup.find("mx.example")
        assert shown(found) == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
        assert found.ttl_s == 60

    play(scenario)


def test_hosts_come_first_and_count_for_a_moment(play: Play) -> None:
    async def scenario(lookup: SystemLookup, dns: Responder) -> None:
        dns.add_host("mx.example.", "192.0.2.1", "2001:db8::1")
        found = await lookup.find("mx.example")
        assert shown(found) == ["192.0.2.9"]
        assert found.ttl_s == NO_TTL_S
        assert dns.asked == []

    play(scenario, hosts="192.0.2.9 mx.example\n")


def test_localhost_is_never_asked_for(play: Play) -> None:
    async def scenario(lookup: SystemLookup, dns: Responder) -> None:
        dns.add_host("localhost.", "192.0.2.1")
        assert shown(await lookup.find("localhost")) == ["127.0.0.1", "::1"]
        assert dns.asked == []

    play(scenario)


def test_a_short_name_is_found_in_a_search_domain(play: Play) -> None:
    async def scenario(lookup: SystemLookup, dns: Responder) -> None:
        dns.add_host("mx.b.example.", "192.0.2.1")
        assert shown(await lookup.find("mx")) == ["192.0.2.1"]
        names = list(dict.fromkeys(name for name, _ in dns.asked))
        assert names == ["mx.a.example.", "mx.b.example."]

    play(scenario, conf="search a.example b.example\n")


def test_a_name_without_an_address_fails(play: Play) -> None:
    async def scenario(lookup: SystemLookup, _: Responder) -> None:
        with pytest.raises(LookupFailed, match="Name or service not known"):
            await lookup.find("mx.example")

    play(scenario)


def test_a_failing_search_domain_ends_the_search(play: Play) -> None:
    """Otherwise the name would mean another host for as long as it fails."""

    async def scenario(lookup: SystemLookup, dns: Responder) -> None:
        dns.fail("mx.a.example.", "A", SERVFAIL)
        dns.fail("mx.a.example.", "AAAA", SERVFAIL)
        dns.add_host("mx.", "192.0.2.1")
        with pytest.raises(LookupFailed, match="SERVFAIL"):
            await lookup.find("mx")

    play(scenario, conf="search a.example\n")


def test_a_family_that_fails_is_missing(play: Play) -> None:
    async def scenario(lookup: SystemLookup, dns: Responder) -> None:
        dns.add_host("mx.example.", "192.0.2.1")
        dns.fail("mx.example.", "AAAA", SERVFAIL)
        found = await lookup.find("mx.example")
        assert set(found.by_version) == {4}

    play(scenario)


def test_a_silent_server_is_an_error_in_the_end(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TRY_S", 0.02)

    async def scenario(lookup: SystemLookup, dns: Responder) -> None:
        dns.be_silent("mx.example.", "A")
        dns.be_silent("mx.example.", "AAAA")
        with pytest.raises(LookupFailed, match="no answer in time"):
            await lookup.find("mx.example")

    play(scenario)
