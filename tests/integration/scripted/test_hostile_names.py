"""Answers from the DNS are a stranger's input: their size, and the lookups that never end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.scripted.headers import CLIENT, v2
from tests.integration.scripted.mta import GREETING
from tests.integration.scripted.name_server import Dns
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import LISTED, SETTINGS, Rig, connect, write_config
from tests.integration.scripted.test_names_in_session import (
    FOR_NOW,
    NAME,
    NAMED,
    WITHOUT_NAMES,
)
from tests.integration.scripted.wire import LIMIT_S

Resolving = Callable[..., Rig]

DEAD = [f"2001:db8:dead:1::{n:x}" for n in range(1, 13)]


def closed_story(rig: Rig, *, expect: bytes) -> dict[str, object]:
    """Run a session of the client whose XCLIENT is *expect*; return its last log line."""
    client = rig.connect(LISTED)
    client.send(v2())
    mta = rig.accept()
    assert mta.introduce() == expect
    client.expect(GREETING)
    client.close()
    mta.close()
    return dict(rig.story())


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_an_answer_of_an_attackers_size_counts_as_not_known_now(
    dns: Dns, resolving: Resolving, kind: str
) -> None:
    """53 kB of PTR records, which took 50 ms of everybody's time to read."""
    names = [f"{'x' * 60}{n}.example." for n in range(700)]
    dns.served.add_ptr(CLIENT, NAME, *names)
    dns.served.add_host(NAME, CLIENT)
    if kind == "tcp":
        dns.served.truncate(CLIENT, "PTR")
    story = closed_story(resolving(), expect=FOR_NOW)
    assert story["names"] == "failed"


def test_too_many_addresses_count_as_not_known_now(
    dns: Dns, resolving: Resolving
) -> None:
    """Each record is small, and there are more of them than we read."""
    dns.served.add_ptr(CLIENT, NAME)
    hosts = [f"192.0.{n // 250}.{n % 250}" for n in range(520)]
    dns.served.add_host(NAME, CLIENT, *hosts)
    dns.served.truncate(NAME, "A")
    half = FOR_NOW.replace(
        b"REVERSE_NAME=[TEMPUNAVAIL]", b"REVERSE_NAME=client.example"
    )
    assert closed_story(resolving(), expect=half)["names"] == "failed"


def test_a_session_with_names_or_without_any_reports_no_failure(
    dns: Dns, resolving: Resolving
) -> None:
    assert "names" not in closed_story(resolving(), expect=WITHOUT_NAMES)


def test_a_silent_dns_server_shows_in_the_log(dns: Dns, resolving: Resolving) -> None:
    dns.served.be_silent(CLIENT, "PTR")
    story = closed_story(resolving(resolve_timeout_s=0.05), expect=FOR_NOW)
    assert story["names"] == "timeout"


def test_a_dead_zone_takes_no_name_from_another_client(
    dns: Dns, resolving: Resolving
) -> None:
    """All places are taken by clients of one IPv6 network, whose reverse zone is dead."""
    for address in DEAD:
        dns.served.be_silent(address, "PTR")
    dns.add_confirmed_name(CLIENT, NAME)
    rig = resolving("max_in_flight = 10\n", resolve_timeout_s=LIMIT_S)
    for address in DEAD:
        rig.connect(LISTED).send(v2(address))
        rig.accept()
    dns.wait(dns.served.wait_asked(10))
    rig.connect(LISTED).send(v2())
    assert rig.accept().introduce() == NAMED


def test_answers_leave_nothing_behind_but_names(dns: Dns, tmp_path: Path) -> None:
    """250 records are forgotten with the answer: they were 112 kB for each client."""
    clients = [f"203.0.113.{n}" for n in range(1, 121)]
    for client in clients:
        name = f"host-{client.replace('.', '-')}.example."
        dns.served.add_ptr(client, name)
        addresses = [f"192.0.2.{n}" for n in range(1, 250)]
        dns.served.add_host(name, *addresses, client)
        dns.served.truncate(name, "A")
    listener = {
        "name": "mx",
        "bind": ["127.0.0.1:0"],
        "backend": f"unix:{tmp_path}/nobody",
        "haproxy_hosts": "haproxy_hosts",
        **SETTINGS,
        "resolve": True,
    }
    (tmp_path / "haproxy_hosts").write_text(f"{LISTED}\n")
    table = f'[dns]\nnameservers = ["{dns.served.address}"]\n'
    config = write_config(tmp_path, [listener], table)

    def run_session(client: str, questions: int) -> None:
        with connect(shim.address, LISTED) as wire:
            wire.send(v2(client))
            wire.last_words()  # there is no backend; the lookup goes on
        dns.wait(dns.served.wait_asked(questions))

    with Process(config) as shim:
        for n, client in enumerate(clients[:20], 1):  # until everything is loaded
            run_session(client, 3 * n)  # PTR, A by UDP, A by TCP
        before = shim.forget_peak_memory()
        for n, client in enumerate(clients[20:], 21):
            run_session(client, 3 * n)
        grown = shim.peak_memory() - before
    assert grown < 1_000_000
