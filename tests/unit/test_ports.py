"""The ports beside the mail, with the errors of accept() injected."""

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from proxyshim.addresses import Endpoint
from proxyshim.metrics import Metrics
from proxyshim.service.bounded_acceptor import BoundedAcceptor
from proxyshim.service.http import HttpServer, Pages
from proxyshim.service.set_aside import SetAside
from proxyshim.service.sockets import ListeningSocket

LIMIT_S = 10
RETRY_S = 0.05


class FailingSocket(socket.socket):
    """A listening unix socket whose accept() fails with an error a number of times."""

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.bind("")  # the kernel chooses an abstract name
        self.listen(256)
        self.failures = 0
        self.calls = 0
        self.has_failed = threading.Event()

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            if not self.failures:
                self.has_failed.set()
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()

    def connect_client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(LIMIT_S)
        client.connect(self.getsockname())
        return client


@pytest.fixture(autouse=True)
def _short_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxyshim.service.http._RETRY_S", RETRY_S)
    monkeypatch.setattr("proxyshim.service.bounded_acceptor._RETRY_S", RETRY_S)


@pytest.fixture
def listening() -> Iterator[FailingSocket]:
    with FailingSocket() as sock:
        yield sock


def serve(listening: FailingSocket) -> tuple[HttpServer, list[Exception]]:
    """Serve HTTP on a socket; return also what is reported."""
    reported: list[Exception] = []
    server = HttpServer(Pages(Metrics()), lambda _, error: reported.append(error))
    server.add(ListeningSocket(listening, "key"))
    server.resume()
    return server, reported


def get(client: socket.socket) -> bytes:
    """Get a page, and read up to the end."""
    client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
    response = b""
    while octets := client.recv(4096):
        response += octets
    return response


def test_http_waits_after_a_failed_accept_and_goes_on(
    listening: FailingSocket,
) -> None:
    listening.failures = 3
    server, reported = serve(listening)
    with listening.connect_client() as client:
        assert get(client).startswith(b"HTTP/1.1 200 OK")
    server.release()
    assert listening.calls == 4  # each failure was followed by a pause
    assert reported == []


def test_http_goes_on_after_a_defect(
    listening: FailingSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, errors = Pages.answer, [ValueError("a defect"), MemoryError()]

    def fail(pages: Pages, request: bytes) -> bytes:
        if errors:
            raise errors.pop()
        return answer(pages, request)

    monkeypatch.setattr(Pages, "answer", fail)
    server, reported = serve(listening)
    for _ in range(2):
        with listening.connect_client() as client:
            assert get(client) == b""
    with listening.connect_client() as client:
        assert get(client).startswith(b"HTTP/1.1 200 OK")
    server.release()
    assert [type(error) for error in reported] == [MemoryError, ValueError]


def test_http_leaves_connections_in_the_queue_while_it_pauses(
    listening: FailingSocket,
) -> None:
    server, _ = serve(listening)
    with listening.connect_client() as client:
        get(client)
    server.pause()
    assert server._worker is not None
    until = time.monotonic() + LIMIT_S
    while server._worker._watched:  # the thread has not noticed it yet
        assert time.monotonic() < until
        time.sleep(0.001)
    with listening.connect_client() as client:
        client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(LIMIT_S)
        server.resume()
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
    server.release()


def test_http_serves_a_socket_that_opens_later_and_closes_one_alone(
    listening: FailingSocket,
) -> None:
    server, reported = serve(listening)
    with FailingSocket() as later:
        server.add(ListeningSocket(later, "later"))
        for each in (listening, later):
            with each.connect_client() as client:
                assert get(client).startswith(b"HTTP/1.1 200 OK")
        with socket.socket(fileno=os.dup(later.fileno())):  # as a successor has it
            server.close(["later"])
            with listening.connect_client() as client:
                assert get(client).startswith(b"HTTP/1.1 200 OK")
        assert [each.key for each in server.release()] == ["key"]
        assert later.fileno() == -1
    assert reported == []


def test_a_port_waits_after_a_failed_accept_and_goes_on(
    listening: FailingSocket,
) -> None:
    async def run() -> None:
        taken = asyncio.Event()

        def take(_: str, sock: socket.socket, __: Endpoint | None) -> None:
            sock.close()
            taken.set()
            acceptor.note_end()

        acceptor = BoundedAcceptor(take)
        acceptor.add("mx", ListeningSocket(listening, "key"))
        listening.failures = 3
        with listening.connect_client():
            acceptor.resume()
            async with asyncio.timeout(LIMIT_S):
                await taken.wait()
        acceptor.release()
        assert listening.calls == 4

    asyncio.run(run())


def test_a_place_that_is_lent_is_free_and_is_taken_back_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    set_aside = SetAside(2)
    held = set(set_aside._held)
    set_aside.lend()
    opened = os.open(os.devnull, os.O_RDONLY)
    assert opened in held
    os.close(opened)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        set_aside.take_back()  # somebody else has taken the place: no error
    assert len(set_aside._held) == 1
    set_aside.lend()
    set_aside.take_back()  # it tries again
    assert len(set_aside._held) == 2
    set_aside.close()
