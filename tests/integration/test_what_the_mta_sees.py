"""The MTA cannot distinguish a direct client from one behind HAProxy and proxyshim.

The same client plays one script twice against the same Postfix.  The replies, Postfix's
log and the headers of the mail must be equal.  DIFFERENCES lists the exceptions, by their
headings in docs/explanation/what-the-mta-sees.md.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest

from tests.docs import ROOT, read_document
from tests.integration.lab.clients import Conversation
from tests.integration.lab.sasl import USER
from tests.integration.lab.twin_play import (
    AT_CONNECT,
    CLOSED,
    ENVELOPE,
    HELO,
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
    rewritten,
    without_ehlo,
)
from tests.integration.lab.twin_site import (
    AT_ONCE,
    CLIENTS,
    LONGEST,
    TwinSite,
    open_twin_site,
)


@pytest.fixture(scope="module")
def site() -> Iterator[TwinSite]:
    with open_twin_site() as made:
        yield made


# Known differences, which are removed before comparing.  Everything else has to be equal.
DIFFERENCES: Final = {
    "How a connection begins and ends in the log": [
        (r"^connect from \S+$", "connect from"),
        (r"^(disconnect from \S+) .*", r"\1"),
    ],
    "Warnings about names": [
        (r"^warning: hostname \S+ does not resolve to address .*", ""),
        (r"^warning: valid_hostname: .*", ""),
        (r"^warning: numeric hostname: .*", ""),
    ],
}
# Differences that have their own tests below.
TESTED_BELOW: Final = {
    "After a refusal at connect",
    "Clients that never send EHLO",
    "Commands that come too early",
    "Forged names, for milters",
    "Names that are numbers",
    "The address that the client connected to",
    "XCLIENT from a client",
}
# Differences without a test.  The document says what a test would need.
NOT_TESTED: Final = {
    "When the DNS is asked, and for how long",
    "Search domains and other sources of names",
}


# Play and compare.


def unexplained(seen: Seen) -> Seen:
    """Return *seen* without the known differences."""
    rules = [rule for each in DIFFERENCES.values() for rule in each]
    logged = [rewritten(line, rules) for line in seen.logged]
    return Seen(seen.replies, [line for line in logged if line], seen.headers)


def play_both(
    site: TwinSite, service: str, client: str, script: Script = mail
) -> tuple[Seen, Seen]:
    """Play the script both ways; return what was seen directly and behind proxyshim."""
    direct, behind = (
        unexplained(play(site, way, service, client, script))
        for way in (site.direct, site.behind)
    )
    return direct, behind


def looks_the_same(
    site: TwinSite, service: str, client: str, script: Script = mail
) -> Seen:
    """Check that only known differences occur; return what was seen."""
    direct, behind = play_both(site, service, client, script)
    assert behind == direct
    return direct


# The client's name and address.

NAMES: Final = {
    "named": "named.example",
    "named_v6": "named6.example",
    "two_ptr": "first.example",
    "underscore": "a_b.example",
    "bare_label": "bare",
    "upper_case": "UPPER.Example",
    "longest_name": LONGEST,
    "etc_hosts": "relay.corp.example",
    "etc_hosts_bare": "oldrelay",
    "many_addresses": "many.example",
}
UNKNOWN: Final = [
    "mismatch",
    "mismatch_v6",
    "name_does_not_exist",
    "no_ptr",
    "no_ptr_v6",
    "two_ptr_first_does_not_match",
    "two_ptr_first_is_no_host_name",
    "trailing_hyphen",
    "numeric",
    "ptr_says_localhost",
    "dns_timeout",
    "dns_timeout_forward",
    "dns_refused",
    "dns_refused_forward",
    "space",
    "nul",
    "not_ascii",
    "claims_a_name_of_etc_hosts",
]
# Clients for which the DNS fails get a temporary 450; the others get a 550.
FOR_NOW: Final = [client for client in UNKNOWN if client.startswith("dns_")]
# Clients whose PTR is a host name, whether it is confirmed or not.
WITH_REVERSE_NAME: Final = [
    "mismatch",
    "mismatch_v6",
    "name_does_not_exist",
    "two_ptr_first_does_not_match",
    "ptr_says_localhost",
    "dns_timeout_forward",
    "dns_refused_forward",
    "claims_a_name_of_etc_hosts",
]


@pytest.mark.parametrize("client", [*NAMES, *UNKNOWN])
def test_postfix_sees_the_same_client_name_and_address(
    site: TwinSite, client: str
) -> None:
    seen = looks_the_same(site, "plain", client)
    address = CLIENTS[client]
    name = NAMES.get(client, "unknown")
    assert f"ID: client={name}[{address}]:PORT" in seen.logged
    written = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
    received = f"Received: from {HELO} ({name} {written})"
    assert any(header.startswith(received) for header in seen.headers)


@pytest.mark.parametrize("client", [*NAMES, *UNKNOWN])
def test_clients_without_a_confirmed_name_are_refused_alike(
    site: TwinSite, client: str
) -> None:
    seen = looks_the_same(site, "names", client)
    if client in NAMES:
        assert any("queued as" in reply for reply in seen.replies)
    else:
        code = "450 4.7.25" if client in FOR_NOW else "550 5.7.25"
        assert any(reply.startswith(code) for reply in seen.replies)


@pytest.mark.parametrize("client", ["named", "no_ptr_v6", "nul", *WITH_REVERSE_NAME])
def test_clients_without_a_reverse_name_are_refused_alike(
    site: TwinSite, client: str
) -> None:
    seen = looks_the_same(site, "reverse", client)
    accepted = any("queued as" in reply for reply in seen.replies)
    assert accepted == (client in WITH_REVERSE_NAME or client in NAMES)


# Decisions that depend on the client.


@pytest.mark.parametrize("client", ["named", "blocklisted", "blocklisted_v6"])
def test_blocklists_work_alike(site: TwinSite, client: str) -> None:
    seen = looks_the_same(site, "blocklist", client)
    refused = any("blocked using dnsbl.example" in reply for reply in seen.replies)
    assert refused == client.startswith("blocklisted")


ACCESS: Final = {
    "named": None,
    "access_by_address": "by address",
    "access_by_name": "by name",
    "access_by_parent": "by name",
    "access_by_unconfirmed_name": None,
    "access_by_reverse_name": "by reverse name",
}


@pytest.mark.parametrize(("client", "why"), ACCESS.items(), ids=ACCESS)
def test_access_maps_work_alike(site: TwinSite, client: str, why: str | None) -> None:
    seen = looks_the_same(site, "access", client)
    if why is None:
        assert any("queued as" in reply for reply in seen.replies)
    else:
        assert any(reply.endswith(f"rejected: {why}") for reply in seen.replies)


@pytest.mark.parametrize("client", ["named", "friend", "friend_v6"])
def test_the_same_clients_may_relay(site: TwinSite, client: str) -> None:
    seen = looks_the_same(site, "plain", client)
    relays = not any("Relay access denied" in reply for reply in seen.replies)
    assert relays == client.startswith("friend")


@pytest.mark.parametrize(
    "helo", [HELO, "nowhere.example", "short", "-bad-", "[198.51.100.11]"]
)
@pytest.mark.parametrize("service", ["helo", "helo" + AT_ONCE])
def test_helo_checks_work_alike(site: TwinSite, service: str, helo: str) -> None:
    looks_the_same(site, service, "named", partial(mail, helo=helo))


def test_pipelining_and_chunking_look_the_same(site: TwinSite) -> None:
    seen = looks_the_same(site, "plain", "named", pipelined)
    assert any("queued as" in reply for reply in seen.replies)


def masked(talk: Conversation, hello: str) -> Iterator[str]:
    """Send mail as through a firewall that masks the client's EHLO."""
    yield str(talk.reply())
    yield str(talk.ask(f"XXXX {HELO}"))
    yield str(talk.ask(f"{hello} {HELO}"))
    yield str(talk.ask("MAIL FROM:<sender@client.example>"))
    yield str(talk.ask("RCPT TO:<user@example.test>"))
    yield str(talk.ask("DATA"))
    talk.send(b"Subject: a\r\n\r\nProxy settings: none\r\nSTARTTLS\r\n")
    talk.send(b"x" * 20_000 + b"\r\n.\r\n")
    yield str(talk.reply())
    yield str(talk.ask("STARTTLS" if hello == "EHLO" else "NOOP"))


