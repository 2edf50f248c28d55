"""``proxyshim check``: reports what would go wrong, and what to write to prevent it.

- ``surroundings.py``  reads facts outside the configuration: the lines of lists, local users, and
                       with ``own_addresses.py``, ``master_cf.py`` and ``ports_in_use.py`` the
                       host's addresses, Postfix's services, and who listens on which port
- ``ports.py``         judges ports that two programs want, or that master.cf has twice
- ``setup.py``         judges listeners, lists and claims; reads nothing itself
- ``backends.py``      finds the backends to ask, and the clients in whose name to ask them
- ``relaying.py``      asks a backend for whom it would relay, and judges the replies
- ``encryption.py``    where TLS ends here: judges certificates, and backends that want TLS
- ``names.py``         asks the DNS servers whether they answer

A conveyance asks and judges itself whether it works and is safe (``conveyance/contract.py``).
``proxyshim/findings.py`` has the finding, its line, the summary and the exit status.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing

from proxyshim.check.backends import Backend, find_backends
from proxyshim.check.encryption import (
    ask_in_plaintext,
    ends_tls,
    judge_certificates,
    judge_plaintext,
)
from proxyshim.check.names import ask_dns_servers, judge_dns_servers
from proxyshim.check.ports import judge_ports
from proxyshim.check.relaying import ask_to_relay, judge_relaying
from proxyshim.check.setup import is_own_listener, judge_setup
from proxyshim.check.surroundings import look_around
from proxyshim.config import Config
from proxyshim.findings import Finding, Subject, exit_status, summary
from proxyshim.net.reactor import Reactor


async def examine(config: Config, say: Callable[[str], None]) -> int:
    """Check everything, *say* each finding as soon as it is made, and return the exit status.

    Raises ConfigError if a list has become unreadable since it was loaded.
    """
    with closing(Reactor(asyncio.get_running_loop())) as reactor:
        return await _examine(config, reactor, say)


async def _examine(config: Config, reactor: Reactor, say: Callable[[str], None]) -> int:
    findings: list[Finding] = []

    def report(finding: Finding) -> None:
        findings.append(finding)
        say(str(finding))

    surroundings = look_around(config)
    for finding in judge_setup(config, surroundings):
        report(finding)
    for finding in judge_certificates(config):
        report(finding)
    for finding in judge_ports(config, surroundings):
        report(finding)
    for finding in judge_dns_servers(await ask_dns_servers(config)):
        report(finding)
    for backend in await find_backends(config, reactor):
        async for finding in _examine_backend(config, backend):
            report(finding)
    say(summary(findings))
    return exit_status(findings)


async def _examine_backend(config: Config, backend: Backend) -> AsyncIterator[Finding]:
    if is_own_listener(config, backend.name):
        yield Subject(f"backend {backend.name}").error(
            "is one of proxyshim's own listeners: each session would open another one,"
            " endlessly; set backend to the address of the mail server"
        )
        return
    examined = await backend.conveyance.examine(
        backend.dial, backend.listeners, backend.clients
    )
    for finding in examined.findings:
        yield finding
    if examined.remaining and ends_tls(backend):
        for finding in judge_plaintext(backend, await ask_in_plaintext(backend)):
            yield finding
    if examined.remaining:
        replies = await ask_to_relay(backend, examined.remaining)
        for finding in judge_relaying(backend, replies):
            yield finding
