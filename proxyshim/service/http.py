"""The HTTP server of /metrics, /livez and /readyz.

It has a thread of its own, so that /livez can report an event loop that hangs.  The port is open to
other users of the host, and none of them may harm mail through it.  Therefore:

- there is one thread for all connections, and at most MAX_CONNECTIONS of them at once, whose
  descriptors are set aside;
- a connection has DEADLINE_S for everything, request and response;
- a connection that comes when all places are taken gets the place of the oldest one, so nobody
  can keep a liveness probe out by holding connections open;
- after each turn the thread rests for a multiple of the time it has worked, because the event
  loop has to wait while it works (the interpreter's lock).

Source: RFC 9112.
"""

import os
import re
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from proxyshim.metrics import Metrics
from proxyshim.service.set_aside import DEADLINE_S, MAX_CONNECTIONS, SetAside
from proxyshim.service.sockets import ListeningSocket

MAX_REQUEST_OCTETS: Final = 8_192
_RETRY_S: Final = 0.2  # after accept() failed
# A connection keeps its place for this long, so that a client's request can arrive.
_MIN_AGE_S: Final = 0.02
# The thread works for at most a fifth of the time.
_REST_FACTOR: Final = 4.0
_MAX_REST_S: Final = 0.25

_REQUEST_LINE: Final = re.compile(
    rb"(?P<method>[A-Z]+) (?P<path>/[!->@-~]*)(?:\?[!-~]*)? HTTP/1\.[01]"
)
_ACCEPT: Final = re.compile(rb"\r?\nAccept:[ \t]*([ -~]*)", re.IGNORECASE)
_END_OF_REQUEST: Final = re.compile(rb"\r?\n\r?\n")

_STATUS: Final = {True: "200 OK", False: "503 Service Unavailable"}


class Pages:
    """What the server shows."""

    def __init__(self, metrics: Metrics) -> None:
        """Show *metrics*, and the states that they contain."""
        self._metrics = metrics
        self._registry = CollectorRegistry()
        self._registry.register(metrics)

    def answer(self, request: bytes) -> bytes:
        """Return the response to a *request*, without its body's octets for HEAD."""
        line = _REQUEST_LINE.match(request)
        if line is None:
            return _response("400 Bad Request")
        method, path = line["method"], line["path"]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", headers="Allow: GET, HEAD\r\n")
        if path == b"/metrics":
            response = self._show_metrics(request)
        elif path == b"/livez":
            response = _response(_STATUS[self._metrics.is_live])
        elif path == b"/readyz":
            response = _response(_STATUS[self._metrics.is_ready])
        else:
            response = _response("404 Not Found")
        if method == b"HEAD":
            return response[: response.index(b"\r\n\r\n") + 4]
        return response

    def _show_metrics(self, request: bytes) -> bytes:
        accepted = _ACCEPT.search(request)
        encode, content_type = choose_encoder(
            accepted[1].decode("ascii") if accepted else ""
        )
        return _response("200 OK", encode(self._registry), content_type)


def _response(
    status: str,
    body: bytes | None = None,
    content_type: str = "text/plain; charset=utf-8",
    headers: str = "",
) -> bytes:
    if body is None:
        body = f"{status}\n".encode("ascii")
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    )
    return head.encode("ascii") + body


class _Connection:
    """One request and its response."""

    def __init__(self, sock: socket.socket, since: float) -> None:
        self.sock = sock
        self.since = since
        self.until = since + DEADLINE_S
        self.awaited = 0  # the event that the selector waits for
        self._request = b""
        self._response: memoryview | None = None  # what is left of it

    def go_on(self, pages: Pages) -> int:
        """Read, answer and write as far as possible; return the event to wait for, 0 at the end.

        Raises OSError.
        """
        if self._response is None and not self._read_request(pages):
            return selectors.EVENT_READ
        if self._response:
            try:
                self._response = self._response[self.sock.send(self._response) :]
            except BlockingIOError:
                return selectors.EVENT_WRITE
            if self._response:
                return selectors.EVENT_WRITE
            self.sock.shutdown(socket.SHUT_WR)
        # A close with unread input would destroy the response, so wait for the client's close.
        try:
            return selectors.EVENT_READ if self.sock.recv(MAX_REQUEST_OCTETS) else 0
        except BlockingIOError:
            return selectors.EVENT_READ

    def _read_request(self, pages: Pages) -> bool:
        """Return True when there is a response."""
        try:
            data = self.sock.recv(MAX_REQUEST_OCTETS)
        except BlockingIOError:
            return False
        self._request += data
        if _END_OF_REQUEST.search(self._request):
            self._response = memoryview(pages.answer(self._request))
        elif not data or len(self._request) > MAX_REQUEST_OCTETS:
            self._response = memoryview(_response("400 Bad Request"))
        return self._response is not None


# Gets what went wrong and the exception, in the thread.
Report = Callable[[str, Exception], None]


