"""The configuration: one TOML file in, checked and typed settings out.

The dataclasses here are the reference: each field's default, unit and meaning stand at the field
and nowhere else in the code (etc/proxyshim.toml shows them all; a test holds the two together).
An error is a ConfigError that names file, key, value and what was expected.
"""

import difflib
import re
import socket
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as settings
from pydantic_core import ErrorDetails

from proxyshim.addresses import SocketName, read_address, read_socket_name
from proxyshim.allowlist import Allowlist, Networks
from proxyshim.errors import ConfigError
from proxyshim.proxy_header import DEFAULT_MAX_OCTETS

DEFAULT_PATH = Path("/etc/proxyshim/proxyshim.toml")

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Za-z.:]+\]"
)


def _own_name() -> str:
    """Return what a strict mail server takes from us, too: a qualified name, or an address."""
    name = socket.gethostname()
    return name if "." in name and _HOST_NAME.fullmatch(name) else "[127.0.0.1]"


def _check_host_name(value: str) -> str:
    if value and not _HOST_NAME.fullmatch(value):
        raise ValueError("expected a host name or an [address literal]")
    return value


def _check_text(value: str) -> str:
    if not value.isprintable():
        raise ValueError("expected no control characters")
    return value


def _check_bind(value: str) -> str:
    _read_name(value)
    return value


def _check_backend(value: str) -> str:
    name = _read_name(value)
    if name.descriptor or (not name.path and name.port == 0):
        raise ValueError('expected "address:port", "name:port" or "unix:/path"')
    return value


def _check_metrics_bind(value: str) -> str:
    name = _read_name(value)
    if name.path:
        raise ValueError('expected "address:port" or "systemd:NAME"')
    return value


def _read_name(value: str) -> SocketName:
    name = read_socket_name(value)
    if ":" in name.host:
        read_address(name.host)
    elif name.host and not _is_host_name(name.host):
        raise ValueError("expected an address or a host name before the port")
    return name


def _is_host_name(host: str) -> bool:
    try:
        host.encode("idna")  # as getaddrinfo() does; it limits the labels
    except UnicodeError:
        return False
    return _HOST_NAME.fullmatch(host) is not None


def _check_nameserver(value: str) -> str:
    address = value
    if not _is_address(address):
        name = read_socket_name(value)
        if not _is_address(name.host) or name.port == 0:
            raise ValueError('expected "address", "address:port" or "[v6]:port"')
    return value


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _in_a_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Seconds = Annotated[float, Field(strict=True, gt=0, le=86_400, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True, min_length=1), AfterValidator(_check_text)]
Flag = Annotated[bool, Field(strict=True)]
Bind = Annotated[Text, AfterValidator(_check_bind)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_in_a_tuple)]

_STRICT = ConfigDict(extra="forbid")


@settings(frozen=True, slots=True, config=_STRICT)
class Log:
    """The table [log]: events go to stderr."""

    # "json": an object a line; "console": for eyes.
    format: Literal["json", "console"] = "json"
    # The least level that is written.
    level: Literal["debug", "info", "warning", "error"] = "info"


@settings(frozen=True, slots=True, config=_STRICT)
class Metrics:
    """The table [metrics]: absent means off."""

    # Where /metrics, /livez and /readyz are served over HTTP: "address:port", or "systemd:NAME".
    bind: Annotated[Text, AfterValidator(_check_metrics_bind)]


@settings(frozen=True, slots=True, config=_STRICT)
class Dns:
    """The table [dns]: the clients' host names, for all listeners."""

    # DNS servers: "address", "address:port" or "[v6]:port".  Empty: those of the system.
    nameservers: Annotated[
        tuple[Annotated[Text, AfterValidator(_check_nameserver)], ...],
        BeforeValidator(_in_a_tuple),
    ] = ()
    # Clients whose names are remembered, for as long as the DNS allows.
    max_cached: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 20_000
    # Clients whose names are looked up at one time.  Beyond that, a session runs without names
    # ([TEMPUNAVAIL]) at once.  Postfix has as many processes, each with one lookup.
    max_in_flight: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 100