@pytest.mark.parametrize("hello", ["HELO", "EHLO"])
def test_mail_after_an_unknown_command_looks_the_same(
    site: TwinSite, hello: str
) -> None:
    seen = looks_the_same(site, "login", "named", partial(masked, hello=hello))
    assert seen.replies[1].startswith("50")
    assert any("queued as" in reply for reply in seen.replies)
    assert seen.replies[-1].startswith("2")


# Commands that come too early (smtpd_forbid_unauth_pipelining = yes).


def test_commands_in_one_packet_with_ehlo_are_served(site: TwinSite) -> None:
    script = partial(hasty, octets=b"EHLO a.example\r\n" + ENVELOPE + b"QUIT\r\n")
    direct, behind = play_both(site, "early", "named", script)
    assert [reply[:3] for reply in direct.replies] == ["220", "554", CLOSED[:3]]
    assert [reply[:3] for reply in behind.replies] == [
        *("220", "250", "250", "250", "221"),
        CLOSED[:3],
    ]


def test_nothing_follows_postfixs_refusal_of_pipelining_after_helo(
    site: TwinSite,
) -> None:
    script = partial(hasty, octets=b"HELO a.example\r\n" + ENVELOPE)
    direct, behind = play_both(site, "early", "named", script)
    refused = "554 5.5.0 Error: SMTP protocol synchronization"
    assert direct.replies[1:] == [refused, CLOSED]
    assert behind.replies[2:] == [refused, CLOSED]
    assert behind.replies[1].startswith("250")


