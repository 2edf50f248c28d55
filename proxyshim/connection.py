"""One connected socket on the event loop: receive, send at once, close with care.

Written on the raw socket rather than on asyncio's transports because what a session costs is
system calls and wake-ups: ``send`` writes at once instead of at the next turn of the loop, one
receive buffer serves all connections, and a socket is registered once (poller.py).  A connection
is read in one of two ways at a time: by ``await receive()`` in a phase that goes step by step, or
by the callbacks given to ``start_reading`` while bytes are pumped.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import Final

from proxyshim.addresses import Endpoint, read_socket_address
from proxyshim.deadlines import Limit
from proxyshim.poller import ENDED, READABLE, WRITABLE, poller_of

# One buffer for all: nothing is kept in it from one callback to the next.
_BUFFER_OCTETS: Final = 262_144
_BUFFER: Final = bytearray(_BUFFER_OCTETS)
_VIEW: Final = memoryview(_BUFFER)

LINGER_S: Final = 2.0
LINGER_OCTETS: Final = 1_048_576
_closing: Final[set[asyncio.Task[None]]] = set()  # the loop holds tasks weakly
_UNIX_RETRY_S: Final = 0.05  # a full unix socket's queue can't be waited for


class Connection:
    """A connected, non-blocking stream socket.

    Errors of the reading side are raised by ``receive`` or given to ``on_error``.  Those of the
    writing side only set ``write_failed``: what the other end sent before it went away can
    still be read, and its end shows there.
    """

    __slots__ = (
        "_backlog",
        "_end_told",
        "_ended",
        "_fd",
        "_loop",
        "_on_data",
        "_on_drained",
        "_on_error",
        "_paused",
        "_poller",
        "_pumping",
        "_readable",
        "_shut",
        "_sock",
        "_waiter",
        "backlog_octets",
        "closed",
        "octets_received",
        "octets_sent",
        "write_failed",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        """Take over *sock*, which is connected, or connecting, and does not block."""
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        # Made when the kernel does not take all: most connections never need it, and an empty
        # deque takes 760 octets.
        self._backlog: deque[bytes | memoryview] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_data: Callable[[bytes], None] | None = None
        self._on_error: Callable[[OSError], None] | None = None
        self._on_drained: Callable[[], None] | None = None
        self._readable = True  # as far as we know
        self._ended = False  # the other end shut down or reset: reading will show it
        self._paused = False
        self._pumping = False  # a call of _pump is on its way
        self._end_told = False  # to on_data
        self._shut = False
        self.backlog_octets = 0
        self.octets_received = 0
        self.octets_sent = 0
        self.write_failed = False
        self.closed = False
        self._poller = poller_of(loop)
        self._poller.add(self._fd, self)

    def local_endpoint(self) -> Endpoint | None:
        """Return our end; None on a unix socket."""
        return read_socket_address(self._sock.getsockname())

    def on_edge(self, events: int) -> None:
        """Take what the poller tells."""
        if self.closed:
            return
        if events & ENDED:
            self._ended = self._readable = True
        elif events & READABLE:
            self._readable = True
        if events & WRITABLE and self._backlog:
            self._send_backlog(self._backlog)
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
        elif self._readable and not self._end_told:
            self._pump()

    # Reading.

    def receive_now(self) -> bytes | None:
        """Return what is there: None is nothing yet, empty is the end.  Raises OSError."""
        try:
            count = self._sock.recv_into(_BUFFER)
        except (BlockingIOError, InterruptedError):
            self._readable = False
            return None
        # A short read of a stream has taken all there was (epoll(7)), but for its end.
        self._ended = self._ended or count == 0
        self._readable = count == _BUFFER_OCTETS or self._ended
        self.octets_received += count
        return bytes(_VIEW[:count])

    async def receive(self) -> bytes:
        """Wait for octets; empty is the end.  Raises OSError."""
        while True:
            if self._readable and (data := self.receive_now()) is not None:
                return data
            await self._edge()

    async def _edge(self) -> None:
        """Wait for the poller to tell anything."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def start_reading(
        self,
        on_data: Callable[[bytes], None],
        on_error: Callable[[OSError], None],
        on_drained: Callable[[], None],
    ) -> None:
        """Give every arrival to *on_data*; empty is the end, and comes once.

        *on_drained* is called when the backlog has been sent, or can't be.
        """
        self._on_data = on_data
        self._on_error = on_error
        self._on_drained = on_drained
        self.resume_reading()

    def pause_reading(self) -> None:
        """Leave what arrives in the kernel, so that the sender has to wait."""
        self._paused = True

    def resume_reading(self) -> None:
        """Undo pause_reading(); what is there already is given a moment later."""
        self._paused = False
        if self._readable and not (self._pumping or self._end_told):
            self._pumping = True
            self._loop.call_soon(self._pump_later)

    def stop_callbacks(self) -> None:
        """Return to ``receive``: the callbacks given are not called any more."""
        self._on_data = self._on_error = self._on_drained = None

    def _pump_later(self) -> None:
        self._pumping = False
        self._pump()

    def _pump(self) -> None:
        """Give one read to the callback; if there is more, come back after the others."""
        on_data = self._on_data
        if on_data is None or self._paused or self._end_told or not self._readable:
            return
        try:
            data = self.receive_now()
        except OSError as error:
            self._paused = True
            if self._on_error is not None:
                self._on_error(error)
            return
        if data is None:
            return
        if not data:
            self._end_told = True
        on_data(data)
        if self._readable and not self._paused:
            self.resume_reading()

    # Writing.

    def send(self, data: bytes) -> None:
        """Send at once what the kernel takes; the rest when it can, in order."""
        if self.write_failed or self.closed or not data:
            return
        if self._backlog:
            self._backlog.append(data)
            self.backlog_octets += len(data)
            return
        sent = self._try_send(data)
        if sent < len(data) and not self.write_failed:
            self._backlog = deque([memoryview(data)[sent:]])
            self.backlog_octets = len(data) - sent

    def _try_send(self, data: bytes | memoryview) -> int:
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._fail_writing()
            return 0
        self.octets_sent += sent
        return sent

    def _fail_writing(self) -> None:
        self.write_failed = True
        self._backlog = None
        self.backlog_octets = 0
        if self._on_drained is not None:
            self._loop.call_soon(self._on_drained)

    def _send_backlog(self, backlog: deque[bytes | memoryview]) -> None:
        while backlog:
            data = backlog[0]
            sent = self._try_send(data)
            if self.write_failed:
                return
            self.backlog_octets -= sent
            if sent < len(data):
                backlog[0] = memoryview(data)[sent:]
                return
            backlog.popleft()
        self._backlog = None
        if self._shut:
            self._shut_down_sending()
        if self._on_drained is not None:
            self._on_drained()

    def end_sending(self) -> None:
        """Shut down our sending side, behind what is still to be sent."""
        if self._shut or self.closed:
            return
        self._shut = True
        if not self._backlog:
            self._shut_down_sending()

    def _shut_down_sending(self) -> None:
        with contextlib.suppress(OSError):  # the other end is gone already
            self._sock.shutdown(socket.SHUT_WR)

    # Closing.

    def unacknowledged_octets(self) -> int:
        """Return what we were given to send and the other end's TCP has not confirmed."""
        if self.write_failed or self.closed:
            return 0
        try:
            raw = fcntl.ioctl(self._fd, termios.TIOCOUTQ, b"\0\0\0\0")
        except OSError:
            return self.backlog_octets
        return self.backlog_octets + int(struct.unpack("i", raw)[0])

    async def close_gently(self, *, until_acknowledged_s: float = 0.0) -> None:
        """End our side, let the other end read what it got, and close.

        A close with unread input is answered by a reset, and a reset may overtake our last
        reply.  So input is discarded for up to LINGER_S or LINGER_OCTETS; and as long as the
        other end has not acknowledged all of ours, *until_acknowledged_s* may go by.
        """
        self.stop_callbacks()
        self.end_sending()
        try:
            ended = await self._discard_input(LINGER_S)
            waited_s = LINGER_S
            while (
                not ended
                and waited_s < until_acknowledged_s
                and self.unacknowledged_octets()
            ):
                ended = await self._discard_input(LINGER_S)
                waited_s += LINGER_S
        except OSError:
            pass
        finally:
            self.close()

    def close_in_background(self) -> None:
        """Close gently, with nobody waiting for it."""
        if self.closed:
            return
        task = self._loop.create_task(self.close_gently())
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    async def _discard_input(self, limit_s: float) -> bool:
        """Discard what comes; True when it ended, False when the time or the bound did."""
        bound = self.octets_received + LINGER_OCTETS
        try:
            with Limit(self._loop, limit_s):
                while self.octets_received < bound:
                    if not await self.receive():
                        return True
                await self._loop.create_future()  # enough: who sends on has to wait
        except TimeoutError:
            pass
        return False

    def close(self) -> None:
        """Close at once."""
        if self.closed:
            return
        self.closed = True
        self.stop_callbacks()
        self._poller.forget(self._fd)
        self._backlog = None
        self.backlog_octets = 0
        self._sock.close()

    async def wait_until_connected(self) -> None:
        """Wait for the outcome of a connect() that was begun.  Raises OSError."""
        await self._edge()
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))


async def connect(
    loop: asyncio.AbstractEventLoop, family: int, address: object
) -> Connection:
    """Connect a stream socket.  Raises OSError.  No limit of its own: use a Limit."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_UNIX:
            await _connect_unix(sock, str(address))
            return Connection(loop, sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = sock.connect_ex(address)  # type: ignore[arg-type]
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    connection = Connection(loop, sock)
    try:
        if error:
            await connection.wait_until_connected()
    except BaseException:
        connection.close()
        raise
    return connection


async def _connect_unix(sock: socket.socket, path: str) -> None:
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            await asyncio.sleep(_UNIX_RETRY_S)
        else:
            return