@settings(frozen=True, slots=True, config=_STRICT)
class Limits:
    """The table [limits]: for all listeners together.  Over one, the answer is 421 4.7.0."""

    # Sessions at one time.  0: as many as the file descriptors allow, two a session.
    sessions: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0
    # Sessions of one client at one time: of the client that the PROXY header names, an IPv6
    # client being its /64; health checks count for their proxy.  0: any number.
    sessions_per_client: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0
    # New connections in a second.  0: any number.
    connections_per_s: Annotated[
        float, Field(strict=True, ge=0, le=1_000_000, allow_inf_nan=False)
    ] = 0.0


@settings(frozen=True, slots=True, config=_STRICT)
class ListenerSettings:
    """A table [[listener]]: where clients and proxies connect, and what is behind."""

    # In logs and metrics; different for each listener.
    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    # "address:port", "[v6]:port" ("[::]" is IPv6 only), "unix:/path", or "systemd:NAME".
    bind: Annotated[tuple[Bind, ...], Field(min_length=1), BeforeValidator(_in_a_tuple)]
    # The MTA: "address:port", "name:port" or "unix:/path".
    backend: Annotated[Text, AfterValidator(_check_backend)]
    # How the backend learns who the client is.
    convey: Literal["xclient"] = "xclient"
    # A file of proxies that must send a PROXY header: an address or network a line, relative
    # to the configuration file.  Absent: nobody is listed, PROXY support is off.
    haproxy_hosts: Text | None = None
    # Where HAProxy's agent-check is answered, for listed hosts: "up", "drain" or "down".
    # "address:port"; absent: nowhere.
    agent_bind: Annotated[Text, AfterValidator(_check_bind)] | None = None
    # For the whole PROXY header, from accept to its last octet.
    header_timeout_s: Seconds = 30.0
    # The most that a v2 header may declare to follow its first 16 octets.
    header_max_octets: Annotated[int, Field(strict=True, ge=216, le=65_535)] = (
        DEFAULT_MAX_OCTETS
    )
    # Addresses or networks that a header must not claim, besides those that no header may.
    untrusted_claims: Texts = ()
    # Addresses or networks that a header may claim although they are this host's own, the
    # backend's, the proxy's or loopback.  Who sends them there is believed: with care.
    believed_claims: Texts = ()
    # What we call ourselves in our own EHLO.  Empty: the host's name if that is qualified, else
    # [127.0.0.1].
    ehlo_name: Annotated[str, Field(strict=True), AfterValidator(_check_host_name)] = ""
    # To connect to the backend, name lookup included.
    connect_timeout_s: Seconds = 5.0
    # Look up the client's host names in the DNS and tell the backend.  false: it hears
    # [UNAVAILABLE].
    resolve: Flag = True
    # To wait for them.  Then the backend hears [TEMPUNAVAIL], and the lookup goes on for the
    # next session.
    resolve_timeout_s: Seconds = 5.0
    # For the backend's greeting, and its replies to our EHLO and XCLIENT, each.
    reply_timeout_s: Seconds = 60.0
    # Silence in both directions that ends a session; never under 600 s while the backend
    # owes the answer to a message.
    idle_timeout_s: Seconds = 900.0
    # A session that still sends a message when the program stops gets so long to finish.
    drain_timeout_s: Seconds = 60.0
    # Where the backend keeps the right to XCLIENT, STARTTLS is withheld from clients and AUTH
    # with it.  true: let them log in all the same, in clear.
    allow_plaintext_auth: Flag = False
    # The mode of unix sockets in *bind*, four octal digits.  It is their allowlist.
    unix_mode: Annotated[Text, Field(pattern=r"^0[0-7]{3}$")] = "0660"


@settings(frozen=True, slots=True, config=_STRICT)
class _File:
    listener: Annotated[tuple[ListenerSettings, ...], Field(min_length=1)]
    log: Log = Log()
    metrics: Metrics | None = None
    dns: Dns = Dns()
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Listener:
    """A listener's settings, with what they name read and ready."""

    settings: ListenerSettings
    binds: tuple[SocketName, ...]
    backend: SocketName
    ehlo_name: str
    agent_bind: SocketName | None
    allowlist: Allowlist
    untrusted_claims: Networks
    believed_claims: Networks


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, as good as it was when it was read."""

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

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file at *path*, and the lists that it names.  Raises ConfigError."""
        file = _decode(path, _read(path))
        _check_unique(path, "name", (entry.name for entry in file.listener))
        _check_unique(path, "bind", _fixed_binds(file.listener))
        listeners = tuple(_ready(path, entry) for entry in file.listener)
        return cls(path, listeners, file.log, file.metrics, file.dns, file.limits)


