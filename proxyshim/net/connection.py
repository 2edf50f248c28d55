"""One connected socket: receive, send, close.  Implements the contract of ``stream.py``.

It uses the raw socket rather than asyncio's transports, because a session's cost is system calls
and wake-ups: output goes out at the end of the reactor's turn instead of the next one, and a
socket is registered once (``reactor.py``).
"""

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
from proxyshim.net.fiber import Waiter, get_waiter
from proxyshim.net.reactor import ENDED, READABLE, RESET, URGENT, WRITABLE, Reactor

# Each recv() allocates this many bytes and shrinks the result, so the unused part is free again
# before the next read.  The C library asks the kernel for each piece above 128 kB, which takes
# far longer.
_READ_OCTETS: Final = 65_536
_UNUSUAL: Final = ENDED | URGENT
_TCP_CLOSE: Final = 7  # include/net/tcp_states.h
# With each call, because O_NONBLOCK belongs to the open file: another process that has our socket
# as well (``is_shared``) may clear it, and our call would then stop all sessions.
_NO_WAIT: Final = socket.MSG_DONTWAIT


class Connection:
    """A connected, non-blocking stream socket.

    ``stream.py`` documents the methods that have no docstring here.
    """

    __slots__ = (
        "_backlog",
        "_failure",
        "_on_backlog",
        "_on_data",
        "_on_error",
        "_outbox",
        "_pump_is_scheduled",
        "_readable",
        "_shut",
        "_sock",
        "_urgent",
        "_waiter",
        "backlog_octets",
        "closed",
        "descriptor",
        "ended",
        "is_shared",
        "octets_given",
        "octets_received",
        "octets_sent",
        "on_end",
        "paused",
        "reactor",
        "was_reset",
        "write_failed",
    )

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        *,
        may_be_readable: bool = False,
        events_so_far: int | None = None,
    ) -> None:
        """Take over *sock*, which is connected and does not block.

        With *may_be_readable* the first read does not wait for an event.  *events_so_far* is for a
        socket that the reactor watches already: the events it has reported.
        """
        self.reactor = reactor
        self._sock = sock
        self.descriptor: int = sock.fileno()
        # Created when the kernel does not take everything.  Most connections never need it, and an
        # empty deque takes 760 bytes.
        self._backlog: deque[bytes | memoryview] | None = None
        self._waiter: Waiter | None = None
        self._on_data: Callable[[bytes], None] | None = None
        self._on_error: Callable[[Exception], None] | None = None
        self._on_backlog: Callable[[], None] | None = None
        self._outbox = b""  # to be sent at the end of the reactor's turn
        self._failure: Exception | None = None  # raised by our own code in a callback
        self._readable = may_be_readable
        self.ended = False  # the other end shut down or reset: a read will show which
        self.was_reset = False
        self.on_end: Callable[[], None] | None = None
        self._urgent = (
            False  # has ever come: a short read does not mean that all was read
        )
        self.paused = False
        self._pump_is_scheduled = False
        self._shut = False
        self.is_shared = False
        self.backlog_octets = 0
        self.octets_received = 0
        self.octets_given = 0
        self.octets_sent = 0
        self.write_failed = False
        self.closed = False
        if events_so_far is None:
            reactor.watch(self.descriptor, self)
        else:
            reactor.replace(self.descriptor, self)
            self.on_events(events_so_far)

    def local_endpoint(self) -> Endpoint | None:
        return read_socket_address(self._sock.getsockname())

    def on_events(self, events: int) -> None:
        """Take the events that the reactor reports."""
        if events & _UNUSUAL:
            self._readable = True
            if events & ENDED:
                self.ended = True
                if events & RESET:
                    self.was_reset = True
            if events & URGENT:
                self._urgent = True
        elif events & READABLE:
            self._readable = True
        if self._backlog is not None and events & WRITABLE:
            self._send_backlog(self._backlog)
        if self._readable:
            if self._waiter is None:
                self._pump()
            else:
                self._waiter.wake()

    def fail(self, error: Exception) -> None:
        """Make the user of the connection end with *error*, which a callback raised."""
        if self.closed:
            return
        self._failure = error
        if self._waiter is not None:
            self._waiter.wake()
        elif self._on_error is not None:
            self._on_error(error)

    # Reading.

    def receive_now(self, max_octets: int = _READ_OCTETS) -> bytes | None:
        try:
            data = self._sock.recv(max_octets, _NO_WAIT)
        except (BlockingIOError, InterruptedError):
            self._readable = False
            return None
        count = len(data)
        self.octets_received += count
        # A short read of a stream has taken all there was (epoll(7)), except its end, and except
        # what follows urgent data.
        if count == 0:
            self.ended = True
        self._readable = count == max_octets or self.ended or self._urgent
        return data

    def peek(self, max_octets: int) -> bytes | None:
        try:
            return self._sock.recv(max_octets, socket.MSG_PEEK | _NO_WAIT)
        except (BlockingIOError, InterruptedError):
            return None

    async def receive(self) -> bytes:
        while True:
            if self._failure is not None:
                raise self._failure
            if self._readable and (data := self.receive_now()) is not None:
                return data
            self._waiter = waiter = get_waiter(self.reactor.loop)
            try:
                await waiter.wait()
            finally:
                self._waiter = None

    async def wait_readable(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = waiter = get_waiter(self.reactor.loop)
        try:
            await waiter.wait()
            if self._failure is not None:
                raise self._failure
        finally:
            self._waiter = None
            self._readable = True  # a read shows whether that is so

    def start_reading(
        self,
        on_data: Callable[[bytes], None],
        on_error: Callable[[Exception], None],
        on_backlog: Callable[[], None],
    ) -> None:
        if self._failure is not None:
            raise self._failure
        self._on_data = on_data
        self._on_error = on_error
        self._on_backlog = on_backlog
        self.resume_reading()

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        if self._readable and not self._pump_is_scheduled and self._on_data is not None:
            self.reactor.loop.call_soon(_run_scheduled_pump, self)
            self._pump_is_scheduled = True

    def stop_reading(self) -> None:
        self._on_data = self._on_error = self._on_backlog = None

    def _pump(self) -> None:
        """Pass one read to the callback; the rest waits until the other sockets had their turn."""
        on_data = self._on_data
        if on_data is None or self.paused:
            if self.ended and self.on_end is not None:
                self.on_end()
            return
        try:
            data = self.receive_now()
        except OSError as error:
            self._on_data = None
            if self._on_error is not None:
                self._on_error(error)
            return
        if data is None:
            return
        if not data:
            self._on_data = None  # the end is reported once
        on_data(data)
        if self._readable and not self.paused:
            if len(data) < _READ_OCTETS and self.ended:
                self._pump()  # only the end is left to read, so report it at once
            else:
                self.resume_reading()

    # Writing.

    def send(self, data: bytes) -> None:
        if self.write_failed or self.closed or not data:
            return
        self.octets_given += len(data)
        if self._backlog is not None:
            self._backlog.append(data)
            self.backlog_octets += len(data)
        elif self._outbox:
            self._outbox += data
        elif self.reactor.flush_later(self):
            self._outbox = data
        else:
            self._send_now(data)

    def flush(self) -> None:
        data, self._outbox = self._outbox, b""
        if data and not self.write_failed:
            self._send_now(data)
            if self._backlog is not None and self._on_backlog is not None:
                self._on_backlog()

    def _send_now(self, data: bytes, flags: int = 0) -> None:
        try:
            sent = self._sock.send(data, flags | _NO_WAIT)
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
            self.reactor.call_after_events(self._on_backlog, self.fail)

    def _send_backlog(self, backlog: deque[bytes | memoryview]) -> None:
        while backlog:
            data = backlog[0]
            try:
                sent = self._sock.send(data, _NO_WAIT)
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
            _shut_down_sending(self._sock)
        if self._on_backlog is not None:
            self._on_backlog()

    def end_sending(self) -> None:
        if self._shut or self.closed:
            return
        self._shut = True
        if self._outbox:  # our last reply and the end of our stream fit into one packet
            data, self._outbox = self._outbox, b""
            self._send_now(data, socket.MSG_MORE)
        if self._backlog is None:
            _shut_down_sending(self._sock)

    def drop_unsent(self) -> int:
        dropped = self.octets_given - self.octets_sent
        self.octets_given = self.octets_sent
        self._outbox = b""
        if self._backlog is not None:
            self._backlog = None
            self.backlog_octets = 0
            self._shut = False  # it was waiting for the backlog
        return dropped

    def octets_acknowledged(self) -> int:
        if self.write_failed or self.closed:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        raw = fcntl.ioctl(self.descriptor, termios.TIOCOUTQ, b"\0\0\0\0")
        queued: int = struct.unpack("i", raw)[0]
        if not queued or self._sock.family == socket.AF_UNIX:
            # On a unix socket the other end has all of it; what is counted is memory.
            return self.octets_sent
        [state] = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        if state == _TCP_CLOSE:  # a reset: nothing is acknowledged any more
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        # The end of our stream counts as one octet of the queue.
        ends = self._shut and self._backlog is None
        return self.octets_sent + ends - queued

    # The end.

    def close(self) -> None:
        if self.closed:
            return
        self.stop_reading()
        try:
            self.flush()
        finally:
            self.closed = True
            self._backlog = None
            self.backlog_octets = 0
            if not self.is_shared:
                self.reactor.forget(self.descriptor)
            else:
                # Our close does not end the open file, so it would not end its registration.
                self.reactor.release(self.descriptor)
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()

    def detach(self) -> socket.socket:
        assert self.octets_given == 0
        self.stop_reading()
        self.on_end = None
        self.closed = True
        self.reactor.release(self.descriptor)
        return self._sock


def _run_scheduled_pump(connection: Connection) -> None:
    connection._pump_is_scheduled = False
    if connection._readable:
        try:
            connection._pump()
        except Exception as error:  # noqa: BLE001 - the user of the connection reports it
            connection.reactor.give_back(error, connection.fail)


def _shut_down_sending(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other end has left already
        sock.shutdown(socket.SHUT_WR)
