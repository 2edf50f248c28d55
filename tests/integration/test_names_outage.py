"""When the DNS answers nobody: sessions stop waiting, the log reports it, and it ends by itself."""

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from dns.rcode import SERVFAIL

from proxyshim.dns import system
from proxyshim.names import Result
from proxyshim.names.health import CLIENTS_IN_A_ROW
from tests.dns_responder import responder
from tests.integration.scripted.events import Events, captured_events
from tests.integration.test_names import (
    CLIENT,
    CONFIRMED,
    FAILED,
    NAME,
    PATIENCE_S,
    Bench,
    play,
)

FOREVER_S = 3_600.0
CLIENTS = [f"192.0.2.{n}" for n in range(1, CLIENTS_IN_A_ROW + 1)]


@pytest.fixture
def events() -> Iterator[Events]:
    with captured_events() as captured:
        yield captured


async def fail_for_everybody(bench: Bench) -> None:
    """Let enough clients wait for nothing."""
    for client in (*CLIENTS, CLIENT):
        bench.dns.be_silent(client, "PTR")
    answers = (bench.names_of(client, timeout_s=0.1) for client in CLIENTS)
    assert set(await asyncio.gather(*answers)) == {FAILED}


async def until(events: Events, event: str) -> None:
    await asyncio.to_thread(events.wait, event)


def test_clients_stop_waiting_for_a_silent_dns(events: Events) -> None:
    """The next client does not wait its whole limit; play() would end the test long before."""

    async def scenario(bench: Bench) -> None:
        await fail_for_everybody(bench)
        assert await bench.names_of(CLIENT, timeout_s=FOREVER_S) == FAILED
        assert bench.results() == {Result.TIMED_OUT: len(CLIENTS) + 1}

    play(scenario)
    [warning] = events.find("names_failing")
    assert warning["level"] == "warning"
    assert warning["detail"].startswith("no answer in time from 127.0.0.1:")


def test_one_client_after_another_is_enough(events: Events) -> None:
    async def scenario(bench: Bench) -> None:
        for client in CLIENTS:
            bench.dns.be_silent(client, "PTR")
            await bench.names_of(client, timeout_s=0.05)
        await until(events, "names_failing")

    play(scenario)


def test_the_clients_of_one_network_do_not_prove_an_outage(events: Events) -> None:
    async def scenario(bench: Bench) -> None:
        clients = [f"2001:db8::{n}" for n in range(1, 30)]
        for client in clients:
            bench.dns.be_silent(client, "PTR")
        await asyncio.gather(*(bench.names_of(each, 0.05) for each in clients))

    play(scenario)
    assert events.find("names_failing") == []


def test_any_answer_ends_the_row(events: Events) -> None:
    async def scenario(bench: Bench) -> None:
        for client in CLIENTS:
            bench.dns.be_silent(client, "PTR")
            await bench.names_of(client, timeout_s=0.05)
            await bench.names_of(f"198.51.100.{client[-1]}")  # it has no name

    play(scenario)
    assert events.find("names_failing") == []


def test_errors_for_everybody_are_reported_too(events: Events) -> None:
    async def scenario(bench: Bench) -> None:
        for client in CLIENTS:
            bench.dns.fail(client, "PTR", SERVFAIL)
            await bench.names_of(client)

    play(scenario)
    [warning] = events.find("names_failing")
    assert warning["detail"].endswith("SERVFAIL")


def test_a_probe_notices_the_recovery_without_any_client(events: Events) -> None:
    async def scenario(bench: Bench) -> None:
        await fail_for_everybody(bench)
        await until(events, "names_failing")
        bench.dns.speak_again()
        await until(events, "names_recovered")
        # Clients wait again as long as they may, whatever it takes.
        bench.dns.add_ptr("192.0.2.200", NAME)
        bench.dns.add_host(NAME, "192.0.2.200")
        asked = len(bench.dns.asked)
        answering = bench.dns.hold("192.0.2.200", "PTR")
        question = bench.resolver.ask(ip_address("192.0.2.200"), PATIENCE_S)
        await bench.dns.wait_asked(asked + 1)
        answer = asyncio.create_task(question.answer())
        done, _ = await asyncio.wait({answer}, timeout=1.0)
        assert not done
        answering.set()
        assert await answer == CONFIRMED

    play(scenario)


def test_a_name_that_is_found_during_an_outage_is_conveyed(events: Events) -> None:
    """What a stranger's dead zones look like from here must not take a live name away."""

    async def scenario(bench: Bench) -> None:
        await fail_for_everybody(bench)
        bench.dns.add_ptr("192.0.2.200", NAME)
        bench.dns.add_host(NAME, "192.0.2.200")
        assert await bench.names_of("192.0.2.200", timeout_s=5.0) == CONFIRMED
        await until(events, "names_recovered")

    play(scenario)


# /etc/resolv.conf.


def test_a_change_of_resolv_conf_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers move; nothing is restarted or reloaded."""
    monkeypatch.setattr(system, "RESOLV_CONF", tmp_path / "resolv.conf")
    monkeypatch.setattr(system, "LOOK_AGAIN_S", 0.0)
    path = tmp_path / "resolv.conf"

    async def scenario(bench: Bench) -> None:
        bench.dns.replace_port_53(monkeypatch)
        path.write_text(f"nameserver {bench.dns.host}\n")
        bench.use_system_servers()
        bench.dns.add_ptr("192.0.2.1", "before.example.")
        bench.dns.add_host("before.example.", "192.0.2.1")
        assert (await bench.names_of("192.0.2.1")).name == b"before.example"
        async with responder("127.0.0.2") as moved:
            moved.replace_port_53(monkeypatch)
            moved.add_ptr("192.0.2.2", "after.example.")
            moved.add_host("after.example.", "192.0.2.2")
            path.write_text(f"nameserver {moved.host}\n# moved\n")
            assert (await bench.names_of("192.0.2.2")).name == b"after.example"

    play(scenario)


def test_a_second_server_answers_for_a_silent_first(tmp_path: Path) -> None:
    """The first is silent for one question only; after that, it is asked last."""

    async def scenario(bench: Bench) -> None:
        for client in (*CLIENTS, CLIENT):
            bench.dns.be_silent(client, "PTR")
        async with responder() as second:
            bench.use_servers(bench.dns.address, second.address)
            for client in CLIENTS:
                second.add_ptr(client, NAME)
            second.add_host(NAME, *CLIENTS)
            for client in CLIENTS:
                assert await bench.names_of(client) == CONFIRMED
        assert len(bench.dns.asked) <= 2

    play(scenario)
