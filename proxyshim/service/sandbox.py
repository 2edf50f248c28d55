"""Detect at the start what the systemd unit's sandbox forbids although the configuration needs it.

systemd's IPAddressDeny= drops packets, so a forbidden connection only times out.  Sending a UDP
datagram, however, fails immediately with EPERM, so we send an empty one to the discard port of
every address that we need to reach.  With PrivateNetwork= our new sockets belong to another network
namespace than those that a socket unit passed; SO_NETNS_COOKIE shows the difference.

Source: systemd.resource-control(5), systemd.exec(5), socket(7).
"""

import errno
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from proxyshim.addresses import Address, SocketName, read_socket_name
from proxyshim.config import Config
from proxyshim.service.systemd import has_manager

_DISCARD_PORT: Final = 9  # RFC 863
_SO_NETNS_COOKIE: Final = 71  # <asm-generic/socket.h>, Linux 5.14
# Addresses for documentation (RFC 5737, RFC 3849).  We send nothing to them, but connect a socket
# to see which of our own addresses the kernel would use.
_REMOTE: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
_RESOLV_CONF: Final = Path("/etc/resolv.conf")

_NO_FAMILY: Final = (
    "RestrictAddressFamilies= in the unit does not allow this kind of address"
)
_NO_PACKET: Final = (
    "IPAddressAllow= in the unit does not include it, or a packet filter blocks it"
)
_NO_NETWORK: Final = "PrivateNetwork= in the unit makes every address unreachable"
_NO_OWN_ADDRESSES: Final = (
    "the unit prevents us from finding out this host's addresses: list them here, or we will"
    " believe a PROXY header that claims one of them"
)


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A configuration key, its value, and why the sandbox makes it fail."""

    key: str
    value: str
    detail: str


def report_forbidden(
    log: Any,
    config: Config,
    backends: Mapping[str, Collection[Address]],
    listening: Iterable[socket.socket],
) -> None:
    """Log what the sandbox forbids.  Without a service manager there is no sandbox.

    *backends* maps each listener to the addresses of its backend; *listening* are all listening
    sockets.
    """
    if has_manager():
        for found in _find_forbidden(config, backends, listening):
            log.error("sandbox_forbids", **asdict(found))


def _find_forbidden(
    config: Config,
    backends: Mapping[str, Collection[Address]],
    listening: Iterable[socket.socket],
) -> list[Forbidden]:
    private = _is_network_private(listening)
    return [
        Forbidden(key, value, why)
        for key, value, address in _needed_addresses(config, backends)
        if (why := _obstacle(address, private=private)) is not None
    ] + list(_hidden_addresses(config, private=private))


def _needed_addresses(
    config: Config, backends: Mapping[str, Collection[Address]]
) -> Iterator[tuple[str, str, Address]]:
    """Yield key, value and address of everything that we send packets to or from."""
    if config.metrics is not None:
        bind = read_socket_name(config.metrics.bind)
        yield from _needed_bind("metrics.bind", bind)
    for listener in config.listeners:
        name = listener.settings.name
        for bind in listener.binds:
            yield from _needed_bind(f"listener {name}: bind", bind)
        for address in backends[name]:
            yield f"listener {name}: backend", listener.backend_names, address
    if any(listener.settings.resolve for listener in config.listeners):
        for server in config.dns.nameservers or _system_nameservers():
            yield "dns.nameservers", server, _address_of(server)


def _needed_bind(key: str, bind: SocketName) -> Iterator[tuple[str, str, Address]]:
    """Yield the address at which *bind* is reached, if it is an IP socket."""
    # ValueError: not an address.  OSError: this host has no address of the family.
    with suppress(ValueError, OSError):
        address = ip_address(bind.host)
        if address.is_unspecified:
            address = _own_address(address.version)
        yield key, str(bind), address


def _own_address(version: int) -> Address:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((_REMOTE[version], _DISCARD_PORT))  # sends nothing
        return ip_address(sock.getsockname()[0])


def _system_nameservers() -> Iterator[str]:
    with suppress(OSError):
        for line in _RESOLV_CONF.read_text("utf-8", "replace").splitlines():
            word, _, value = line.strip().partition(" ")
            if word == "nameserver":
                with suppress(ValueError):
                    yield str(ip_address(value.strip().partition("%")[0]))


def _address_of(server: str) -> Address:
    try:
        return ip_address(server)
    except ValueError:
        return ip_address(read_socket_name(server).host)


def _obstacle(address: Address, *, private: bool) -> str | None:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            if private:
                return _NO_NETWORK
            sock.sendto(b"", (str(address), _DISCARD_PORT))
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return _NO_FAMILY
        if error.errno == errno.EPERM:
            return _NO_PACKET
    return None  # any other error is not the sandbox's doing and may be temporary


def _hidden_addresses(config: Config, *, private: bool) -> Iterator[Forbidden]:
    if private or not _has_internet_sockets():
        for listener in config.listeners:
            settings = listener.settings
            if settings.haproxy_hosts is not None and not settings.untrusted_claims:
                key = f"listener {settings.name}: untrusted_claims"
                yield Forbidden(key, "[]", _NO_OWN_ADDRESSES)


def _has_internet_sockets() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def _is_network_private(listening: Iterable[socket.socket]) -> bool:
    """Return True if a listening socket belongs to another network namespace than a new one."""
    with socket.socket(socket.AF_UNIX) as sock:
        own = _network_cookie(sock)
    return any(
        _network_cookie(sock) != own
        for sock in listening
        if sock.family != socket.AF_UNIX
    )


def _network_cookie(sock: socket.socket) -> bytes:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:  # this kernel is too old to know
        return b""
