"""Listening sockets: bound here, passed by systemd, or inherited from a predecessor."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from proxyshim.addresses import SocketName, read_socket_address
from proxyshim.errors import ConfigError
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

    def close(self, *, leave_path: bool = False) -> None:
        """Close it and remove a unix socket's path.

        *leave_path* keeps the path, because another process serves the same socket.
        """
        self.sock.close()
        if self.unix_path and not leave_path:
            with contextlib.suppress(OSError):
                os.unlink(self.unix_path)


class SocketSource:
    """Provides listening sockets while the process starts."""

    def __init__(self) -> None:
        """Take over the sockets that a predecessor or systemd passed to this process."""
        self._inherited = inherited_sockets()
        self._passed = passed_sockets()

    def open(
        self, owner: str, name: SocketName, unix_mode: int
    ) -> list[ListeningSocket]:
        """Open *name*; the result has several sockets if a socket unit passes several.

        Raises ConfigError, which names *owner* (the configuration key), *name* and the cause.
        """
        try:
            return list(self._open(f"{owner} {name}", name, unix_mode))
        except (OSError, ValueError) as error:
            text = _HINTS.get(getattr(error, "errno", None) or 0) or (
                (error.strerror if isinstance(error, OSError) else None) or str(error)
            )
            raise ConfigError(f"{owner} = {str(name)!r}: {text}") from None

    def _open(
        self, key: str, name: SocketName, unix_mode: int
    ) -> Iterator[ListeningSocket]:
        inherited = [each for each in self._inherited if each.rpartition("#")[0] == key]
        if inherited:
            socks = [self._inherited.pop(each) for each in sorted(inherited)]
        elif name.descriptor:
            socks = self._take_passed(name.descriptor)
        elif name.path:
            socks = [_bind_unix(name.path, unix_mode)]
        else:
            socks = [_bind_tcp(name)]
        for number, sock in enumerate(socks):
            if sock.family != socket.AF_UNIX:
                _set_options(sock)
            yield ListeningSocket(
                sock, f"{key}#{number}", name.path, inherited=bool(inherited)
            )

    def _take_passed(self, name: str) -> list[socket.socket]:
        """Take all sockets of that name; a unit with two ListenStream= lines passes two."""
        if name not in self._passed:
            known = ", ".join(sorted(self._passed)) or "none"
            raise ValueError(
                f"systemd passed no descriptor of that name (passed: {known})"
            )
        socks = self._passed.pop(name)
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


def _bind_tcp(name: SocketName) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        name.host, name.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


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
        sock.listen(BACKLOG)
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
