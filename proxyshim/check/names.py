"""Asks each DNS server whether it answers, because clients' host names come from there."""

import asyncio
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import dns.reversename
from dns.rdatatype import PTR

from proxyshim.config import Config
from proxyshim.dns.client import DnsClient, DnsError
from proxyshim.dns.system import System
from proxyshim.findings import Finding, Severity

LIMIT_S: Final = 3.0
# The name of 127.0.0.1: resolvers answer it themselves (RFC 6303), and any answer will do.
_QUESTION: Final = dns.reversename.from_address("127.0.0.1")
_NO_ROUTE: Final = tuple(map(os.strerror, (errno.ENETUNREACH, errno.EHOSTUNREACH)))


@dataclass(frozen=True, slots=True)
class DnsFailure:
    """Why a DNS server does not answer; *no_route* if this host cannot send it anything now."""

    detail: str
    no_route: bool = False


async def ask_dns_servers(config: Config) -> Mapping[str, DnsFailure | None]:
    """Return what is wrong with each DNS server; None if it answers.

    Nobody is asked if no listener looks up names.
    """
    if not any(listener.settings.resolve for listener in config.listeners):
        return {}
    servers = tuple(config.dns.nameservers) or System().servers()
    found = await asyncio.gather(*map(_ask, servers))
    return dict(zip(servers, found, strict=True))


async def _ask(server: str) -> DnsFailure | None:
    try:
        async with asyncio.timeout(LIMIT_S):
            await DnsClient(lambda: (server,)).ask(_QUESTION, PTR)
    except TimeoutError:
        return DnsFailure(f"no answer within {LIMIT_S:g} s")
    except DnsError as error:
        detail = error.detail.removeprefix(f"{server}: ")
        return DnsFailure(detail, no_route=detail in _NO_ROUTE)
    return None


def judge_dns_servers(answers: Mapping[str, DnsFailure | None]) -> Iterator[Finding]:
    """Yield a finding if a server does not answer."""
    failures = {server: why for server, why in answers.items() if why is not None}
    if not failures:
        return
    shown = "; ".join(f"{server}: {why.detail}" for server, why in failures.items())
    # A host that is not connected yet may be set up all the same.
    severity = (
        Severity.NOTE
        if all(why.no_route for why in failures.values())
        else Severity.WARNING
    )
    text = f"{shown}: another server answers, so some names come later"
    if len(failures) == len(answers):
        text = (
            f"{shown}: the names of all clients will be [TEMPUNAVAIL], and mail that"
            " needs them is delayed; repair the DNS, write servers that answer as"
            " dns.nameservers, or set resolve = false"
        )
    yield Finding(severity, "dns", text)
