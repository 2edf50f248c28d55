"""``proxyshim check``: reports what would go wrong, and what to write to prevent it.

- ``surroundings.py``  reads facts outside the configuration: the lines of lists, local users
- ``setup.py``         judges listeners, lists and claims; reads nothing itself
- ``questions.py``     asks the backend, as the shim and on behalf of clients
- ``answers.py``       what a backend was asked, and what it answered
- ``verdicts.py``      judges the answers; asks nothing itself
- ``names.py``         asks the DNS servers whether they answer

``proxyshim/findings.py`` has the finding, its line, the summary and the exit status.
"""

import asyncio
from collections.abc import Callable
from contextlib import closing

from proxyshim.check.names import ask_dns_servers, judge_dns_servers
from proxyshim.check.questions import ask, find_backends
from proxyshim.check.setup import is_own_listener, judge_setup
from proxyshim.check.surroundings import look_around
from proxyshim.check.verdicts import judge
from proxyshim.config import Config
from proxyshim.findings import Finding, Severity, exit_status, summary
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
    for finding in judge_dns_servers(await ask_dns_servers(config)):
        report(finding)
    for backend in await find_backends(config, reactor):
        if is_own_listener(config, backend.name):
            report(_own_listener(str(backend.name)))
            continue
        answers = await ask(backend)
        for finding in judge(backend, answers):
            report(finding)
    say(summary(findings))
    return exit_status(findings)


def _own_listener(backend: str) -> Finding:
    return Finding(
        Severity.ERROR,
        f"backend {backend}",
        "is one of proxyshim's own listeners: each session would open another one,"
        " endlessly; write the address of the mail server as backend",
    )