class HttpServer:
    """Serves some pages on listening sockets, which may be opened at any time."""

    def __init__(self, pages: Pages, report: Report) -> None:
        """Serve *pages* and *report* exceptions that nobody expected; nothing is open yet."""
        self._pages = pages
        self._report = report
        self.sockets: list[ListeningSocket] = []
        self._is_serving = False
        self._worker: _Worker | None = None  # from the first socket on

    def add(self, listening: ListeningSocket) -> None:
        """Serve on one more socket."""
        if self._worker is None:
            self._worker = _Worker(self._pages, self._report)
        self.sockets.append(listening)
        self._update()

    def resume(self) -> None:
        """Serve from now on, or again."""
        self._is_serving = True
        self._update()

    def pause(self) -> None:
        """Leave new connections in the queues; finish those that are being served."""
        self._is_serving = False
        self._update()

    def close(self, keys: Collection[str]) -> None:
        """Close the sockets with these *keys*."""
        closed = [each for each in self.sockets if each.key in keys]
        self.sockets = [each for each in self.sockets if each not in closed]
        self._update(closed)

    def release(self) -> list[ListeningSocket]:
        """Stop for good; return the listening sockets for the caller to close."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        released, self.sockets = self.sockets, []
        return released

    def _update(self, closed: Iterable[ListeningSocket] = ()) -> None:
        if self._worker is not None:
            sockets = self.sockets if self._is_serving else []
            self._worker.accept_on([each.sock for each in sockets], closed)


class _Worker:
    """The thread, and everything that only the thread uses."""

    def __init__(self, pages: Pages, report: Report) -> None:
        self._pages = pages
        self._report = report
        self._set_aside = SetAside(MAX_CONNECTIONS)
        self._selector = selectors.DefaultSelector()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._alarm, selectors.EVENT_READ)
        self._connections: list[_Connection] = []  # the oldest first
        self._thread: threading.Thread | None = None
        self._watched: list[socket.socket] = []  # listening sockets in the selector
        self._retry_at = 0.0  # not before then, because accept() failed
        # The event loop sets these.
        self._listening: list[socket.socket] = []  # to accept on
        self._to_close: list[ListeningSocket] = []
        self._is_closing = False

    # Called in the event loop.

    def accept_on(
        self, sockets: list[socket.socket], closed: Iterable[ListeningSocket]
    ) -> None:
        """Accept on these *sockets* and no others; close those in *closed*."""
        self._listening = sockets
        # Only the thread can close them, because they may be in its selector.
        self._to_close.extend(closed)
        if self._thread is None and sockets:
            self._thread = threading.Thread(target=self._run, name="http", daemon=True)
            self._thread.start()
        self._notify()

    def close(self) -> None:
        """End the thread and close all connections."""
        self._is_closing = True
        self._notify()
        if self._thread is not None:
            self._thread.join()
        self._close_unserved()
        for connection in self._connections:
            connection.sock.close()
        self._selector.close()
        os.close(self._alarm)
        self._set_aside.close()

    def _notify(self) -> None:
        os.eventfd_write(self._alarm, 1)

    # Called in the thread.

    def _run(self) -> None:
        # Signals are for the main thread, which blocks some of them at the end.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._is_closing:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - the port must go on
                self._report("the HTTP server failed", error)
                time.sleep(_MAX_REST_S)

    def _turn(self) -> None:
        """Wait for events, handle them, and rest."""
        self._close_unserved()
        now = time.monotonic()
        wake_at = self._next_time(now)
        ready = self._selector.select(
            None if wake_at is None else max(wake_at - now, 0.0)
        )
        began = time.thread_time()
        for key, _ in ready:
            if key.fd == self._alarm:
                os.eventfd_read(self._alarm)
            elif isinstance(key.data, socket.socket):
                self._accept(key.data)
            elif key.data in self._connections:  # otherwise it has just lost its place
                self._serve(key.data)
        now = time.monotonic()
        for late in [each for each in self._connections if each.until <= now]:
            self._close(late)
        worked_s = time.thread_time() - began
        time.sleep(min(worked_s * _REST_FACTOR, _MAX_REST_S))

    def _next_time(self, now: float) -> float | None:
        """Accept or not, and return when to look again even if nothing happens."""
        times = [each.until for each in self._connections]
        accept_at = self._retry_at
        if len(self._connections) >= MAX_CONNECTIONS:
            accept_at = max(accept_at, self._connections[0].since + _MIN_AGE_S)
        listening = self._listening
        if listening and accept_at > now:
            times.append(accept_at)
        self._watch_queues(listening if accept_at <= now else [])
        return min(times, default=None)

    def _watch_queues(self, sockets: list[socket.socket]) -> None:
        for sock in [each for each in self._watched if each not in sockets]:
            self._unwatch(sock)
        for sock in [each for each in sockets if each not in self._watched]:
            self._selector.register(sock, selectors.EVENT_READ, sock)
            self._watched.append(sock)

    def _unwatch(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        self._watched.remove(sock)

    def _close_unserved(self) -> None:
        """Close what ``accept_on`` was told to close; it is no longer in ``_listening``."""
        while self._to_close:
            listening = self._to_close.pop()
            if listening.sock in self._watched:
                self._unwatch(listening.sock)
            listening.close()

    def _accept(self, listening: socket.socket) -> None:
        """Take one connection from the queue, in the place of the oldest if all are taken."""
        if len(self._connections) >= MAX_CONNECTIONS:
            self._close(self._connections[0])
        self._set_aside.lend()
        try:
            sock, _ = listening.accept()
        except OSError as error:
            self._set_aside.take_back()
            if not isinstance(error, BlockingIOError):
                self._retry_at = time.monotonic() + _RETRY_S
            return
        sock.setblocking(False)
        connection = _Connection(sock, time.monotonic())
        self._connections.append(connection)
        self._serve(connection)

    def _serve(self, connection: _Connection) -> None:
        try:
            awaited = connection.go_on(self._pages)
        except OSError:  # the client has left
            awaited = 0
        except Exception:
            self._close(connection)
            raise
        if not awaited:
            self._close(connection)
        elif awaited != connection.awaited:
            watch = (
                self._selector.modify if connection.awaited else self._selector.register
            )
            watch(connection.sock, awaited, connection)
            connection.awaited = awaited

    def _close(self, connection: _Connection) -> None:
        self._connections.remove(connection)
        if connection.awaited:
            self._selector.unregister(connection.sock)
        connection.sock.close()
        self._set_aside.take_back()
