"""What ``proxyshim check`` concludes from a backend's answers about XCLIENT.

There is one row for each finding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from proxyshim.addresses import Address, SocketName, read_socket_name
from proxyshim.conveyance.contract import STRANGER, STRANGER_V6, Examined
from proxyshim.conveyance.xclient_questions import (
    Answers,
    ToClient,
    ToProxyshim,
    neighbour_of,
)
from proxyshim.conveyance.xclient_verdicts import judge, service_line
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Severity, exit_status
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

OWN = ip_address("127.0.0.1")
NEIGHBOUR = ip_address("127.0.0.5")
BELIEVED, TEN, FD = map(ip_address, ("203.0.113.1", "10.0.0.1", "fd00::1"))
CLIENTS = (STRANGER, STRANGER_V6, BELIEVED, TEN, FD)
V4_CLIENTS = (STRANGER, BELIEVED, TEN)

OFFER = "250 mta.example.net/PIPELINING/XCLIENT NAME ADDR PORT"
DROPPED = ToClient(
    reply("250 mta.example.net/PIPELINING"),
    reply("550 5.7.0 insufficient authorization"),
    reply("550 5.7.0 insufficient authorization"),
)
KEPT = replace(DROPPED, ehlo=reply(OFFER), xclient=reply("220 mta.example.net"))
GOOD = ToProxyshim(reply("220 mta.example.net ESMTP"), reply(OFFER), None, OWN)
ALL_DROPPED = dict.fromkeys((*CLIENTS, NEIGHBOUR), DROPPED)


def offering(keywords: str) -> ToProxyshim:
    return replace(GOOD, ehlo=reply(f"250 mta.example.net/{keywords}"))


@dataclass(frozen=True)
class Row:
    """Answers that differ from good ones, and the finding that they must lead to."""

    severity: Severity
    says: str
    ours: ToProxyshim | BackendError = GOOD
    theirs: Mapping[Address, ToClient | BackendError] = field(default_factory=dict)
    remaining: tuple[Address, ...] = CLIENTS
    exit: int = 0
    alone: bool = False  # there is no other finding


def useless(says: str, ours: ToProxyshim | BackendError) -> Row:
    return Row(ERROR, says, ours, remaining=(), exit=1, alone=True)


ROWS = {
    "greets": Row(OK, 'greets with "220 mta.example.net ESMTP"'),
    "attributes": Row(OK, "offers XCLIENT NAME ADDR PORT"),
    "drops-the-right": Row(OK, "drops the right to XCLIENT after its first use"),
    "list-of-one": Row(OK, "to proxyshim, and not to 127.0.0.5"),
    "unreachable": useless(
        "cannot be used: Connection refused; every client would get a 421; is it running",
        failed(Reason.BACKEND_UNREACHABLE, "127.0.0.1:10725: Connection refused"),
    ),
    "silent": useless(
        "waits for TLS or for a PROXY header", failed(Reason.BACKEND_TIMEOUT)
    ),
    "closes": useless("its log may say why", failed(Reason.BACKEND_CLOSED)),
    "no-smtp": useless("is this an SMTP server?", failed(Reason.BACKEND_BAD_REPLY)),
    "refuses-proxyshim": useless(
        'greets proxyshim with "554 no"; every client would get a 421; let it accept'
        " connections from 127.0.0.1",
        ToProxyshim(reply("554 no"), None, None, OWN),
    ),
    "refuses-proxyshim-on-a-unix-socket": useless(
        "let it accept connections on this socket",
        ToProxyshim(reply("554 no"), None, None, None),
    ),
    "refuses-ehlo": useless(
        'answers proxyshim\'s EHLO with "550 your name"; every client would get a 421;'
        " if it rejects the name in the EHLO, set ehlo_name to another one",
        ToProxyshim(GOOD.greeting, reply("550 your name"), reply("500 what?"), OWN),
    ),
    "lmtp-by-lhlo": useless(
        "LMTP is not supported",
        ToProxyshim(
            GOOD.greeting, reply("500 what?"), reply("250 mta/PIPELINING"), OWN
        ),
    ),
    "lmtp-by-greeting": useless(
        "LMTP is not supported", replace(GOOD, greeting=reply("220 mta LMTP Dovecot"))
    ),
    "lmtp-in-a-name": Row(OK, "drops", replace(GOOD, greeting=reply("220 lmtp ESMTP"))),
    "no-xclient": useless(
        "does not offer XCLIENT to proxyshim; every client would get a 421; with"
        " Postfix, write into master.cf: 127.0.0.1:10725 inet n - y - - smtpd"
        " -o smtpd_authorized_xclient_hosts=127.0.0.1"
        " -o smtpd_authorized_xforward_hosts=",
        offering("PIPELINING"),
    ),
    "no-xclient-elsewhere": useless(
        "=192.0.2.25 -o smtpd_authorized_xforward_hosts="
        " -o local_header_rewrite_clients= (if addresses are translated on the way, use"
        ' the one that its log shows after "connect from")',
        replace(offering("PIPELINING"), own_address=ip_address("192.0.2.25")),
    ),
    "no-addr": useless("offers XCLIENT without ADDR (NAME)", offering("XCLIENT NAME")),
    "no-name": Row(
        WARNING, "does not take NAME in XCLIENT", offering("XCLIENT ADDR PORT")
    ),
    "no-port": Row(
        NOTE, "does not take PORT in XCLIENT", offering("XCLIENT NAME ADDR")
    ),
    "keeps-the-right": Row(
        WARNING,
        "keeps the right to XCLIENT after its first use: sessions stay strict; STARTTLS"
        " and CHUNKING are not offered to clients; if you need them, use a backend that"
        " takes the PROXY protocol itself; or, if the backend keeps the right because"
        " its list contains many addresses (Postfix), list only one:"
        " -o smtpd_authorized_xclient_hosts=127.0.0.1",
        theirs=dict.fromkeys(ALL_DROPPED, KEPT),
    ),
    "keeps-the-right-with-starttls": Row(
        WARNING,
        "AUTH is withheld with STARTTLS, except on second (allow_plaintext_auth)",
        offering("STARTTLS/AUTH PLAIN/XCLIENT NAME ADDR PORT"),
        {STRANGER: KEPT},
    ),
    "hides-the-right": Row(
        UNSAFE,
        "accepts a second XCLIENT although it no longer offers it",
        theirs={STRANGER: replace(DROPPED, xclient=reply("220 mta"))},
        exit=1,
    ),
    "xforward": Row(
        UNSAFE,
        "not offered to clients; add to the service in master.cf:"
        " -o smtpd_authorized_xforward_hosts=",
        theirs={
            STRANGER: replace(DROPPED, ehlo=reply("250 mta/XFORWARD NAME ADDR/SIZE"))
        },
        exit=1,
    ),
    "hidden-xforward": Row(
        UNSAFE,
        "accepts XFORWARD after XCLIENT although it does not offer it",
        theirs={STRANGER: replace(DROPPED, xforward=reply("250 2.0.0 Ok"))},
        exit=1,
    ),
    "closes-before-xforward": Row(
        OK,
        "drops the right to XCLIENT after its first use",
        theirs={STRANGER: replace(DROPPED, xforward=None)},
    ),
    "wide-list": Row(
        WARNING,
        "gives the right to XCLIENT to 127.0.0.5 too",
        theirs={NEIGHBOUR: KEPT},
    ),
    "wide-list-remedy": Row(
        WARNING,
        "list only one address: -o smtpd_authorized_xclient_hosts=[2001:db8::25]",
        replace(GOOD, own_address=ip_address("2001:db8::25")),
        {TEN: KEPT},
    ),
    "refuses-xclient": Row(
        ERROR,
        "XCLIENT was answered: 501 no; every client would get a 421",
        theirs={
            STRANGER: failed(Reason.XCLIENT_REFUSED, "XCLIENT was answered: 501 no")
        },
        remaining=(),
        exit=1,
    ),
    "fails-after-xclient": Row(
        ERROR,
        "fails in a session for the client 192.0.2.1: closed; every client would get a"
        " 421",
        theirs={STRANGER: failed(Reason.BACKEND_CLOSED, "closed")},
        remaining=(),
        exit=1,
    ),
    "blocks-the-stranger": Row(
        WARNING,
        "refuses the client 192.0.2.1 at once (554 go away)",
        theirs={STRANGER: failed(Reason.CLIENT_REFUSED, "554 go away")},
        remaining=(STRANGER_V6, BELIEVED, TEN, FD),
    ),
    "no-ipv6": Row(
        WARNING,
        "does not take IPv6 addresses in XCLIENT (501 Bad ADDR)",
        theirs={STRANGER_V6: failed(Reason.XCLIENT_REFUSED, "501 Bad ADDR")},
        remaining=V4_CLIENTS,
    ),
    "ipv6-fails": Row(
        WARNING,
        "could not be tested as the client 2001:db8::1: closed",
        theirs={STRANGER_V6: failed(Reason.BACKEND_CLOSED, "closed")},
        remaining=V4_CLIENTS,
    ),
    "blocks-the-ipv6-stranger": Row(
        OK,
        "drops the right",
        theirs={STRANGER_V6: failed(Reason.CLIENT_REFUSED, "554 go away")},
        remaining=(*V4_CLIENTS, FD),
    ),
    # Whether the backend relays for these two is asked next, and that shows the failure again.
    "private-fails": Row(
        OK, "drops the right", theirs={TEN: failed(Reason.BACKEND_CLOSED, "closed")}
    ),
    "believed-fails": Row(
        OK, "drops the right", theirs={BELIEVED: failed(Reason.BACKEND_TIMEOUT)}
    ),
    "blocks-a-private-address": Row(
        OK,
        "drops the right",
        theirs={TEN: failed(Reason.CLIENT_REFUSED)},
        remaining=(STRANGER, STRANGER_V6, BELIEVED, FD),
    ),
}


def examined(row: Row, directory: Path) -> Examined:
    """Judge the answers of a backend with two listeners.

    The second has allow_plaintext_auth.
    """
    listeners = load(directory, "", "allow_plaintext_auth = true").listeners
    answers = Answers(row.ours, {**ALL_DROPPED, **row.theirs}, NEIGHBOUR)
    backend = SocketName(host="127.0.0.1", port=10725)
    return judge(backend, listeners, CLIENTS, answers)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_answers_lead_to_their_findings(row: Row, tmp_path: Path) -> None:
    findings = examined(row, tmp_path).findings
    assert contains(findings, row.severity, row.says), "\n".join(map(str, findings))
    assert exit_status(findings) == row.exit
    assert not row.alone or len(findings) == 1


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_check_goes_on_as_the_clients_that_the_backend_takes(
    row: Row, tmp_path: Path
) -> None:
    assert examined(row, tmp_path).remaining == row.remaining


def test_a_good_backend_gets_only_ok_findings(tmp_path: Path) -> None:
    findings = examined(Row(OK, ""), tmp_path).findings
    assert {finding.severity for finding in findings} == {OK}


def test_a_backend_that_keeps_the_right_is_not_reported_as_having_a_wide_list(
    tmp_path: Path,
) -> None:
    findings = examined(ROWS["keeps-the-right"], tmp_path).findings
    assert not any("gives the right" in finding.text for finding in findings)


@pytest.mark.parametrize(
    ("own", "neighbour"),
    [("127.0.0.1", "127.0.0.5"), ("::1", "::5"), (None, "127.0.0.5")],
)
def test_the_neighbour_is_not_in_a_list_of_one_address(
    own: str | None, neighbour: str
) -> None:
    assert neighbour_of(ip_address(own) if own else None) == ip_address(neighbour)


@pytest.mark.parametrize(
    ("name", "own", "service", "allowed"),
    [
        ("127.0.0.1:10725", "127.0.0.1", "127.0.0.1:10725 inet n", "127.0.0.1"),
        ("[::1]:10725", "::1", "[::1]:10725 inet n", "[::1]"),
        ("mail.example:25", "192.0.2.80", "mail.example:25 inet n", "192.0.2.80"),
        ("unix:/var/spool/postfix/public/shim", None, "shim unix n", "127.0.0.1"),
        ("unix:/var/spool/postfix/private/shim", None, "shim unix y", "127.0.0.1"),
    ],
)
def test_the_service_for_master_cf_trusts_one_address(
    name: str, own: str | None, service: str, allowed: str
) -> None:
    own_address = ip_address(own) if own else None
    assert service_line(read_socket_name(name), own_address) == (
        f"{service} - y - - smtpd -o smtpd_authorized_xclient_hosts={allowed}"
        " -o smtpd_authorized_xforward_hosts= -o local_header_rewrite_clients="
    )
