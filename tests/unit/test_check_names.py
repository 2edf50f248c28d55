"""What ``check`` says about the DNS servers."""

import asyncio
from pathlib import Path

import pytest

from proxyshim.check.names import (
    DnsFailure,
    ask_dns_servers,
    judge_dns_servers,
)
from proxyshim.config import load
from proxyshim.findings import Severity
from tests.dns_responder import responder

SILENT = DnsFailure("no answer within 3 s")
NO_ROUTE = DnsFailure("Network is unreachable", no_route=True)


@pytest.mark.parametrize(
    ("answers", "severity", "says"),
    [
        ({"192.0.2.1": SILENT}, Severity.WARNING, "the names of all clients"),
        ({"192.0.2.1": None, "::1": SILENT}, Severity.WARNING, "another server"),
        ({"192.0.2.1": NO_ROUTE}, Severity.NOTE, "Network is unreachable"),
        ({"192.0.2.1": NO_ROUTE, "::1": SILENT}, Severity.WARNING, "all clients"),
    ],
)
def test_a_server_that_does_not_answer_is_found(
    answers: dict[str, DnsFailure | None], severity: Severity, says: str
) -> None:
    [finding] = judge_dns_servers(answers)
    assert finding.severity is severity
    assert says in finding.text


def test_servers_that_answer_are_not_mentioned() -> None:
    assert list(judge_dns_servers({"192.0.2.1": None})) == []
    assert list(judge_dns_servers({})) == []


def test_each_server_is_asked_whatever_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.check.names.LIMIT_S", 0.2)

    async def scenario() -> None:
        async with responder() as good, responder() as silent:
            silent.be_silent("127.0.0.1", "PTR")
            path = tmp_path / "proxyshim.toml"
            servers = f'["{good.address}", "{silent.address}"]'
            listener = '[[listener]]\nname = "mx"\nbind = "127.0.0.1:0"\n'
            listener += 'backend = "127.0.0.1:1"\n'
            path.write_text(f"[dns]\nnameservers = {servers}\n{listener}")
            found = await ask_dns_servers(load(path))
            assert found[good.address] is None
            failure = found[silent.address]
            assert failure is not None
            assert failure.detail == "no answer within 0.2 s"
            path.write_text(
                f"[dns]\nnameservers = {servers}\n{listener}resolve = false\n"
            )
            assert await ask_dns_servers(load(path)) == {}

    asyncio.run(scenario())
