"""``proxyshim check``: from the answers it got to its findings.  One row per finding."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import cast

import pytest

from proxyshim import config
from proxyshim.addresses import Address, SocketName, read_socket_name
from proxyshim.allowlist import ListEntry, read_network
from proxyshim.backend.addresses import BackendAddresses
from proxyshim.backend.dial import BackendLimits, Dial
from proxyshim.backend.lookup import SystemLookup
from proxyshim.check.answers import (
    STRANGER,
    STRANGER_V6,
    Answers,
    AsClient,
    Backend,
    Claim,
    Hello,
)
from proxyshim.check.setup import is_own_listener, judge_setup, takes_claims
from proxyshim.check.surroundings import Surroundings
from proxyshim.check.verdicts import judge, service_line
from proxyshim.config import Config
from proxyshim.dns.system import System
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Finding, Severity, exit_status, summary
from proxyshim.net.reactor import Reactor
from proxyshim.smtp.replies import Reply

OK, NOTE, WARNING, ERROR, UNSAFE = Severity


def reply(text: str) -> Reply:
    """Return a multi-line reply; "/" separates the lines, as in "250 one/two"."""
    code, _, rest = text.partition(" ")
    *first, last = rest.split("/")
    raw = "".join(f"{code}-{line}\r\n" for line in first) + f"{code} {last}\r\n"
    return Reply(int(code), raw.encode())


# --- the backend ----------------------------------------------------------------------

SHIM = ip_address("127.0.0.1")
NEIGHBOUR = ip_address("127.0.0.5")
TEN, FD = ip_address("10.0.0.1"), ip_address("fd00::1")
BELIEVED = ip_address("203.0.113.1")
CLAIMS = (
    Claim(BELIEVED, "203.0.113.0/24", explicit=True),
    Claim(TEN, "10.0.0.0/8", explicit=False),
    Claim(FD, "fc00::/7", explicit=False),
)

OFFERED = "250 mta.example.net/PIPELINING/XCLIENT NAME ADDR PORT"
DROPPED = AsClient(
    reply("250 mta.example.net/PIPELINING"),
    reply("554 5.7.1 Relay access denied"),
    reply("550 5.7.0 insufficient authorization"),
)
KEPT = replace(DROPPED, ehlo=reply(OFFERED), xclient=reply("220 mta.example.net"))
RELAYS = replace(DROPPED, relay=reply("250 2.1.5 Ok"))
GOOD = Hello(reply("220 mta.example.net ESMTP"), reply(OFFERED), None, SHIM)
ALL_DROPPED = dict.fromkeys(
    (STRANGER, STRANGER_V6, BELIEVED, TEN, FD, NEIGHBOUR), DROPPED
)


def failed(reason: Reason, detail: str = "detail") -> BackendError:
    return BackendError(reason, detail)


def offers(keywords: str) -> Hello:
    return replace(GOOD, ehlo=reply(f"250 mta.example.net/{keywords}"))


@dataclass(frozen=True)
class Row:
    """Answers that differ from good ones, and the finding that they must lead to."""

    severity: Severity
    says: str
    hello: Hello | BackendError = GOOD
    as_client: Mapping[Address, AsClient | BackendError] = field(default_factory=dict)
    exit: int = 0
    alone: bool = False  # there is no other finding


def useless(says: str, hello: Hello | BackendError) -> Row:
    return Row(ERROR, says, hello, exit=1, alone=True)


ROWS = {
    "greets": Row(OK, 'greets with "220 mta.example.net ESMTP"'),
    "attributes": Row(OK, "offers XCLIENT NAME ADDR PORT"),
    "drops-the-right": Row(OK, "drops the right to XCLIENT after its use"),
    "list-of-one": Row(OK, "to the shim, and not to 127.0.0.5"),
    "no-relaying": Row(OK, 'stranger (192.0.2.1): "554 5.7.1 Relay access denied"'),
    "no-relaying-v6": Row(OK, "does not relay for a stranger (2001:db8::1)"),
    "no-private-relaying": Row(OK, "does not relay for 203.0.113.1, 10.0.0.1, fd00::1"),
    "unreachable": useless(
        "cannot be used: Connection refused; every client would get a 421; is it running",
        failed(Reason.BACKEND_UNREACHABLE, "127.0.0.1:10725: Connection refused"),
    ),
    "silent": useless("want TLS, or a PROXY header", failed(Reason.BACKEND_TIMEOUT)),
    "closes": useless("its own log may say why", failed(Reason.BACKEND_CLOSED)),
    "no-smtp": useless("is this an SMTP server?", failed(Reason.BACKEND_BAD_REPLY)),
    "refuses-the-shim": useless(
        'greets the shim with "554 no"; every client would get a 421; let it take'
        " connections from 127.0.0.1",
        Hello(reply("554 no"), None, None, SHIM),
    ),
    "refuses-ehlo": useless(
        'answers the shim\'s EHLO with "550 your name"; every client would get a 421;'
        " if it dislikes the name in there, write another as ehlo_name",
        Hello(GOOD.greeting, reply("550 your name"), reply("500 what?"), SHIM),
    ),
    "lmtp-by-lhlo": useless(
        "LMTP is not supported",
        Hello(GOOD.greeting, reply("500 what?"), reply("250 mta/PIPELINING"), SHIM),
    ),
    "lmtp-by-greeting": useless(
        "LMTP is not supported", replace(GOOD, greeting=reply("220 mta LMTP Dovecot"))
    ),
    "lmtp-in-a-name": Row(OK, "drops", replace(GOOD, greeting=reply("220 lmtp ESMTP"))),
    "no-xclient": useless(
        "offers the shim no XCLIENT; every client would get a 421; with Postfix, write"
        " into master.cf: 127.0.0.1:10725 inet n - y - - smtpd"
        " -o smtpd_authorized_xclient_hosts=127.0.0.1"
        " -o smtpd_authorized_xforward_hosts=",
        offers("PIPELINING"),
    ),
    "no-xclient-elsewhere": useless(
        "=192.0.2.25 -o smtpd_authorized_xforward_hosts="
        " -o local_header_rewrite_clients= (where addresses are"
        ' translated: the one its log has at "connect from")',
        replace(offers("PIPELINING"), shim=ip_address("192.0.2.25")),
    ),
    "no-addr": useless("offers XCLIENT without ADDR (NAME)", offers("XCLIENT NAME")),
    "no-name": Row(WARNING, "XCLIENT takes no NAME", offers("XCLIENT ADDR PORT")),
    "no-port": Row(NOTE, "XCLIENT takes no PORT", offers("XCLIENT NAME ADDR")),
    "keeps-the-right": Row(
        WARNING,
        "keeps the right to XCLIENT after its use: sessions stay strict; STARTTLS and"
        " CHUNKING are not offered to clients; to have them, use a backend that takes"
        " the PROXY protocol itself or, where a list of many addresses is why (Postfix),"
        " make it a list of one: -o smtpd_authorized_xclient_hosts=127.0.0.1",
        as_client=dict.fromkeys(ALL_DROPPED, KEPT),
    ),
    "keeps-the-right-with-starttls": Row(
        WARNING,
        "AUTH is withheld with STARTTLS but on second (allow_plaintext_auth)",
        offers("STARTTLS/AUTH PLAIN/XCLIENT NAME ADDR PORT"),
        {STRANGER: KEPT},
    ),
    "hides-the-right": Row(
        UNSAFE,
        "takes a second XCLIENT although it does not offer it any more",
        as_client={STRANGER: replace(DROPPED, xclient=reply("220 mta"))},
        exit=1,
    ),
    "xforward": Row(
        WARNING,
        "add to the service in master.cf: -o smtpd_authorized_xforward_hosts=",
        as_client={
            STRANGER: replace(DROPPED, ehlo=reply("250 mta/XFORWARD NAME ADDR/SIZE"))
        },
    ),
    "wide-list": Row(
        WARNING,
        "gives the right to XCLIENT to 127.0.0.5 too",
        as_client={NEIGHBOUR: KEPT},
    ),
    "wide-list-remedy": Row(
        WARNING,
        "keep the list to one address: -o smtpd_authorized_xclient_hosts=[2001:db8::25]",
        replace(GOOD, shim=ip_address("2001:db8::25")),
        {TEN: KEPT},
    ),
    "open-relay": Row(
        UNSAFE,
        "relays for a stranger (192.0.2.1)",
        as_client={STRANGER: RELAYS},
        exit=1,
    ),
    "open-relay-v6": Row(
        UNSAFE,
        "relays for a stranger (2001:db8::1)",
        as_client={STRANGER_V6: RELAYS},
        exit=1,
    ),
    "relaying-unknown": Row(
        NOTE,
        "whether it relays for a stranger (192.0.2.1) is not known",
        as_client={STRANGER: replace(DROPPED, relay=reply("556 5.1.10 null MX"))},
    ),
    "relays-for-private": Row(
        WARNING,
        "relays for 10.0.0.1, fd00::1: private addresses are believed when a listed proxy"
        " claims them, so if anything in front of a proxy translates addresses,"
        " everybody may relay; unless such clients of yours come through a proxy, write"
        ' untrusted_claims = ["10.0.0.0/8", "fc00::/7"]',
        as_client={TEN: RELAYS, FD: RELAYS},
    ),
    "relays-for-believed": Row(
        WARNING,
        'unless that is meant, take "203.0.113.0/24" out of believed_claims',
        as_client={BELIEVED: RELAYS},
    ),
    "refuses-xclient": Row(
        ERROR,
        "XCLIENT was answered: 501 no; every client would get a 421",
        as_client={
            STRANGER: failed(Reason.XCLIENT_REFUSED, "XCLIENT was answered: 501 no")
        },
        exit=1,
    ),
    "fails-after-xclient": Row(
        ERROR,
        "as the client 192.0.2.1: closed; every client would get a 421",
        as_client={STRANGER: failed(Reason.BACKEND_CLOSED, "closed")},
        exit=1,
    ),
    "blocks-the-stranger": Row(
        WARNING,
        "refuses the client 192.0.2.1 at once (554 go away)",
        as_client={STRANGER: failed(Reason.CLIENT_REFUSED, "554 go away")},
    ),
    "blocks-the-stranger-and-relays": Row(
        WARNING,
        "relays for 10.0.0.1",
        as_client={STRANGER: failed(Reason.CLIENT_REFUSED), TEN: RELAYS},
    ),
    "no-ipv6": Row(
        WARNING,
        "takes no IPv6 address in XCLIENT (501 Bad ADDR)",
        as_client={STRANGER_V6: failed(Reason.XCLIENT_REFUSED, "501 Bad ADDR")},
    ),
    "ipv6-fails": Row(
        WARNING,
        "could not be asked as 2001:db8::1: closed",
        as_client={STRANGER_V6: failed(Reason.BACKEND_CLOSED, "closed")},
    ),
    "private-fails": Row(
        WARNING,
        "could not be asked as 10.0.0.1: closed",
        as_client={TEN: failed(Reason.BACKEND_CLOSED, "closed")},
    ),
}


def backend(tmp_path: Path) -> Backend:
    """Return a backend with two listeners, the second with allow_plaintext_auth."""
    listeners = load(tmp_path, "", "allow_plaintext_auth = true").listeners
    limits = BackendLimits("shim.example", 5.0, 60.0)
    name = SocketName(host="127.0.0.1", port=10725)
    addresses = BackendAddresses(name, SystemLookup(System()))
    dial = Dial(cast("Reactor", None), addresses, limits)  # verdicts connect nowhere
    return Backend(name, dial, listeners, CLAIMS)


def judged(row: Row, tmp_path: Path) -> list[Finding]:
    answers = Answers(row.hello, {**ALL_DROPPED, **row.as_client}, NEIGHBOUR)
    return list(judge(backend(tmp_path), answers))


def said(findings: Iterable[Finding], severity: Severity, text: str) -> bool:
    return any(one.severity is severity and text in one.text for one in findings)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_answers_lead_to_their_findings(row: Row, tmp_path: Path) -> None:
    findings = judged(row, tmp_path)
    assert said(findings, row.severity, row.says), "\n".join(map(str, findings))
    assert exit_status(findings) == row.exit
    assert not row.alone or len(findings) == 1


def test_a_good_backend_gets_only_ok_findings(tmp_path: Path) -> None:
    assert {finding.severity for finding in judged(Row(OK, ""), tmp_path)} == {OK}


@pytest.mark.parametrize("name", ["no-ipv6", "private-fails", "blocks-the-stranger"])
def test_an_untested_address_is_not_reported_as_refused(
    name: str, tmp_path: Path
) -> None:
    asked = list(ROWS[name].as_client)
    findings = judged(ROWS[name], tmp_path)
    refused = [one.text for one in findings if "does not relay" in one.text]
    assert refused
    assert not any(str(address) in text for address in asked for text in refused)


def test_a_backend_that_keeps_the_right_is_not_reported_as_having_a_wide_list(
    tmp_path: Path,
) -> None:
    findings = judged(ROWS["keeps-the-right"], tmp_path)
    assert not any("gives the right" in finding.text for finding in findings)


@pytest.mark.parametrize(
    ("name", "shim", "service", "allowed"),
    [
        ("127.0.0.1:10725", "127.0.0.1", "127.0.0.1:10725 inet n", "127.0.0.1"),
        ("[::1]:10725", "::1", "[::1]:10725 inet n", "[::1]"),
        ("mail.example:25", "192.0.2.80", "mail.example:25 inet n", "192.0.2.80"),
        ("unix:/var/spool/postfix/public/shim", None, "shim unix n", "127.0.0.1"),
        ("unix:/var/spool/postfix/private/shim", None, "shim unix y", "127.0.0.1"),
    ],
)
def test_the_service_for_master_cf_trusts_one_address(
    name: str, shim: str | None, service: str, allowed: str
) -> None:
    own = ip_address(shim) if shim else None
    assert service_line(read_socket_name(name), own) == (
        f"{service} - y - - smtpd -o smtpd_authorized_xclient_hosts={allowed}"
        " -o smtpd_authorized_xforward_hosts= -o local_header_rewrite_clients="
    )


# --- the set-up -----------------------------------------------------------------------


def load(tmp_path: Path, *tables: str, hosts: str = "192.0.2.80\n") -> Config:
    """Load a configuration with a listener per table, "first" and "second"."""
    (tmp_path / "hosts").write_text(hosts)
    text = ""
    for name, port, more in zip(
        ("first", "second"), (2525, 2526), tables, strict=False
    ):
        text += f'[[listener]]\nname = "{name}"\nbackend = "127.0.0.1:10725"\n'
        if "bind" not in more:
            text += f'bind = "127.0.0.1:{port}"\n'
        text += more + "\n"
    path = tmp_path / "proxyshim.toml"
    path.write_text(text)
    return config.load(path)


def judged_setup(
    loaded: Config, *entries: str, users: tuple[str, ...] = ()
) -> list[Finding]:
    found = [
        ListEntry(f"hosts: line {number}", ip_network(entry))
        for number, entry in enumerate(entries, 1)
    ]
    return list(judge_setup(loaded, Surroundings({"first": tuple(found)}, users)))


LISTED = 'haproxy_hosts = "hosts"\n'
UNIX = 'bind = "unix:/run/mx.sock"\n'


@pytest.mark.parametrize(
    ("table", "severity", "says"),
    [
        ("", NOTE, "no haproxy_hosts, so PROXY support is off"),
        (LISTED, OK, "1 proxy or network listed in hosts"),
        (UNIX, NOTE, "on the unix socket every peer is a proxy"),
        (UNIX + 'unix_mode = "0666"', WARNING, 'write unix_mode = "0660"'),
        ('believed_claims = ["127.0.0.0/8"]', UNSAFE, 'contains "127.0.0.0/8"'),
        ('believed_claims = ["::1"]', UNSAFE, "remove the entry"),
        ('believed_claims = ["::ffff:127.0.0.1"]', UNSAFE, "remove the entry"),
    ],
)
def test_a_listener_leads_to_its_findings(
    table: str, severity: Severity, says: str, tmp_path: Path
) -> None:
    findings = judged_setup(load(tmp_path, table))
    assert said(findings, severity, says), "\n".join(map(str, findings))


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
    assert said(findings, NOTE, "hosts lists nobody, so PROXY support is off")


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
    assert said(judged_setup(load(tmp_path, LISTED), *entries), WARNING, says)


def test_a_list_of_subnets_is_not_wide(tmp_path: Path) -> None:
    findings = judged_setup(load(tmp_path, LISTED), "10.1.0.0/16", "2001:db8::/32")
    assert not any(finding.severity is WARNING for finding in findings)


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.0/24", "::1"])
def test_a_listed_loopback_causes_a_warning_if_there_are_other_users(
    entry: str, tmp_path: Path
) -> None:
    loaded = load(tmp_path, LISTED)
    says = "(hosts: line 1) is this host, and it has other users (ann, bob)"
    assert said(judged_setup(loaded, entry, users=("ann", "bob")), WARNING, says)
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