@pytest.mark.parametrize("first", ["HELO printer.example", "NOOP", ""])
def test_starttls_without_ehlo_works_as_directly(site: TwinSite, first: str) -> None:
    script = partial(without_ehlo, first=first)
    direct, behind = play_both(site, "login", "named", script)
    assert "220 2.0.0 Ready to start TLS" in direct.replies
    assert behind.replies == direct.replies


# Refused at connect (smtpd_delay_reject = no).


@pytest.mark.parametrize(("service", "client", "code"), AT_CONNECT)
def test_the_same_clients_are_refused_at_connect(
    site: TwinSite, service: str, client: str, code: str
) -> None:
    """Reply and log are the same; then proxyshim disconnects from both sides."""
    direct, behind = play_both(site, service + AT_ONCE, client)
    assert direct.replies[0].startswith(code)
    if code == "220":
        assert behind == direct
        return
    assert behind.replies == [direct.replies[0], CLOSED]
    at_connect = "NOQUEUE: reject: CONNECT from"
    assert any(line.startswith(at_connect) for line in direct.logged)
    at_xclient = "NOQUEUE: reject: XCLIENT from"
    assert behind.logged == [
        line.replace(at_connect, at_xclient) for line in direct.logged
    ]


# Anvil limits: connections at one time, and per minute.


@pytest.mark.parametrize(("service", "at_once"), [("crowd", True), ("rush", False)])
def test_limits_on_connections_work_alike(
    site: TwinSite, service: str, at_once: bool
) -> None:
    direct = greetings(site, site.direct, service, at_once)
    assert direct[1].startswith("220")
    assert direct[2].startswith("421 4.7.0")
    assert greetings(site, site.behind, service, at_once) == direct


# TLS and AUTH.


