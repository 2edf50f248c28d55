"""What a single value may be: the types of the settings, and their checks."""

import re
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from proxyshim.addresses import SocketName, read_address, read_socket_name

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Za-z.:]+\]"
)


def is_ehlo_name(value: str) -> bool:
    """Return True if *value* is a host name or an address literal, as an EHLO takes."""
    return _HOST_NAME.fullmatch(value) is not None


def _check_ehlo_name(value: str) -> str:
    if value and not is_ehlo_name(value):
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
        host.encode("idna")  # getaddrinfo() does this too; it limits the labels
    except UnicodeError:
        return False
    return _HOST_NAME.fullmatch(host) is not None


def _check_nameserver(value: str) -> str:
    if not _is_address(value):
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
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, min_length=1), AfterValidator(_check_text)]
EhloName = Annotated[str, Field(strict=True), AfterValidator(_check_ehlo_name)]

Bind = Annotated[Text, AfterValidator(_check_bind)]
Backend = Annotated[Text, AfterValidator(_check_backend)]
MetricsBind = Annotated[Text, AfterValidator(_check_metrics_bind)]
Nameserver = Annotated[Text, AfterValidator(_check_nameserver)]

# A single text may stand for a list of one.
Texts = Annotated[tuple[Text, ...], BeforeValidator(_in_a_tuple)]
Backends = Annotated[
    tuple[Backend, ...], Field(min_length=1), BeforeValidator(_in_a_tuple)
]
Binds = Annotated[tuple[Bind, ...], Field(min_length=1), BeforeValidator(_in_a_tuple)]
Families = Annotated[tuple[Literal["ipv4", "ipv6"], ...], BeforeValidator(_in_a_tuple)]
Nameservers = Annotated[tuple[Nameserver, ...], BeforeValidator(_in_a_tuple)]
