"""Listening sockets: bound here, passed by systemd, or inherited from a predecessor."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from proxyshim.addresses import SocketName, read_socket_address
from proxyshim.errors import ShimError
from proxyshim.service.off_loop import call_in_thread
from proxyshim.service.systemd import passed_sockets
from proxyshim.service.upgrade import inherited_sockets

BACKLOG: Final = 1024
# A host that has vanished must not keep its session open for ever.
_KEEPALIVE_IDLE_S: Final = 120
_KEEPALIVE_INTERVAL_S: Final = 30
_KEEPALIVE_COUNT: Final = 4
# Under systemd the cause of these errors is often a setting of the unit, so we name it.
_HINTS: Final = {
    errno.EACCES: "Permission denied: a port below 1024 requires a socket unit"
    ' (bind = "systemd:NAME") or CAP_NET_BIND_SERVICE',
    errno.EAFNOSUPPORT: "Address family not supported: the kernel lacks it, or"
    " RestrictAddressFamilies= in the unit forbids it",
}


# These errors may pass without a change of the configuration.
_TEMPORARY: Final = frozenset(
    {
        errno.EADDRINUSE,
        errno.EADDRNOTAVAIL,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
    }
)


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A listening socket, and the key under which a successor will look it up."""

    sock: socket.socket
    key: str
    unix_path: str = ""
    inherited: bool = False

    @property
    def address(self) -> str:
        """Return its address, such as ``192.0.2.1:25``, ``[2001:db8::1]:25`` or ``unix:/p``."""
        name = self.sock.getsockname()
        return str(read_socket_address(name) or f"unix:{name}")

    def listen(self) -> None:
        """Let connections in.  Raises BindError if another process was faster."""
        try:
            if not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self.sock.listen(BACKLOG)
        except OSError as error:
            raise _bind_error(error) from None

    def close(self, *, leave_path: bool = False) -> None:
        """Close it and remove a unix socket's path.

        *leave_path* keeps the path, because another process serves the same socket.
        """
        self.sock.close()
        if self.unix_path and not leave_path:
            with contextlib.suppress(OSError):
                os.unlink(self.unix_path)


class BindError(ShimError):
    """A socket could not be opened.

    *is_temporary* is True if that may change without a change of the configuration: the address is
    still tentative or on another host, the port is busy, the DNS does not answer.  *is_impossible*
    is True if no socket of this kind can be opened at all, *is_contradiction* if the configuration
    gives one address to two listeners: then nobody can know whose rules are meant.
    """

    def __init__(
        self,
        detail: str,
        *,
        is_temporary: bool,
        is_impossible: bool = False,
        is_contradiction: bool = False,
    ) -> None:
        """Keep the *detail*, which names the cause."""
        super().__init__(detail)
        self.detail = detail
        self.is_temporary = is_temporary
        self.is_impossible = is_impossible
        self.is_contradiction = is_contradiction