def test_starttls_looks_the_same(site: TwinSite) -> None:
    seen = looks_the_same(site, "login", "named", partial(inside_tls, then=mail))
    assert any("TLSv1.3" in header for header in seen.headers)


@pytest.mark.parametrize(
    "script", [login, partial(inside_tls, then=login)], ids=["plaintext", "tls"]
)
def test_a_client_that_logs_in_may_relay(site: TwinSite, script: Script) -> None:
    seen = looks_the_same(site, "login", "named", script)
    assert not any("Relay access denied" in reply for reply in seen.replies)
    assert any(f"(Authenticated sender: {USER})" in each for each in seen.headers)


def test_a_wrong_password_is_refused_alike(site: TwinSite) -> None:
    seen = looks_the_same(site, "login", "named", partial(login, password="wrong"))
    assert any(reply.startswith("535") for reply in seen.replies)


# The attributes that policy servers and milters get.


@pytest.mark.parametrize(
    "client", ["named", "named_v6", "mismatch", "no_ptr", "dns_refused_forward"]
)
def test_a_policy_server_gets_the_same_attributes(site: TwinSite, client: str) -> None:
    direct = policy_request(site, site.direct, client)
    behind = policy_request(site, site.behind, client)
    changed = {key for key in direct | behind if direct.get(key) != behind.get(key)}
    assert changed == {"server_address", "server_port"}
    address = CLIENTS[client]
    assert (behind["server_address"], int(behind["server_port"])) == site.behind.to(
        "policy", address
    )


@pytest.mark.parametrize(
    "client", ["named", "named_v6", "mismatch", "no_ptr", "dns_refused_forward"]
)
def test_a_milter_gets_the_same_values(site: TwinSite, client: str) -> None:
    direct = milter_saw(site, site.direct, client)
    behind = milter_saw(site, site.behind, client)
    changed = {key for key in direct | behind if direct.get(key) != behind.get(key)}
    if client == "mismatch":
        changed.remove("{client_resolve}")
        words = (direct["{client_resolve}"], behind["{client_resolve}"])
        assert words == ("FORGED", "FAIL")
    assert changed == {"{daemon_addr}", "{daemon_port}"}
    assert direct["port"] == "PORT"
    to = (behind["{daemon_addr}"], int(behind["{daemon_port}"]))
    assert to == site.behind.to("milter", CLIENTS[client])


def test_a_milter_first_sees_proxyshim(site: TwinSite) -> None:
    mark = site.milter.lines.mark()
    milter_saw(site, site.behind, "named")
    hosts = [json.loads(line)["host"] for line in site.milter.lines.since(mark)]
    assert hosts[-2:] == ["127.0.0.1", CLIENTS["named"]]


# The other differences.


def test_a_name_that_is_a_number_is_not_confirmed(site: TwinSite) -> None:
    direct, behind = play_both(site, "names", "number_in_disguise")
    assert any("queued as" in reply for reply in direct.replies)
    assert any(reply.startswith("550 5.7.25") for reply in behind.replies)
    # As a reverse name it counts.
    direct, behind = play_both(site, "reverse", "number_in_disguise")
    assert behind.replies == direct.replies


def test_a_clients_own_xclient_is_refused_in_postfixs_words(site: TwinSite) -> None:
    """Outside a transaction the refusal is the same as Postfix's, word for word."""
    direct, behind = play_both(site, "plain", "named", own_xclient)
    refusal = "550 5.7.0 Error: insufficient authorization"
    assert direct.replies[2:5:2] == [
        refusal,
        "503 5.5.1 Error: MAIL transaction in progress",
    ]
    assert behind.replies[2:5:2] == [refusal, refusal]
    assert behind.replies[:2] == direct.replies[:2]


def test_every_difference_is_explained_in_the_documents() -> None:
    page = read_document(ROOT / "docs" / "explanation" / "what-the-mta-sees.md")
    explained = re.findall(r"(?m)^### (.+)$", page.text)
    assert set(explained) == set(DIFFERENCES) | TESTED_BELOW | NOT_TESTED
