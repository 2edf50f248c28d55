"""Accepting for a port beside the mail: few connections at once, which cannot harm the sessions.

Their descriptors are set aside.  Further connections wait in the kernel's queue, and the deadline
of each connection (the caller's) keeps the queue moving.
"""

import asyncio
import socket
from typing import Final

from proxyshim.addresses import read_socket_address
from proxyshim.limits import shortage
from proxyshim.service.acceptor import TakeConnection
from proxyshim.service.set_aside import MAX_CONNECTIONS, SetAside
from proxyshim.service.sockets import ListeningSocket

_RETRY_S: Final = 0.2  # after accept() failed


class BoundedAcceptor:
    """Accepts connections on some listening sockets, MAX_CONNECTIONS at once."""

    def __init__(self, take: TakeConnection) -> None:
        """Prepare to give each connection to *take*; nothing happens before ``resume``.

        *take* must call ``note_end`` once the connection is closed.
        """
        self._take = take
        self.sockets: list[tuple[str, ListeningSocket]] = []  # with the listener's name
        self._set_aside: SetAside | None = None  # while there are sockets
        self._open = 0
        self._is_accepting = False
        self._retry: asyncio.TimerHandle | None = None  # set after accept() failed

    def add(self, listener: str, listening: ListeningSocket) -> None:
        """Accept on one more socket, beginning with the next ``resume``."""
        self.sockets.append((listener, listening))
        self._set_aside = self._set_aside or SetAside(MAX_CONNECTIONS)

    def resume(self) -> None:
        """Accept connections from now on, or again."""
        self._is_accepting = True
        self._watch_queues()

    def pause(self) -> None:
        """Leave new connections in the queues."""
        self._is_accepting = False
        self._watch_queues()

    def release(self) -> list[ListeningSocket]:
        """Stop for good; return the listening sockets for the caller to close."""
        self.pause()
        if self._retry is not None:
            self._retry.cancel()
        if self._set_aside is not None:
            self._set_aside.close()
        released = [listening for _, listening in self.sockets]
        self.sockets.clear()
        return released

    def note_end(self) -> None:
        """Note that a connection has been closed, so that its place is free."""
        self._open -= 1
        if self._set_aside is not None:
            self._set_aside.take_back()
        self._watch_queues()

    def _watch_queues(self) -> None:
        loop = asyncio.get_running_loop()
        accepting = (
            self._is_accepting and self._retry is None and self._open < MAX_CONNECTIONS
        )
        for listener, listening in self.sockets:
            if accepting:
                loop.add_reader(
                    listening.sock.fileno(), self._accept, listener, listening.sock
                )
            else:
                loop.remove_reader(listening.sock.fileno())

    def _accept(self, listener: str, listening: socket.socket) -> None:
        """Accept one connection; if there are more, the loop calls again."""
        if self._open >= MAX_CONNECTIONS or self._set_aside is None:
            return
        self._open += 1
        self._set_aside.lend()
        try:
            sock, address = listening.accept()
        except (OSError, MemoryError) as error:
            if not isinstance(error, BlockingIOError):
                loop = asyncio.get_running_loop()
                self._retry = loop.call_later(_RETRY_S, self._try_again)
            self.note_end()
            return
        try:
            sock.setblocking(False)
            self._take(listener, sock, read_socket_address(address))
        except Exception as error:
            sock.close()
            self.note_end()
            if shortage(error) is None:
                raise
            return
        if self._open >= MAX_CONNECTIONS:
            self._watch_queues()

    def _try_again(self) -> None:
        self._retry = None
        self._watch_queues()