def load(path: Path) -> Config:
    """Read the configuration at *path*.  Raises ConfigError."""
    return Config.load(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def read_text(path: Path) -> str:
    """Return a file's text.  Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8: {error.reason}, octet {error.start}"
        ) from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{str(path)!r}: cannot be read: {error}") from None


def _decode(path: Path, data: dict[str, Any]) -> _File:
    try:
        return TypeAdapter(_File).validate_python(data)
    except ValidationError as error:
        lines = [f"{path}: {_explain(found)}" for found in _first_causes(error)]
        raise ConfigError("\n".join(lines)) from None


def _first_causes(error: ValidationError) -> list[ErrorDetails]:
    """Leave out that a list is too short for want of its bad entries."""
    found = error.errors()
    return [
        one
        for one in found
        if one["type"] != "too_short"
        or not any(
            other is not one and other["loc"][: len(one["loc"])] == one["loc"]
            for other in found
        )
    ]


# What the types of our settings are called in a TOML file.
_EXPECTED: Final = {
    "tuple_type": "a list",
    "too_short": "at least one entry",
    "string_type": "a text in quotes",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "dataclass_type": "a table",
}


def _explain(error: ErrorDetails) -> str:
    """Say which key, its value, and what was expected."""
    key = _key_of(error["loc"])
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: missing; it has no default"
    value = f"{key} = {error['input']!r:.200}"
    if error["loc"] == ("listener",) and error["type"] == "tuple_type":
        return f"{value}: expected tables, each as [[listener]]"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{value}: unknown key{_nearest(error['loc'])}"
    if (expected := _EXPECTED.get(error["type"])) is not None:
        expected = expected.format(**error.get("ctx", {}))
    else:
        expected = error["msg"].removeprefix("Value error, ")
        expected = expected.removeprefix("Input should be ")
    return f"{value}: expected {expected.removeprefix('expected ')}"


def _key_of(location: Iterable[int | str]) -> str:
    key = ""
    for part in location:
        key += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _nearest(location: tuple[int | str, ...]) -> str:
    tables: dict[str, type] = {
        "log": Log,
        "metrics": Metrics,
        "dns": Dns,
        "limits": Limits,
        "listener": ListenerSettings,
    }
    table = tables.get(str(location[0]), _File) if len(location) > 1 else _File
    known = [field.name for field in fields(table)]
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _fixed_binds(entries: Iterable[ListenerSettings]) -> Iterable[str]:
    for entry in entries:
        for bind in entry.bind:
            if not bind.endswith(":0"):  # the kernel's choice is never taken twice
                yield bind


def _check_unique(path: Path, key: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ConfigError(
                f"{path}: listener.{key} = {value!r}: expected each only once"
            )
        seen.add(value)


def _ready(path: Path, entry: ListenerSettings) -> Listener:
    where = f"{path}: listener {entry.name}"
    allowlist = Allowlist()
    if entry.haproxy_hosts is not None:
        hosts_path = path.parent / entry.haproxy_hosts
        try:
            text = read_text(hosts_path)
        except ConfigError as error:
            key = f"haproxy_hosts = {entry.haproxy_hosts!r}"
            raise ConfigError(f"{where}: {key}: {error}") from None
        allowlist = Allowlist.parse(text, str(hosts_path))
    return Listener(
        settings=entry,
        binds=tuple(read_socket_name(bind) for bind in entry.bind),
        backend=read_socket_name(entry.backend),
        ehlo_name=entry.ehlo_name or _own_name(),
        agent_bind=read_socket_name(entry.agent_bind) if entry.agent_bind else None,
        allowlist=allowlist,
        untrusted_claims=Networks.from_entries(
            entry.untrusted_claims, f"{where}: untrusted_claims"
        ),
        believed_claims=Networks.from_entries(
            entry.believed_claims, f"{where}: believed_claims"
        ),
    )
