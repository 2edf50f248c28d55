"""Judges ports that two programs want, or that master.cf gives away twice.  Pure."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Final

from proxyshim.addresses import Address, SocketName
from proxyshim.check.master_cf import InetService
from proxyshim.check.ports_in_use import Holder
from proxyshim.check.setup import subject_of
from proxyshim.check.surroundings import Surroundings
from proxyshim.config import Config
from proxyshim.findings import Finding, Severity, Subject

_LOCALHOST: Final = "127.0.0.1"


def judge_ports(config: Config, surroundings: Surroundings) -> Iterator[Finding]:
    """Yield the findings about the ports of backends and of listeners."""
    backends = {name: None for each in config.listeners for name in each.backends}
    for backend in backends:
        yield from _judge_backend(backend, surroundings.services)
    for listener in config.listeners:
        for bind in listener.binds:
            if bind.host and bind.port:
                text = _find_rival(bind, surroundings)
                if text is not None:
                    yield Finding(
                        Severity.WARNING, subject_of(listener), f"bind {bind}: {text}"
                    )


def _judge_backend(
    backend: SocketName, services: Iterable[InetService]
) -> Iterator[Finding]:
    host = _LOCALHOST if backend.host == "localhost" else backend.host
    same = [each for each in services if (each.host, each.port) == (host, backend.port)]
    if len(same) > 1:
        yield Subject(f"backend {backend}").error(
            f"master.cf has {len(same)} services on this port"
            f" ({', '.join(each.name for each in same)}), and Postfix uses the last one"
            " only; if a content filter returns its mail to the other one, mail loops"
            " until it bounces; give the service behind proxyshim a port of its own, and"
            " write that into backend"
        )


def _find_rival(bind: SocketName, surroundings: Surroundings) -> str | None:
    """Return who else wants the port, if anybody does."""
    holder = next((e for e in surroundings.holders if _is_held(bind, e)), None)
    if holder is not None:
        return (
            f"in use by {holder.program} (process {holder.pid}), so proxyshim cannot open"
            " it; see which program that is, and stop it or give it another port; if it is"
            " Postfix's master, disable the service in master.cf"
        )
    service = next((e for e in surroundings.services if _is_wanted(bind, e)), None)
    if service is not None:
        return (
            f"Postfix opens it too ({service.name} inet in master.cf); disable that"
            f" service: postconf -e master_service_disable={service.name}.inet"
        )
    return None


def _is_held(bind: SocketName, holder: Holder) -> bool:
    return bind.port == holder.port and _overlap(_address(bind.host), holder.address)


def _is_wanted(bind: SocketName, service: InetService) -> bool:
    if bind.port != service.port:
        return False
    if not service.host:
        return True
    return _overlap(_address(bind.host), _address(service.host))


def _address(host: str) -> Address | None:
    """Return the address that is written there; None for a name."""
    try:
        return ip_address(_LOCALHOST if host == "localhost" else host)
    except ValueError:
        return None


def _overlap(one: Address | None, other: Address | None) -> bool:
    """Return True if two sockets on one port exclude each other.

    [::] of another program usually covers IPv4 as well; ours does not.
    """
    if one is None or other is None:
        return False
    if other.version == 6 and other.is_unspecified:
        return True
    return one.version == other.version and (
        one == other or one.is_unspecified or other.is_unspecified
    )
