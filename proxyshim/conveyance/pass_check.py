"""What ``proxyshim check`` finds out about ``convey = "postfix-pass"``."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Final

from proxyshim.addresses import Address
from proxyshim.backend.dial import Dial
from proxyshim.conveyance.asking import examine_sessions
from proxyshim.conveyance.contract import Conveyance, Examined
from proxyshim.findings import Finding, Severity, Subject

_TESTED: Final = "3.7 (Debian 12) and 3.10 (Debian 13)"
_LIMIT_S: Final = 10.0
_SEARCH_PATH: Final = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin"
# What each value of inet_protocols comes to.
_VERSIONS: Final = {
    "all": frozenset({4, 6}),
    "ipv4": frozenset({4}),
    "ipv6": frozenset({6}),
}


async def examine(
    conveyance: Conveyance,
    families: frozenset[int],
    dial: Dial,
    clients: Sequence[Address],
) -> Examined:
    """Hand over a probe for each of *clients* whose IP version is in *families*."""
    subject = Subject(f"backend {dial.name}")
    findings = [
        subject.note(
            "Postfix does not promise the interface that postfix-pass uses; tested with"
            f" Postfix {_TESTED}"
        ),
        *_judge_service(subject, dial.name),
        *_judge_families(subject, families),
        *_judge_limits(subject),
    ]
    if any(finding.severity is Severity.ERROR for finding in findings):
        return Examined(findings, ())
    able = [client for client in clients if client.version in families]
    return await examine_sessions(
        conveyance, dial, able, findings, "takes a socket, and greets the client {}"
    )


def _judge_service(subject: Subject, backend: str) -> Iterator[Finding]:
    """Refuse postscreen, which ignores the address that it is given.

    It would ask the socket, whose peer is the proxy.  Our probes cannot show that, because
    they have no address at all.
    """
    name = backend.rpartition("/")[2]
    for line in _ask_postconf("-M").splitlines():
        # smtpd pass - - n - - smtpd -o ...  (master(5))
        fields = line.split()
        if len(fields) < 8 or fields[1] != "pass" or fields[7] != "postscreen":
            continue
        if fields[0].rpartition("/")[2] == name:
            yield subject.error(
                "the service is postscreen, which would take the proxy for the client;"
                " name a service of smtpd"
            )


def _judge_families(subject: Subject, families: frozenset[int]) -> Iterator[Finding]:
    value = _postconf("inet_protocols")
    if not value:
        yield subject.note(
            "cannot compare families with Postfix's inet_protocols, because postconf does"
            " not answer"
        )
        return
    has: frozenset[int] = frozenset().union(
        *(_VERSIONS.get(word, frozenset()) for word in value.replace(",", " ").split())
    )
    if lacks := families - has:
        yield subject.error(
            f"families lists {_names(lacks)}, but Postfix has inet_protocols = {value}:"
            " one such client would stop Postfix's service; list in families what"
            " Postfix has"
        )
    elif more := has - families:
        yield subject.note(
            f"{_names(more)} clients get a 421, although Postfix has inet_protocols ="
            f" {value}: families does not list them"
        )


def _judge_limits(subject: Subject) -> Iterator[Finding]:
    rate = _postconf("smtpd_client_connection_rate_limit")
    exceptions = _postconf("smtpd_client_event_limit_exceptions")
    if rate not in ("", "0") and "127.0.0." not in exceptions:
        yield subject.note(
            f"Postfix has smtpd_client_connection_rate_limit = {rate}: let"
            " smtpd_client_event_limit_exceptions have 127.0.0.1, from which proxyshim's"
            " probes seem to come"
        )


def _names(versions: frozenset[int]) -> str:
    return " and ".join(f"ipv{each}" for each in sorted(versions))


def _postconf(name: str) -> str:
    """Return a setting of this host's Postfix; empty if there is no answer."""
    return _ask_postconf("-hx", name)


def _ask_postconf(*arguments: str) -> str:
    """Return what postconf prints; empty if there is no answer."""
    program = shutil.which("postconf", path=_SEARCH_PATH)
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
