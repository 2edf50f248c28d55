"""The TCP services of Postfix's master.cf, as ``postconf -M`` shows them."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_TIMEOUT_S: Final = 5.0
_SEARCH_PATH: Final = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


@dataclass(frozen=True, slots=True)
class InetService:
    """One enabled entry of the type inet: its *name* in master.cf, and what that means."""

    name: str
    host: str  # empty: those in inet_interfaces
    port: int


def read_inet_services() -> tuple[InetService, ...]:
    """Return the enabled services of this host's Postfix; none if there is no Postfix."""
    disabled = set(_ask("-h", "master_service_disable").replace(",", " ").split())
    if "inet" in disabled:
        return ()
    return tuple(
        each
        for each in _parse(_ask("-M"))
        if f"{each.name}.inet" not in disabled and f"{each.name}/inet" not in disabled
    )


def _ask(*words: str) -> str:
    program = shutil.which("postconf") or shutil.which("postconf", path=_SEARCH_PATH)
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def _parse(text: str) -> Iterator[InetService]:
    for line in text.splitlines():
        name, kind, *_ = [*line.split(), "", ""]
        if kind == "inet":
            host, _, port = name.rpartition(":")
            host = host.strip("[]")
            number = _number_of(port)
            if number:
                yield InetService(
                    name, "127.0.0.1" if host == "localhost" else host, number
                )


def _number_of(port: str) -> int:
    try:
        return int(port) if port.isdecimal() else socket.getservbyname(port, "tcp")
    except OSError:
        return 0
