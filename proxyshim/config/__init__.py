"""The configuration: one TOML file in, checked and typed settings out.

- ``settings.py``  every key, with its default, unit and meaning: the reference
- ``values.py``    what a single value may be
- ``explain.py``   turns pydantic's errors into our own words
- ``files.py``     reads files, within limits
- ``denylist.py``  reads ``denied_clients``
- ``certificates.py``  reads the certificates for our own TLS

This module parses the file and the lists that it names.  An error is a ConfigError that names
the file, the key, the value and what was expected.
"""

import socket
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import TypeAdapter, ValidationError

from proxyshim.addresses import SocketName, read_socket_name
from proxyshim.allowlist import Allowlist, Networks
from proxyshim.config.certificates import ServerTls, read_tls
from proxyshim.config.denylist import Denylist, read_denylist
from proxyshim.config.explain import explain
from proxyshim.config.files import read_text
from proxyshim.config.settings import (
    Convey,
    Dns,
    File,
    Limits,
    ListenerSettings,
    Log,
    Metrics,
)
from proxyshim.config.values import is_ehlo_name
from proxyshim.errors import ConfigError, NotReadyError

__all__ = [
    "CONVEYANCES",
    "DEFAULT_PATH",
    "Config",
    "Dns",
    "Limits",
    "Listener",
    "ListenerSettings",
    "Log",
    "Metrics",
    "load",
    "read_text",
]

DEFAULT_PATH = Path("/etc/proxyshim/proxyshim.toml")

# The values that ``convey`` may have.
CONVEYANCES: Final[tuple[str, ...]] = get_args(Convey)


@dataclass(frozen=True, slots=True)
class Listener:
    """A listener's settings, and what they name: addresses parsed, lists read."""

    settings: ListenerSettings
    binds: tuple[SocketName, ...]
    backends: tuple[SocketName, ...]  # in the order of preference
    ehlo_name: str
    agent_bind: SocketName | None
    allowlist: Allowlist
    untrusted_claims: Networks
    believed_claims: Networks
    denylist: Denylist | None = None
    tls: ServerTls | None = None

    @property
    def backend_names(self) -> str:
        """The backends as configured, for messages."""
        return ", ".join(map(str, self.backends))


@dataclass(frozen=True, slots=True)
class Config:
    """A complete, validated configuration: a snapshot of the files at load time."""

    path: Path
    listeners: tuple[Listener, ...]
    log: Log
    metrics: Metrics | None
    dns: Dns
    limits: Limits

    def listener(self, name: str) -> Listener | None:
        """Return the listener of that name."""
        return next(
            (found for found in self.listeners if found.settings.name == name), None
        )


def load(path: Path) -> Config:
    """Read the file at *path*, and the lists that it names.  Raises ConfigError."""
    file = _validate(path, _read_toml(path))
    _check_unique(path, "name", (entry.name for entry in file.listener))
    _check_unique(path, "bind", _fixed_binds(file.listener))
    listeners = tuple(_prepare(path, entry) for entry in file.listener)
    return Config(path, listeners, file.log, file.metrics, file.dns, file.limits)


def _read_toml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: lists or tables are nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except ValueError as error:  # from int(), about thousands of digits
        reason = str(error).partition(";")[0]
        raise ConfigError(f"{path}: a number is too long: {reason}") from None


def _validate(path: Path, data: dict[str, Any]) -> File:
    try:
        return TypeAdapter(File).validate_python(data)
    except ValidationError as error:
        lines = [f"{path}: {line}" for line in explain(error)]
        raise ConfigError("\n".join(lines)) from None


def _fixed_binds(entries: Iterable[ListenerSettings]) -> Iterable[str]:
    for entry in entries:
        for bind in entry.bind:
            if not bind.endswith(":0"):  # the kernel never chooses a port twice
                yield bind


def _check_unique(path: Path, key: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ConfigError(
                f"{path}: listener.{key} = {value!r}: appears more than once"
            )
        seen.add(value)


def _prepare(path: Path, entry: ListenerSettings) -> Listener:
    where = f"{path}: listener {entry.name}"
    allowlist = Allowlist()
    if entry.haproxy_hosts is not None:
        hosts_path = path.parent / entry.haproxy_hosts
        with _naming(f"{where}: haproxy_hosts = {entry.haproxy_hosts!r:.200}"):
            text = read_text(hosts_path)
        allowlist = Allowlist.parse(text, str(hosts_path))
    denylist = None
    if entry.denied_clients is not None:
        with _naming(f"{where}: denied_clients = {entry.denied_clients!r:.200}"):
            denylist = read_denylist(path.parent / entry.denied_clients)
    backends = tuple(map(read_socket_name, entry.backend))
    _check_unique(path, "backend", entry.backend)
    if entry.convey == "source-address" and any(each.path for each in backends):
        [unix, *_] = (str(each) for each in backends if each.path)
        raise ConfigError(
            f"{where}: backend = {unix!r}: expected an address or a name with a"
            ' port, because with convey = "source-address" the backend reads the client\'s'
            " address from its socket, and a unix socket has none"
        )
    if entry.convey == "postfix-pass":
        _check_pass(where, entry, backends)
    return Listener(
        settings=entry,
        binds=tuple(read_socket_name(bind) for bind in entry.bind),
        backends=backends,
        ehlo_name=entry.ehlo_name or _own_name(),
        agent_bind=read_socket_name(entry.agent_bind) if entry.agent_bind else None,
        allowlist=allowlist,
        untrusted_claims=Networks.from_entries(
            entry.untrusted_claims, f"{where}: untrusted_claims"
        ),
        believed_claims=Networks.from_entries(
            entry.believed_claims, f"{where}: believed_claims"
        ),
        denylist=denylist,
        tls=read_tls(where, path.parent, entry),
    )


def _check_pass(
    where: str, entry: ListenerSettings, backends: Sequence[SocketName]
) -> None:
    if len(backends) > 1 or not backends[0].path:
        raise ConfigError(
            f"{where}: backend = {', '.join(entry.backend)!r}: expected the socket of one"
            ' service, such as "unix:/var/spool/postfix/public/NAME", because with convey'
            ' = "postfix-pass" Postfix gets the clients\' sockets'
        )
    if not entry.families:
        raise ConfigError(
            f'{where}: families: required with convey = "postfix-pass": write the IP'
            ' versions that Postfix has (postconf inet_protocols): ["ipv4", "ipv6"], or'
            " one of them"
        )


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Add the *key* that names a file to what is wrong with it."""
    try:
        yield
    except ConfigError as error:
        kind = NotReadyError if isinstance(error, NotReadyError) else ConfigError
        lines = str(error).splitlines()
        raise kind("\n".join(f"{key}: {line}" for line in lines)) from None


def _own_name() -> str:
    """Return a name that strict mail servers accept too: a qualified one, or an address."""
    name = socket.gethostname()
    return name if "." in name and is_ehlo_name(name) else "[127.0.0.1]"
