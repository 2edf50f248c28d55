"""The same as test_what_the_mta_sees, with the conveyances that are no command.

Postfix then does everything itself, so fewer differences are left.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest

from tests.docs import ROOT, read_document
from tests.integration.lab.clients import Conversation
from tests.integration.lab.programs import DEADLINE_S
from tests.integration.lab.twin_play import (
    AT_CONNECT,
    CLOSED,
    ENVELOPE,
    Script,
    Seen,
    greetings,
    hasty,
    inside_tls,
    login,
    mail,
    milter_saw,
    own_xclient,
    pipelined,
    play,
    policy_request,
    without_ehlo,
)
from tests.integration.lab.twin_site import AT_ONCE, TwinSite, open_twin_site

CONVEYS: Final = ("proxy-v2", "source-address", "postfix-pass")


@pytest.fixture(scope="module", params=CONVEYS)
def site(request: pytest.FixtureRequest) -> Iterator[TwinSite]:
    with open_twin_site(request.param) as made:
        # proxyshim tests each backend before its first client, which Postfix logs.
        for service in made.behind.ports:
            play(made, made.behind, service, "named", leave)
        wait_until_quiet(made)
        yield made


def wait_until_quiet(site: TwinSite) -> None:
    """Wait until Postfix has no connection left."""
    deadline = time.monotonic() + DEADLINE_S

    def count(event: str) -> int:
        lines = site.postfix.lines.since()
        return sum(f"]: {event} from" in line for line in lines)

    while count("connect") != count("disconnect"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def leave(talk: Conversation) -> Iterator[str]:
    yield str(talk.reply())
    yield str(talk.ask("QUIT"))


def looks_the_same(
    site: TwinSite, service: str, client: str, script: Script = mail
) -> Seen:
    """Check that nothing differs; return what was seen."""
    direct, behind = (
        play(site, way, service, client, script) for way in (site.direct, site.behind)
    )
    assert behind == direct
    return direct


CLIENTS: Final = ["named", "named_v6", "mismatch", "no_ptr_v6", "dns_refused", "nul"]


@pytest.mark.parametrize("client", [*CLIENTS, "number_in_disguise", "friend_v6"])
@pytest.mark.parametrize("service", ["plain", "names", "reverse"])
def test_names_and_relaying(site: TwinSite, service: str, client: str) -> None:
    looks_the_same(site, service, client)


@pytest.mark.parametrize(
    ("service", "client"),
    [
        ("blocklist", "blocklisted"),
        ("blocklist", "blocklisted_v6"),
        ("access", "access_by_address"),
        ("access", "access_by_name"),
        ("access", "access_by_reverse_name"),
        ("helo", "named"),
        ("helo" + AT_ONCE, "named"),
    ],
)
def test_decisions(site: TwinSite, service: str, client: str) -> None:
    looks_the_same(site, service, client)


@pytest.mark.parametrize(
    "script",
    [
        login,
        partial(inside_tls, then=login),
        partial(without_ehlo, first="HELO printer.example"),
        partial(without_ehlo, first=""),
    ],
)
def test_tls_and_auth(site: TwinSite, script: Script) -> None:
    looks_the_same(site, "login", "named", script)


def test_pipelining_and_chunking(site: TwinSite) -> None:
    looks_the_same(site, "plain", "named", pipelined)


@pytest.mark.parametrize("hello", [b"EHLO", b"HELO"])
def test_commands_that_come_too_early(site: TwinSite, hello: bytes) -> None:
    script = partial(hasty, octets=hello + b" a.example\r\n" + ENVELOPE)
    seen = looks_the_same(site, "early", "named", script)
    assert any(reply.startswith("554 5.5.0") for reply in seen.replies)


@pytest.mark.parametrize(("service", "client", "code"), AT_CONNECT)
def test_refusals_at_connect(
    site: TwinSite, service: str, client: str, code: str
) -> None:
    if code == "220" or site.convey == "postfix-pass":
        looks_the_same(site, service + AT_ONCE, client)
        return
    direct, behind = (
        play(site, way, service + AT_ONCE, client, mail)
        for way in (site.direct, site.behind)
    )
    assert direct.replies[0].startswith(code)
    assert behind.replies == [direct.replies[0], CLOSED]
    assert rejects(behind) == rejects(direct)


def rejects(seen: Seen) -> list[str]:
    found = [line for line in seen.logged if "NOQUEUE: reject" in line]
    assert found
    return found


def before_the_greeting(talk: Conversation) -> Iterator[str]:
    talk.send(b"EHLO a.example\r\n")
    yield str(talk.reply())
    yield str(talk.reply())


def test_commands_before_the_greeting(site: TwinSite) -> None:
    """Postfix takes long to greet a client for which the DNS is silent."""
    direct, behind = (
        play(site, way, "early", "dns_timeout", before_the_greeting)
        for way in (site.direct, site.behind)
    )
    assert [reply[:3] for reply in direct.replies] == ["554", CLOSED[:3]]
    assert [reply[:3] for reply in behind.replies] == ["220", "250"]


@pytest.mark.parametrize(("service", "at_once"), [("crowd", True), ("rush", False)])
def test_limits_on_connections(site: TwinSite, service: str, at_once: bool) -> None:
    direct = greetings(site, site.direct, service, at_once)
    assert greetings(site, site.behind, service, at_once) == direct


@pytest.mark.parametrize("client", ["named", "named_v6", "mismatch"])
def test_policy_servers(site: TwinSite, client: str) -> None:
    direct = policy_request(site, site.direct, client)
    behind = policy_request(site, site.behind, client)
    changed = {key for key in direct | behind if direct.get(key) != behind.get(key)}
    assert changed == {"server_address", "server_port"}
    # HAProxy's address from the header, or that of Postfix's own socket.
    named = {*site.behind.addresses.values(), "127.0.0.1", "::1"}
    assert behind["server_address"] in named


@pytest.mark.parametrize("client", ["named", "named_v6", "mismatch"])
def test_milters(site: TwinSite, client: str) -> None:
    direct = milter_saw(site, site.direct, client)
    behind = milter_saw(site, site.behind, client)
    assert direct["port"] == "PORT"
    changed = {key for key in direct | behind if direct.get(key) != behind.get(key)}
    assert changed <= {"{daemon_addr}", "{daemon_port}"}
    named = {*site.behind.addresses.values(), "127.0.0.1", "::1"}
    assert behind["{daemon_addr}"] in named


def test_a_clients_own_xclient(site: TwinSite) -> None:
    looks_the_same(site, "plain", "named", own_xclient)


# The document's table of the differences: those that each conveyance leaves.

PAGE: Final = read_document(ROOT / "docs" / "explanation" / "what-the-mta-sees.md")
ALWAYS: Final = {
    "Commands that come too early",  # test_commands_before_the_greeting
    "The address that the client connected to",  # test_policy_servers
}
REFUSALS: Final = "After a refusal at connect"  # test_refusals_at_connect


def test_the_table_of_what_each_conveyance_leaves() -> None:
    rows = [row for row in PAGE.section("By conveyance").rows() if len(row) == 5]
    for number, convey in enumerate(CONVEYS, 2):
        left = ALWAYS if convey == "postfix-pass" else ALWAYS | {REFUSALS}
        assert {row[0] for row in rows if row[number]} == left
    assert {row[0] for row in rows if row[1]} == {row[0] for row in rows}
    explained = {heading for heading in PAGE.headings if heading in PAGE.text}
    assert {row[0] for row in rows} <= explained
