"""``proxyshim check``: what it finds in the set-up, and in replies to mail that needs relaying.

There is one row for each finding.  test_xclient_verdicts.py has those about XCLIENT.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import cast

import pytest

from proxyshim.addresses import Address, SocketName, read_socket_name
from proxyshim.allowlist import ListEntry, read_network
from proxyshim.backend.addresses import BackendAddresses
from proxyshim.backend.backend_list import BackendList
from proxyshim.backend.dial import BackendLimits, Dial
from proxyshim.backend.lookup import SystemLookup
from proxyshim.check.backends import Backend, Claim
from proxyshim.check.relaying import judge_relaying
from proxyshim.check.setup import is_own_listener, judge_setup, takes_claims
from proxyshim.check.surroundings import Surroundings
from proxyshim.config import Config
from proxyshim.conveyance.contract import STRANGER, STRANGER_V6
from proxyshim.conveyance.xclient import Xclient
from proxyshim.dns.system import System
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Finding, Severity, exit_status, summary
from proxyshim.net.reactor import Reactor
from proxyshim.smtp.replies import Reply
from tests.unit.checking import (
    ERROR,
    NOTE,
    OK,
    UNSAFE,
    WARNING,
    contains,
    failed,
    load,
    reply,
)

# --- relaying -------------------------------------------------------------------------

BELIEVED, TEN, FD = map(ip_address, ("203.0.113.1", "10.0.0.1", "fd00::1"))
CLAIMS = (
    Claim(BELIEVED, "203.0.113.0/24", explicit=True),
    Claim(TEN, "10.0.0.0/8", explicit=False),
    Claim(FD, "fc00::/7", explicit=False),
)
CLIENTS = (STRANGER, STRANGER_V6, BELIEVED, TEN, FD)
DENIED = reply("554 5.7.1 Relay access denied")
RELAYED = reply("250 2.1.5 Ok")


@dataclass(frozen=True)
class Row:
    """Replies other than "Relay access denied", and the finding that they must lead to."""

    severity: Severity
    says: str
    replies: Mapping[Address, Reply | BackendError] = field(default_factory=dict)
    unasked: tuple[Address, ...] = ()
    exit: int = 0
    alone: bool = False  # there is no other finding


ROWS = {
    "no-relaying": Row(OK, 'stranger (192.0.2.1): "554 5.7.1 Relay access denied"'),
    "no-relaying-v6": Row(OK, "does not relay for a stranger (2001:db8::1)"),
    "no-private-relaying": Row(OK, "does not relay for 203.0.113.1, 10.0.0.1, fd00::1"),
    "open-relay": Row(
        UNSAFE,
        'relays for a stranger (192.0.2.1): it replied "250 2.1.5 Ok", so it is an open',
        {STRANGER: RELAYED},
        exit=1,
    ),
    "open-relay-v6": Row(
        UNSAFE,
        "relays for a stranger (2001:db8::1)",
        {STRANGER_V6: RELAYED},
        exit=1,
    ),
    "relaying-unknown": Row(
        NOTE,
        "whether it relays for a stranger (192.0.2.1) is unknown",
        {STRANGER: reply("556 5.1.10 null MX")},
    ),
    "relays-for-private": Row(
        WARNING,
        "relays for 10.0.0.1, fd00::1: private addresses are believed when a listed proxy"
        " claims them, so if a device in front of a proxy translates addresses, every"
        " client may relay; unless your own clients with such addresses connect through a"
        ' proxy, write untrusted_claims = ["10.0.0.0/8", "fc00::/7"]',
        {TEN: RELAYED, FD: RELAYED},
    ),
    "relays-for-believed": Row(
        WARNING,
        'unless you want that, remove "203.0.113.0/24" from believed_claims',
        {BELIEVED: RELAYED},
    ),
    "the-stranger-fails": Row(
        ERROR,
        "fails in a session for the client 192.0.2.1: closed; clients could not send mail",
        {STRANGER: failed(Reason.BACKEND_CLOSED, "closed")},
        exit=1,
        alone=True,
    ),
    "the-stranger-is-refused": Row(
        OK,
        "does not relay for 203.0.113.1, 10.0.0.1, fd00::1",
        {STRANGER: failed(Reason.CLIENT_REFUSED)},
    ),
    "the-stranger-is-not-asked": Row(
        WARNING, "relays for 10.0.0.1", {TEN: RELAYED}, unasked=(STRANGER,)
    ),
    "ipv6-is-not-asked": Row(
        OK, "does not relay for 203.0.113.1, 10.0.0.1", unasked=(STRANGER_V6, FD)
    ),
    "ipv6-fails": Row(
        WARNING,
        "whether it relays for 2001:db8::1 is unknown: closed",
        {STRANGER_V6: failed(Reason.BACKEND_CLOSED, "closed")},
        unasked=(FD,),
    ),
    "private-fails": Row(
        WARNING,
        "whether it relays for 10.0.0.1 is unknown: closed",
        {TEN: failed(Reason.BACKEND_CLOSED, "closed")},
    ),
}


def judged(row: Row, directory: Path, more: str = "") -> list[Finding]:
    name = SocketName(host="127.0.0.1", port=10725)
    limits = BackendLimits("shim.example", 5.0, 60.0)
    addresses = BackendAddresses(name, SystemLookup(System()))
    dial = Dial(
        cast("Reactor", None), BackendList([addresses]), limits
    )  # verdicts connect nowhere
    listeners = load(directory, more).listeners
    backend = Backend(name, dial, Xclient(listeners[0]), listeners, CLAIMS)
    replies = {**dict.fromkeys(CLIENTS, DENIED), **row.replies}
    asked = {each: one for each, one in replies.items() if each not in row.unasked}
    return list(judge_relaying(backend, asked))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_replies_lead_to_their_findings(row: Row, tmp_path: Path) -> None:
    findings = judged(row, tmp_path)
    assert contains(findings, row.severity, row.says), "\n".join(map(str, findings))
    assert exit_status(findings) == row.exit
    assert not row.alone or len(findings) == 1


def test_a_backend_that_does_not_relay_gets_only_ok_findings(tmp_path: Path) -> None:
    assert {finding.severity for finding in judged(Row(OK, ""), tmp_path)} == {OK}


@pytest.mark.parametrize(
    "name", ["ipv6-is-not-asked", "private-fails", "the-stranger-is-refused"]
)
def test_an_untested_address_is_not_reported_as_refused(
    name: str, tmp_path: Path
) -> None:
    row = ROWS[name]
    findings = judged(row, tmp_path)
    refused = [one.text for one in findings if "does not relay" in one.text]
    assert refused
    untested = (*row.replies, *row.unasked)
    assert not any(str(address) in text for address in untested for text in refused)


@pytest.mark.parametrize(("number", "noted"), [(12, False), (13, True)])
def test_believed_claims_that_were_not_asked_about_are_noted(
    number: int, noted: bool, tmp_path: Path
) -> None:
    claims = [f"203.0.113.{last}" for last in range(number)]
    listener = f'haproxy_hosts = "hosts"\nbelieved_claims = {claims}'
    findings = judged(Row(OK, ""), tmp_path, listener)
    assert contains(findings, NOTE, "only 12 of the 13 believed_claims") is noted


# --- the set-up -----------------------------------------------------------------------


def judged_setup(
    loaded: Config,
    *entries: str,
    users: tuple[str, ...] = (),
    addresses: tuple[Address, ...] = (),
) -> list[Finding]:
    found = [
        ListEntry(f"hosts: line {number}", ip_network(entry))
        for number, entry in enumerate(entries, 1)
    ]
    surroundings = Surroundings({"first": tuple(found)}, users, addresses)
    return list(judge_setup(loaded, surroundings))


LISTED = 'haproxy_hosts = "hosts"\n'
UNIX = 'bind = "unix:/run/mx.sock"\n'


@pytest.mark.parametrize(
    ("table", "severity", "says"),
    [
        ("", NOTE, "no haproxy_hosts, so PROXY support is off"),
        (LISTED, OK, "1 proxy or network listed in hosts"),
        (UNIX, NOTE, "on the unix socket every peer is a proxy"),
        (UNIX + 'unix_mode = "0666"', WARNING, 'write unix_mode = "0660"'),
        ('believed_claims = ["127.0.0.1"]', UNSAFE, 'contains "127.0.0.1"'),
        ('believed_claims = ["127.0.0.0/8"]', WARNING, "believe loopback addresses;"),
        ('believed_claims = ["::1"]', UNSAFE, "remove the entry"),
        ('believed_claims = ["::ffff:127.0.0.1"]', UNSAFE, "remove the entry"),
    ],
)
def test_a_listener_leads_to_its_findings(
    table: str, severity: Severity, says: str, tmp_path: Path
) -> None:
    findings = judged_setup(load(tmp_path, table))
    assert contains(findings, severity, says), "\n".join(map(str, findings))


@pytest.mark.parametrize(
    ("table", "takes"),
    [("", False), (LISTED, True), (UNIX, True), ('bind = "systemd:mx"', True)],
)
def test_claims_come_from_listed_proxies_and_unix_sockets(
    table: str, takes: bool, tmp_path: Path
) -> None:
    [listener] = load(tmp_path, table).listeners
    assert takes_claims(listener) is takes


def test_an_empty_list_turns_proxy_support_off(tmp_path: Path) -> None:
    findings = judged_setup(load(tmp_path, LISTED, hosts="# nobody yet\n"))
    assert contains(findings, NOTE, "hosts lists nobody, so PROXY support is off")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (["10.0.0.0/8"], "the list is wide: 10.0.0.0/8 (hosts: line 1); any host"),
        (["192.0.2.1", "10.0.0.0/15"], "10.0.0.0/15 (hosts: line 2)"),
        (["2001:db8::/31"], "2001:db8::/31"),
        ([f"{n}.0.0.0/8" for n in range(1, 7)], "3.0.0.0/8 (hosts: line 3) and 3 more"),
    ],
)
def test_a_wide_list_causes_a_warning(
    entries: list[str], says: str, tmp_path: Path
) -> None:
    assert contains(judged_setup(load(tmp_path, LISTED), *entries), WARNING, says)


def test_a_list_of_subnets_is_not_wide(tmp_path: Path) -> None:
    findings = judged_setup(load(tmp_path, LISTED), "10.1.0.0/16", "2001:db8::/32")
    assert not any(finding.severity is WARNING for finding in findings)


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.0/24", "::1"])
def test_a_listed_loopback_causes_a_warning_if_there_are_other_users(
    entry: str, tmp_path: Path
) -> None:
    loaded = load(tmp_path, LISTED)
    says = "(hosts: line 1) is this host, and it has other users (ann, bob)"
    assert contains(judged_setup(loaded, entry, users=("ann", "bob")), WARNING, says)
    alone = judged_setup(loaded, entry)
    assert not any(finding.severity is WARNING for finding in alone)


def test_a_unix_mode_without_others_causes_no_warning(tmp_path: Path) -> None:
    findings = judged_setup(load(tmp_path, UNIX + 'unix_mode = "0664"'))
    assert not any(finding.severity is WARNING for finding in findings)


@pytest.mark.parametrize(
    ("bind", "backend_name", "own"),
    [
        ("127.0.0.1:25", "127.0.0.1:25", True),
        ("0.0.0.0:25", "127.0.0.1:25", True),
        ("[::]:25", "localhost:25", True),
        ("unix:/run/mx.sock", "unix:/run/mx.sock", True),
        ("192.0.2.25:25", "127.0.0.1:25", False),
        ("0.0.0.0:25", "127.0.0.1:10725", False),
        ("0.0.0.0:25", "mail.example:25", False),
        ("127.0.0.1:0", "127.0.0.1:25", False),
    ],
)
def test_a_backend_that_is_our_own_listener_is_recognised(
    bind: str, backend_name: str, own: bool, tmp_path: Path
) -> None:
    loaded = load(tmp_path, f'bind = "{bind}"')
    assert is_own_listener(loaded, read_socket_name(backend_name)) is own


@pytest.mark.parametrize(
    ("entry", "network"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("2001:db8::/32", "2001:db8::/32"),
    ],
)
def test_an_entry_is_read_as_the_allowlist_reads_it(entry: str, network: str) -> None:
    assert read_network(entry) == ip_network(network)


# --- the summary ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("severities", "says", "status"),
    [
        ([], "fit for use: nothing to fix", 0),
        ([OK, NOTE], "fit for use: nothing to fix", 0),
        ([WARNING, OK], "fit for use: 1 warning", 0),
        ([WARNING, ERROR, WARNING], "NOT fit for use: 1 error, 2 warnings", 1),
        ([UNSAFE, UNSAFE, ERROR], "NOT fit for use: 2 UNSAFE, 1 error", 1),
    ],
)
def test_summary_and_exit_status_follow_the_severities(
    severities: list[Severity], says: str, status: int
) -> None:
    findings = [Finding(severity, "subject", "text") for severity in severities]
    assert summary(findings) == says
    assert exit_status(findings) == status


def test_the_texts_of_findings_are_aligned() -> None:
    lines = [str(Finding(severity, "subject", "text")) for severity in Severity]
    assert {line.index("subject: text") for line in lines} == {9}