class SocketSource:
    """Provides listening sockets while the process starts."""

    def __init__(self) -> None:
        """Take over the sockets that a predecessor or systemd passed to this process."""
        self._inherited = inherited_sockets()
        self._passed = passed_sockets()
        self._passed_names = _describe(self._passed)
        # Our own TCP sockets, with the configuration keys to which they belong.
        self._own: list[tuple[str, socket.socket]] = []

    async def open(
        self, owner: str, name: SocketName, unix_mode: int
    ) -> list[ListeningSocket]:
        """Open *name*; it may have several sockets, as a host name or a socket unit has.

        New ones are bound, and ``ListeningSocket.listen`` makes them listen.  The result is empty
        if sockets of the same *owner* (the configuration key) have all its addresses.

        Raises BindError.
        """
        key = f"{owner} {name}"
        socks: list[socket.socket]
        try:
            if inherited := self._find_inherited(key, name):
                socks = [self._inherited.pop(each) for each in inherited]
            elif name.descriptor:
                socks = self._take_passed(name)
            elif name.path:
                socks = [_bind_unix(name.path, unix_mode)]
            else:
                socks = await self._bind_tcp(owner, name)
        except socket.gaierror as error:
            raise BindError(str(error.strerror), is_temporary=True) from None
        except OSError as error:
            raise _bind_error(error) from None
        for sock in socks:
            if sock.family != socket.AF_UNIX:
                _set_options(sock)
                self._own.append((owner, sock))
        return [
            ListeningSocket(
                sock, f"{key}#{number}", name.path, inherited=bool(inherited)
            )
            for number, sock in enumerate(socks)
        ]

    def _find_inherited(self, key: str, name: SocketName) -> list[str]:
        """Return the keys of the predecessor's sockets for *name*.

        They may have had another owner, for example because the listener has a new name.  A port
        that the kernel chose belongs to its owner.
        """
        keys = {each: each.rpartition("#")[0] for each in sorted(self._inherited)}
        found = [each for each, of in keys.items() if of == key]
        if not found and (name.path or name.descriptor or name.port):
            found = [each for each, of in keys.items() if of.endswith(f" {name}")]
            owners = {keys[each] for each in found}
            found = [each for each in found if keys[each] == min(owners)]
        return found

    async def _bind_tcp(self, owner: str, name: SocketName) -> list[socket.socket]:
        """Bind every address that *name* has.  Raises OSError and BindError."""
        addresses = await _resolve(name)
        socks: list[socket.socket] = []
        lacking: OSError | None = None
        try:
            for family, address in addresses:
                if self._has_covered(owner, address):
                    continue
                try:
                    socks.append(_bind_one(family, address))
                except OSError as error:
                    # For example localhost, on a host without IPv6.
                    if len(addresses) == 1 or not _is_lacking_for_good(error, address):
                        raise
                    lacking = error
        except BaseException:
            for sock in socks:
                sock.close()
            raise
        if not socks and lacking is not None:
            raise lacking
        return socks

    def _has_covered(self, owner: str, address: Any) -> bool:
        """Return True if a socket of *owner* receives what comes to *address*.

        Raises BindError if one of our own sockets is in the way.  Without this check, listen()
        would fail, and its error would look as if it might pass.
        """
        is_open = [(other, sock) for other, sock in self._own if sock.fileno() >= 0]
        for other, taken in ((other, sock.getsockname()) for other, sock in is_open):
            if taken[1] == address[1] and _overlap(taken[0], address[0]):
                if other == owner and (
                    taken == address or ip_address(taken[0]).is_unspecified
                ):
                    return True
                raise BindError(
                    f"already in use by {other}",
                    is_temporary=False,
                    is_contradiction=True,
                )
        return False

    def _take_passed(self, name: SocketName) -> list[socket.socket]:
        """Take all sockets of that name; a unit with two ListenStream= lines passes two.

        Raises BindError if there is none.
        """
        socks = [
            each
            for each in self._passed.get(name.descriptor, ())
            if not name.port or _port_of(each) == name.port
        ]
        if not socks:
            raise BindError(
                f"systemd passed no socket of that name (passed: {self._passed_names})",
                is_temporary=False,
                is_impossible=True,
            )
        left = [each for each in self._passed.pop(name.descriptor) if each not in socks]
        if left:
            self._passed[name.descriptor] = left
        for sock in socks:
            sock.setblocking(False)
        return socks

    def close_unused(self) -> list[str]:
        """Close the sockets that no listener has asked for; return their names."""
        unused = [*self._passed, *self._inherited]
        for socks in self._passed.values():
            for sock in socks:
                sock.close()
        for sock in self._inherited.values():
            sock.close()
        self._passed, self._inherited = {}, {}
        return sorted(unused)


def _describe(passed: Mapping[str, Sequence[socket.socket]]) -> str:
    """Return the names of *passed* sockets, with their ports."""
    described = []
    for name, socks in sorted(passed.items()):
        ports = sorted({port for sock in socks if (port := _port_of(sock))})
        shown = ", ".join(map(str, ports))
        described.append(f"{name} with port {shown}" if ports else name)
    return "; ".join(described) or "none"


def _port_of(sock: socket.socket) -> int:
    """Return the port of a TCP socket; 0 for a unix socket."""
    address = read_socket_address(sock.getsockname())
    return address.port if address is not None else 0


async def _resolve(name: SocketName) -> list[tuple[int, Any]]:
    """Return each address of *name* once, with its family.  Raises gaierror."""
    try:
        found = _get_addresses(name, socket.AI_NUMERICHOST)
    except socket.gaierror:  # it is a host name, for which the DNS may be needed
        found = await call_in_thread(_get_addresses, name, socket.AI_PASSIVE)
    return list(dict.fromkeys(found))


def _get_addresses(name: SocketName, flags: int) -> list[tuple[int, Any]]:
    return [
        (family, address)
        for family, _, _, _, address in socket.getaddrinfo(
            name.host, name.port, type=socket.SOCK_STREAM, flags=flags
        )
    ]


def _bind_one(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_lacking_for_good(error: OSError, address: Any) -> bool:
    """Return True if this host has no such family, or no such loopback address.

    Loopback addresses are never tentative, and never on another host.
    """
    if error.errno == errno.EAFNOSUPPORT:
        return True
    return error.errno == errno.EADDRNOTAVAIL and ip_address(address[0]).is_loopback


def _overlap(one: str, other: str) -> bool:
    """Return True if sockets on the same port of both addresses exclude each other."""
    first, second = (ip_address(each.partition("%")[0]) for each in (one, other))
    return first.version == second.version and (
        first == second or first.is_unspecified or second.is_unspecified
    )


def _bind_error(error: OSError) -> BindError:
    detail = _HINTS.get(error.errno or 0) or error.strerror or str(error)
    return BindError(
        detail,
        is_temporary=error.errno in _TEMPORARY,
        is_impossible=error.errno == errno.EAFNOSUPPORT,
    )


def _set_options(sock: socket.socket) -> None:
    """Set options that accepted sockets inherit, which saves system calls per connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_COUNT)


def _bind_unix(path: str, mode: int) -> socket.socket:
    """Bind a unix socket that has *mode* from the moment it exists."""
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket on which no process listens.  Raises OSError if one does."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) in (0, errno.EAGAIN):  # EAGAIN: its queue is full
            raise OSError(errno.EADDRINUSE, "in use by a running process")
    os.unlink(path)
