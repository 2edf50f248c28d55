"""Does the sandbox allow what the configuration asks for?  What it does not is said at the start.

systemd's IPAddressDeny= drops packets: a connection that it forbids only times out.  But a datagram
fails at once, with EPERM, so one without content goes to the discard port of each address in
question.  With PrivateNetwork= our own sockets are in another network than those that a socket unit
passed: SO_NETNS_COOKIE tells.  Source: systemd.resource-control(5), systemd.exec(5), socket(7).
"""

import errno
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from proxyshim.addresses import Address, SocketName, read_socket_name
from proxyshim.config import Config

_DISCARD_PORT: Final = 9  # RFC 863
_SO_NETNS_COOKIE: Final = 71  # <asm-generic/socket.h>, Linux 5.14
# Documentation (RFC 5737, RFC 3849): only asked which address of ours would be used.
_SOMEBODY: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
_RESOLV_CONF: Final = Path("/etc/resolv.conf")

_NO_FAMILY: Final = (
    "RestrictAddressFamilies= of the unit does not allow its kind of address"
)
_NO_PACKET: Final = (
    "IPAddressAllow= of the unit does not hold it, or a packet filter forbids it"
)
_NO_NETWORK: Final = "PrivateNetwork= of the unit leaves nothing to be reached"
_NO_OWN_ADDRESSES: Final = (
    "the unit does not let us see which addresses are this host's: name them here, or a PROXY"
    " header that names one is believed"
)


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A key of the configuration, its value, and why that can't be."""

    key: str
    value: str
    detail: str


def find_forbidden(
    config: Config,
    backends: Mapping[str, Collection[Address]],
    listening: Iterable[socket.socket],
) -> list[Forbidden]:
    """Return what the sandbox forbids.

    *backends* are the addresses of each listener's backend, *listening* all listening sockets.
    """
    apart = _is_network_private(listening)
    return [
        Forbidden(key, value, why)
        for key, value, address in _asked_for(config, backends)
        if (why := _why_not(address, apart=apart)) is not None
    ] + list(_unseen_addresses(config, apart=apart))


def _asked_for(
    config: Config, backends: Mapping[str, Collection[Address]]
) -> Iterator[tuple[str, str, Address]]:
    """Yield key, value and address of all that we send packets to, or answer from."""
    if config.metrics is not None:
        bind = read_socket_name(config.metrics.bind)
        yield from _own("metrics.bind", bind)
    for listener in config.listeners:
        name = listener.settings.name
        for bind in listener.binds:
            yield from _own(f"listener {name}: bind", bind)
        for address in backends[name]:
            yield f"listener {name}: backend", str(listener.backend), address
    if any(listener.settings.resolve for listener in config.listeners):
        for server in config.dns.nameservers or _system_nameservers():
            yield "dns.nameservers", server, _address_of(server)


def _own(key: str, bind: SocketName) -> Iterator[tuple[str, str, Address]]:
    """Yield an address that *bind* is reached at, where the kernel is to deliver to it."""
    with suppress(ValueError, OSError):  # no address, or none of that family
        address = ip_address(bind.host)
        if address.is_unspecified:
            address = _own_address(address.version)
        yield key, str(bind), address


def _own_address(version: int) -> Address:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((_SOMEBODY[version], _DISCARD_PORT))  # sends nothing
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


def _why_not(address: Address, *, apart: bool) -> str | None:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            if apart:
                return _NO_NETWORK
            sock.sendto(b"", (str(address), _DISCARD_PORT))
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return _NO_FAMILY
        if error.errno == errno.EPERM:
            return _NO_PACKET
    return None  # what else there may be is not the sandbox, and may pass


def _unseen_addresses(config: Config, *, apart: bool) -> Iterator[Forbidden]:
    if apart or not _has_internet_sockets():
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
    """Tell whether a socket that was passed is in another network than a new one."""
    with socket.socket(socket.AF_UNIX) as sock:
        ours = _network_of(sock)
    return any(
        _network_of(sock) != ours for sock in listening if sock.family != socket.AF_UNIX
    )


def _network_of(sock: socket.socket) -> bytes:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:  # an older kernel does not tell
        return b""
