"""Outgoing connections: to a TCP address, or to a unix socket."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Final

from proxyshim.net.connection import Connection
from proxyshim.net.fiber import Waiter, get_waiter, run_in_task
from proxyshim.net.reactor import ENDED, Reactor

_UNIX_RETRY_S: Final = (
    0.05  # the kernel does not report when a unix socket's queue has room
)


class _Attempt:
    """A connect() that is under way, until its first event."""

    __slots__ = ("_sock", "_waiter", "error", "events")

    def __init__(self, sock: socket.socket, waiter: Waiter) -> None:
        self._sock = sock
        self._waiter = waiter
        self.events = 0
        self.error: Exception | None = None

    def on_events(self, events: int) -> None:
        self.events |= events
        self._waiter.wake()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._waiter.wake()

    def close(self) -> None:
        self._sock.close()


async def connect_tcp(
    reactor: Reactor,
    family: int,
    address: object,
    prepare: Callable[[socket.socket], None] = lambda _: None,
) -> Connection:
    """Connect to a socket *address* of *family*.  Raises OSError.

    *prepare* may set options of the socket, and bind it, before it connects.

    It has no time limit of its own: call it within a Limit.
    """
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    descriptor = sock.fileno()
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        prepare(sock)
        error = sock.connect_ex(address)  # type: ignore[arg-type]
        if error == 0:
            return Connection(reactor, sock)
        if error != errno.EINPROGRESS:
            raise OSError(error, os.strerror(error))
        waiter = get_waiter(reactor.loop)
        attempt = _Attempt(sock, waiter)
        reactor.watch(descriptor, attempt)
        while not attempt.events:
            await waiter.wait()
            if attempt.error is not None:
                raise attempt.error
        if attempt.events & ENDED:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
        return Connection(reactor, sock, events_so_far=attempt.events)
    except BaseException:
        reactor.forget(descriptor)
        sock.close()
        raise


async def connect_unix(reactor: Reactor, path: str) -> Connection:
    """Connect to the unix socket at *path*.  Raises OSError.

    It has no time limit of its own: call it within a Limit.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await run_in_task(reactor.loop, asyncio.sleep(_UNIX_RETRY_S))
            else:
                return Connection(reactor, sock)
    except BaseException:
        sock.close()
        raise
