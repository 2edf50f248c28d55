"""One connected socket on the event loop: receive, send, close with care.

Written on the raw socket rather than on asyncio's transports because what a session costs is
system calls and wake-ups: what is to be sent goes out at the end of the poller's turn, not at the
next one, and a socket is registered once (poller.py).  A connection is read in one of two ways at
a time: by ``await receive()`` in a phase that goes step by step (in a strand, or in a Task), or by
the callbacks given to ``start_reading`` while bytes are pumped.
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
from proxyshim.net.deadlines import Limit, deadlines_of
from proxyshim.net.fiber import Sleeper, Strand, TaskSleeper, in_task, running
from proxyshim.net.reactor import ENDED, READABLE, WRITABLE, poller_of

# So much memory is taken for a read, and what was not filled given back before the next.  The C
# library asks the kernel for each piece above 128 kB, which takes far longer.
_READ_OCTETS: Final = 65_536

LINGER_S: Final = 2.0
LINGER_OCTETS: Final = 1_048_576
_UNIX_RETRY_S: Final = 0.05  # a full unix socket's queue can't be waited for


class Connection:
    """A connected, non-blocking stream socket.

    Errors of the reading side are raised by ``receive`` or given to ``on_error``.  Those of the
    writing side only set ``write_failed``: what the other end sent before it went away can
    still be read, and its end shows there.
    """

    __slots__ = (
        "_backlog",
        "_connecting",
        "_ended",
        "_fd",
        "_is_closing",
        "_on_backlog",
        "_on_data",
        "_on_error",
        "_outbox",
        "_pumping",
        "_readable",
        "_shut",
        "_sock",
        "_waiter",
        "backlog_octets",
        "closed",
        "deadlines",
        "loop",
        "octets_received",
        "octets_sent",
        "paused",
        "poller",
        "write_failed",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        *,
        is_connecting: bool = False,
        may_be_readable: bool = False,
    ) -> None:
        """Take over *sock*, which is connected, or connecting, and does not block.

        With *may_be_readable* the first read does not wait to be told that something is there.
        """
        self.loop = loop
        self.deadlines = deadlines_of(loop)
        self._sock = sock
        self._fd = sock.fileno()
        # Made when the kernel does not take all: most connections never need it, and an empty
        # deque takes 760 octets.
        self._backlog: deque[bytes | memoryview] | None = None
        self._waiter: Sleeper | None = None
        self._on_data: Callable[[bytes], None] | None = None
        self._on_error: Callable[[OSError], None] | None = None
        self._on_backlog: Callable[[], None] | None = None
        self._outbox = b""  # to be sent at the end of the poller's turn
        self._readable = may_be_readable
        self._connecting = is_connecting
        self._ended = False  # the other end shut down or reset: reading will show it
        self.paused = False
        self._pumping = False  # a call of _pump is on its way
        self._shut = False
        self._is_closing = False  # in the background
        self.backlog_octets = 0
        self.octets_received = 0
        self.octets_sent = 0
        self.write_failed = False
        self.closed = False
        self.poller = poller_of(loop)
        self.poller.add(self._fd, self)

    def local_endpoint(self) -> Endpoint | None:
        """Return our end; None on a unix socket."""
        return read_socket_address(self._sock.getsockname())

    def on_edge(self, events: int) -> None:
        """Take what the poller tells."""
        if events & ENDED:
            self._ended = self._readable = True
        elif events & READABLE:
            self._readable = True
        if self._backlog is not None and events & WRITABLE:
            self._send_backlog(self._backlog)
        if self._waiter is None:
            if self._readable:
                self._pump()
        elif self._readable or self._connecting:
            self._connecting = False
            self._waiter.resume()

    # Reading.

    def receive_now(self) -> bytes | None:
        """Return what is there: None is nothing yet, empty is the end.  Raises OSError."""
        try:
            data = self._sock.recv(_READ_OCTETS)
        except (BlockingIOError, InterruptedError):
            self._readable = False
            return None
        count = len(data)
        self.octets_received += count
        # A short read of a stream has taken all there was (epoll(7)), but for its end.
        if count == 0:
            self._ended = True
        self._readable = self._ended or count == _READ_OCTETS
        return data

    async def receive(self) -> bytes:
        """Wait for octets; empty is the end.  Raises OSError."""
        while True:
            if self._readable and (data := self.receive_now()) is not None:
                return data
            self._waiter = sleeper = running() or TaskSleeper(self.loop)
            try:
                await sleeper.pause()
            finally:
                self._waiter = None

    def start_reading(
        self,
        on_data: Callable[[bytes], None],
        on_error: Callable[[OSError], None],
        on_backlog: Callable[[], None],
    ) -> None:
        """Give every arrival to *on_data*; empty is the end, and comes once.

        *on_backlog* is called when a backlog has come about behind the caller's back, has been
        sent, or can't be.
        """
        self._on_data = on_data
        self._on_error = on_error
        self._on_backlog = on_backlog
        self.resume_reading()

    def pause_reading(self) -> None:
        """Leave what arrives in the kernel, so that the sender has to wait."""
        self.paused = True

    def resume_reading(self) -> None:
        """Undo pause_reading(); what is there already is given a moment later."""
        self.paused = False
        if self._readable:
            self._pump_soon()

    def stop_callbacks(self) -> None:
        """Return to ``receive``: the callbacks given are not called any more."""
        self._on_data = self._on_error = self._on_backlog = None

    def _pump_soon(self) -> None:
        if not self._pumping and self._on_data is not None:
            self._pumping = True
            self.loop.call_soon(self._pump_later)

    def _pump_later(self) -> None:
        self._pumping = False
        if self._readable:
            self._pump()

    def _pump(self) -> None:
        """Give one read to the callback; if there is more, come back after the others."""
        on_data = self._on_data
        if on_data is None or self.paused:
            return
        try:
            data = self.receive_now()
        except OSError as error:
            self._tell_error(error)
            return
        if data is None:
            return
        if not data:
            self._on_data = None  # it hears of the end once
        on_data(data)
        if self._readable:
            if len(data) == _READ_OCTETS:
                self._pump_soon()
            else:
                self._pump()  # an end that is known of is no more: it is told at once

    def _tell_error(self, error: OSError) -> None:
        self._on_data = None
        if self._on_error is not None:
            self._on_error(error)

    # Writing.

    def send(self, data: bytes) -> None:
        """Send what the kernel takes, the rest when it can.

        In a turn of the poller at its end, else at once.
        """
        if self.write_failed or self.closed or not data:
            return
        if self._backlog is not None:
            self._backlog.append(data)
            self.backlog_octets += len(data)
        elif self._outbox:
            self._outbox += data
        elif self.poller.flush_later(self):
            self._outbox = data
        else:
            self._send_now(data)

    def flush(self) -> None:
        """Send at once what waits for the end of the turn."""
        data, self._outbox = self._outbox, b""
        if data and not self.write_failed:
            self._send_now(data)
            if self._backlog is not None and self._on_backlog is not None:
                self._on_backlog()

    def _send_now(self, data: bytes, flags: int = 0) -> None:
        try:
            sent = self._sock.send(data, flags)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._fail_writing()
            return
        self.octets_sent += sent
        if sent < len(data):
            self._backlog = deque([memoryview(data)[sent:]])
            self.backlog_octets = len(data) - sent

    def _fail_writing(self) -> None:
        self.write_failed = True
        self._backlog = None
        self.backlog_octets = 0
        if self._on_backlog is not None:
            self.loop.call_soon(self._on_backlog)

    def _send_backlog(self, backlog: deque[bytes | memoryview]) -> None:
        while backlog:
            data = backlog[0]
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._fail_writing()
                return
            self.octets_sent += sent
            self.backlog_octets -= sent
            if sent < len(data):
                backlog[0] = memoryview(data)[sent:]
                return
            backlog.popleft()
        self._backlog = None
        if self._shut:
            self._shut_down_sending()
        if self._on_backlog is not None:
            self._on_backlog()

    def end_sending(self) -> None:
        """Shut down our sending side, behind what is still to be sent."""
        if self._shut or self.closed:
            return
        self._shut = True
        if self._outbox:  # one packet for our last words and for the end
            data, self._outbox = self._outbox, b""
            self._send_now(data, socket.MSG_MORE)
        if self._backlog is None:
            self._shut_down_sending()

    def _shut_down_sending(self) -> None:
        with contextlib.suppress(OSError):  # the other end is gone already
            self._sock.shutdown(socket.SHUT_WR)

    # Closing.

    def unacknowledged_octets(self) -> int:
        """Return what we were given to send and the other end's TCP has not confirmed.

        For after ``end_sending``, which leaves nothing to the end of the turn.
        """
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
        """Close gently, with nobody waiting for it; to ask for it twice is harmless."""
        if self.closed or self._is_closing:
            return
        self._is_closing = True
        Strand(self.close_gently(), self._note_close).resume()

    def _note_close(self, error: BaseException | None) -> None:
        if error is not None:
            self.loop.call_exception_handler(
                {"message": "closing a connection failed", "exception": error}
            )

    async def _discard_input(self, limit_s: float) -> bool:
        """Discard what comes; True when it ended, False when the time or the bound did."""
        bound = self.octets_received + LINGER_OCTETS
        try:
            with Limit(self.deadlines, limit_s):
                while self.octets_received < bound:
                    if not await self.receive():
                        return True
                await self._wait_for_ever()  # enough: who sends on has to wait
        except TimeoutError:
            pass
        return False

    async def _wait_for_ever(self) -> None:
        sleeper = running() or TaskSleeper(self.loop)
        while True:
            await sleeper.pause()

    def close(self) -> None:
        """Close at once."""
        if self.closed:
            return
        self.stop_callbacks()
        self.flush()
        self.closed = True
        self.poller.forget(self._fd)
        self._backlog = None
        self.backlog_octets = 0
        self._sock.close()

    async def wait_until_connected(self) -> None:
        """Wait for the outcome of a connect(); without success it is closed.  Raises OSError."""
        self._waiter = sleeper = running() or TaskSleeper(self.loop)
        try:
            while self._connecting:
                await sleeper.pause()
            if self._ended:
                error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
        except BaseException:
            self.close()
            raise
        finally:
            self._waiter = None


def begin_to_connect(
    loop: asyncio.AbstractEventLoop, family: int, address: object
) -> Connection:
    """Begin a TCP connection; ``wait_until_connected`` goes on.  Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = sock.connect_ex(address)  # type: ignore[arg-type]
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return Connection(loop, sock, is_connecting=bool(error))


async def connect_unix(loop: asyncio.AbstractEventLoop, path: str) -> Connection:
    """Connect to a unix socket.  Raises OSError.  No limit of its own: use a Limit."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await in_task(loop, asyncio.sleep(_UNIX_RETRY_S))
            else:
                return Connection(loop, sock)
    except BaseException:
        sock.close()
        raise
