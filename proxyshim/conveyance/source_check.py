"""What ``proxyshim check`` finds out about connections from clients' addresses.

It connects from addresses that no host has, and where that fails, it reads this host's rules,
routes and kernel settings and names what is missing, with the command that sets it.  For that it
has to run as root.  ``ip -json`` shows the rules and routes, so no netlink library is needed.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from proxyshim.addresses import Address, SocketName
from proxyshim.backend.address import BackendAddress, Fault
from proxyshim.backend.dial import Dial
from proxyshim.config import Listener
from proxyshim.conveyance.asking import examine_sessions
from proxyshim.conveyance.contract import Conveyance, Examined
from proxyshim.conveyance.source_routes import (
    ACCEPT_MARK,
    DEFAULT_MARK,
    TABLE,
    Place,
    Target,
    accept_mark,
    add_route,
    add_rule,
    mark_answers,
    place_of,
)
from proxyshim.conveyance.source_test import find_fault
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Finding, Subject

_COMMAND_WITHIN_S: Final = 10.0
_NO_SESSIONS: Final = "every client would get a 421"
_SYSCTL: Final = Path("/proc/sys")
_DROP_IN: Final = "systemd/proxyshim.service.d/source-address.conf.example"


async def examine(
    conveyance: Conveyance,
    mark: int,
    dial: Dial,
    listeners: Sequence[Listener],
    clients: Sequence[Address],
) -> Examined:
    """Test each address of the backend, and a session for each of *clients*.

    *mark* is the ``source_mark`` of the *listeners*.
    """
    subject = Subject(f"backend {dial.name}")
    findings = list(_judge_families(subject, dial, listeners))
    findings += _judge_service(subject)
    usable: set[int] = set()
    for address in dial.addresses.current:
        assert address.ip is not None
        found = await _examine(subject, dial, address, address.ip, mark)
        if found:
            findings += found
        else:
            usable.add(address.ip.version)
    if not dial.addresses.current:
        findings.append(subject.error(f"has no address; {_NO_SESSIONS}"))
    able = [client for client in clients if client.version in usable]
    return await examine_sessions(
        conveyance,
        dial,
        able,
        findings,
        "greets a client that connects from {}, as that client",
    )


def _judge_families(
    subject: Subject, dial: Dial, listeners: Sequence[Listener]
) -> Iterator[Finding]:
    here = {each.ip.version for each in dial.addresses.current if each.ip is not None}
    for listener in listeners:
        served: set[int] = set(here)
        if len(listener.backends) > 1:
            for each in listener.backends:
                served |= _versions_of(each)
        accepted = {
            6 if ":" in bind.host else 4 for bind in listener.binds if bind.host
        }
        for version in sorted(accepted - served):
            yield subject.warning(
                f"has no IPv{version} address, but listener {listener.settings.name}"
                f" takes IPv{version} clients, which would get a 421: add an IPv{version}"
                " address to backend"
            )


def _versions_of(backend: SocketName) -> set[int]:
    """Return the IP versions that a backend may have; both for a host name."""
    try:
        return {ip_address(backend.host).version}
    except ValueError:
        return {4, 6}


def _judge_service(subject: Subject) -> Iterator[Finding]:
    """Judge the capabilities that the installed service gets from systemd."""
    shown = _output(
        "systemctl", "show", "proxyshim.service", "-p", "LoadState,AmbientCapabilities"
    )
    if "LoadState=loaded" in shown and "cap_net_raw" not in shown:
        yield subject.error(
            "proxyshim.service has no CAP_NET_RAW, so it may not use the clients' IPv4"
            f" addresses: copy {_DROP_IN} to"
            " /etc/systemd/system/proxyshim.service.d/source-address.conf, then run"
            " systemctl daemon-reload and systemctl restart proxyshim"
        )


async def _examine(
    subject: Subject, dial: Dial, address: BackendAddress, ip: Address, mark: int
) -> list[Finding]:
    """Return what keeps *address* from serving clients; nothing if nothing does."""
    try:
        fault = await find_fault(dial, address, mark)
    except BackendError as error:
        return [subject.error(f"{ip} does not answer: {error.detail}; {_NO_SESSIONS}")]
    if fault is None:
        return []
    return [
        subject.error(f"{cause}; {_NO_SESSIONS}")
        for cause in _find_causes(ip, fault, mark)
    ]


def _find_causes(ip: Address, fault: Fault, mark: int) -> Iterator[str]:
    if fault.reason is not Reason.SOURCE_UNROUTED:
        yield f"{fault.detail}; run proxyshim check as root"
        return
    target = Target(ip, place_of(ip), mark or DEFAULT_MARK)
    missing = list(find_missing(target, is_marked=mark != 0))
    yield from missing
    if missing:
        return
    if target.place is Place.OTHER_HOST:
        yield (
            f"{fault.detail}; this host has the rule and the route, so the answers of {ip}"
            " to its clients do not pass through this host: make this host the gateway of"
            f" {ip} (its default route), and look for net.ipv4.conf.*.rp_filter = 1"
            " on the interface towards it"
        )
    else:
        yield f"{fault.detail}; a packet filter on this host may drop the answers"


def find_missing(target: Target, *, is_marked: bool) -> Iterator[str]:
    """Yield what this host lacks, each with the command that provides it."""
    ip, place = target.address, target.place
    if place is Place.OWN_ADDRESS and not is_marked:
        yield (
            f"{ip} is this host's own address, and source_mark is 0: write source_mark ="
            f" {DEFAULT_MARK} into the listener, then run proxyshim routes --set"
        )
        return
    tables = {rule["table"] for rule in _rules(ip.version) if _selects(rule, target)}
    if not tables:
        yield f"the rule for the answers of {ip} is missing: run {add_rule(target)}"
    if not any(_delivers(ip.version, table) for table in tables or {str(TABLE)}):
        yield f"the route for the answers of {ip} is missing: run {add_route(ip.version)}"
    if place is Place.OWN_ADDRESS and _kernel_setting(ACCEPT_MARK) == "0":
        yield f"the kernel setting {ACCEPT_MARK} is 0: run {accept_mark()}"
    if place is Place.OTHER_HOST and "socket transparent 1" not in _output(
        "nft", "list", "ruleset"
    ):
        yield (
            f"the packet filter does not mark the answers of {ip}: run "
            + "; ".join(mark_answers(target.mark))
        )


def _rules(version: int) -> list[dict[str, Any]]:
    return _json("ip", "-json", f"-{version}", "rule", "show")


def _selects(rule: dict[str, Any], target: Target) -> bool:
    if target.place is Place.LOOPBACK:
        return rule.get("iif") == "lo" and _covers(rule, target.address)
    return rule.get("fwmark") == f"{target.mark:#x}"


def _covers(rule: dict[str, Any], address: Address) -> bool:
    source, length = rule["src"], rule.get("srclen")
    if source == str(address):
        return True
    return address.version == 4 and source.startswith("127.") and length == 8


def _delivers(version: int, table: str) -> bool:
    routes = _json("ip", "-json", f"-{version}", "route", "show", "table", table)
    return any(
        route.get("type") == "local" and route.get("dst") == "default"
        for route in routes
    )


def _kernel_setting(name: str) -> str:
    try:
        return (_SYSCTL / name.replace(".", "/")).read_text().strip()
    except OSError:
        return ""


def _json(*argv: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(_output(*argv) or "[]")
    except ValueError:
        return []
    return [each for each in found if each]


def _output(*argv: str) -> str:
    """Return what a program prints; nothing if it fails or is not installed."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_COMMAND_WITHIN_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
