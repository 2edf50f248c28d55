"""Accepting on real sockets, with the errors of accept() injected, and without a server."""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from proxyshim.addresses import Endpoint
from proxyshim.config import Limits
from proxyshim.errors import Reason
from proxyshim.metrics import Metrics
from proxyshim.net.connection import Connection
from proxyshim.net.reactor import Reactor
from proxyshim.service.acceptor import Acceptor, Limiter
from proxyshim.service.sockets import ListeningSocket
from proxyshim.smtp.replies import TOO_MANY
from proxyshim.throttle import Throttle

LIMIT_S = 5


class FailingSocket(socket.socket):
    """A listening unix socket whose accept() fails with the given errors first.

    A connect() to a unix socket has put the connection into the queue when it returns.
    """

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.bind("")  # the kernel chooses an abstract name
        self.listen(256)
        self.errors: list[int] = []

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


class Fixture:
    """An acceptor on one listening socket, and what it did with each connection."""

    def __init__(self, cleanup: ExitStack) -> None:
        self._cleanup = cleanup
        self._changed = asyncio.Event()
        self.taken: list[socket.socket] = []
        self.turned_away: list[Reason] = []
        self.take_errors: list[Exception] = []
        self.metrics = Metrics()
        self.listening = cleanup.enter_context(FailingSocket())
        self.acceptor = Acceptor(
            self._take,
            self._turn_away,
            self.taken,
            self.metrics,
            structlog.get_logger(),
        )
        self.acceptor.add("mx", ListeningSocket(self.listening, "key"))
        cleanup.callback(self.acceptor.release)

    def _take(self, listener: str, sock: socket.socket, peer: Endpoint | None) -> None:
        assert (listener, peer) == ("mx", None)
        assert not sock.getblocking()
        if self.take_errors:
            raise self.take_errors.pop(0)
        self.taken.append(self._cleanup.enter_context(sock))
        self._changed.set()

    def _turn_away(self, sock: socket.socket, reason: Reason) -> None:
        sock.close()
        self.turned_away.append(reason)
        self._changed.set()

    def connect(self) -> None:
        client = socket.socket(socket.AF_UNIX)
        self._cleanup.enter_context(client).connect(self.listening.getsockname())

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until what happened to connections makes *condition* true."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def run(test: Callable[[Fixture], Awaitable[None]]) -> list[str]:
    """Run *test*; return the events that were logged."""

    async def main() -> None:
        with ExitStack() as cleanup:
            await test(Fixture(cleanup))

    with capture_logs() as logged:
        asyncio.run(main())
    return [event["event"] for event in logged]


@pytest.fixture(autouse=True)
def _short_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxyshim.service.acceptor._RETRY_S", 0.01)


def test_a_wake_up_accepts_64_connections_and_leaves_the_rest_to_the_next() -> None:
    async def test(made: Fixture) -> None:
        for _ in range(70):
            made.connect()
        made.acceptor.resume()
        await made.wait_until(lambda: len(made.taken) > 0)
        assert len(made.taken) == 64
        await made.wait_until(lambda: len(made.taken) == 70)

    assert run(test) == []


def test_a_paused_acceptor_leaves_connections_in_the_queue() -> None:
    async def test(made: Fixture) -> None:
        made.acceptor.resume()
        made.acceptor.pause()
        made.connect()
        for _ in range(3):
            await asyncio.sleep(0)
        assert made.taken == []
        made.acceptor.resume()
        await made.wait_until(lambda: len(made.taken) == 1)

    assert run(test) == []


@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM])
def test_a_connection_lost_before_accept_does_not_delay_the_next(error: int) -> None:
    async def test(made: Fixture) -> None:
        made.listening.errors = [error]
        made.connect()
        made.acceptor.resume()
        await made.wait_until(lambda: len(made.taken) == 1)

    assert run(test) == []


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC])
def test_a_failing_accept_pauses_and_is_tried_again(error: int) -> None:
    async def test(made: Fixture) -> None:
        made.listening.errors = [error]
        made.connect()
        made.acceptor.resume()
        await made.wait_until(lambda: len(made.taken) == 1)
        assert made.turned_away == []

    assert run(test) == ["accepting_paused", "accepting_resumed"]


def test_a_failing_accept_is_counted_and_logged_once_however_long_it_lasts() -> None:
    async def test(made: Fixture) -> None:
        made.listening.errors = [errno.ENOMEM] * 5
        made.connect()
        made.acceptor.resume()
        await made.wait_until(lambda: len(made.taken) == 1)
        assert made.metrics.refusals == {"out_of_resources": 1}

    assert run(test) == ["accepting_paused", "accepting_resumed"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "out_of_resources"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_resources"),
        (OSError(errno.EMFILE, "Too many open files"), "out_of_descriptors"),
        (MemoryError(), "out_of_resources"),
        (ValueError("a defect"), "internal_error"),
    ],
    ids=repr,
)
def test_a_connection_that_cannot_be_taken_over_is_turned_away(
    error: Exception, reason: str
) -> None:
    """epoll_ctl(2) fails with ENOSPC when the user watches too many descriptors."""

    async def test(made: Fixture) -> None:
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context["exception"])
        )
        made.take_errors = [error]
        made.connect()
        made.connect()
        made.acceptor.resume()
        await made.wait_until(lambda: len(made.taken) == 1)
        assert made.turned_away == [reason]
        assert reported == ([] if isinstance(error, OSError) else [error])

    assert run(test) == []


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
def test_a_connection_without_a_descriptor_is_turned_away(error: int) -> None:
    async def test(made: Fixture) -> None:
        made.listening.errors = [error]
        made.connect()
        made.connect()
        made.acceptor.resume()
        await made.wait_until(lambda: len(made.turned_away) == 1)
        await made.wait_until(lambda: len(made.taken) == 1)

    assert run(test) == []


def test_a_lost_reserve_pauses_until_there_is_one_again() -> None:
    async def test(made: Fixture) -> None:
        # The second error means that another thread took the descriptor.
        made.listening.errors = [errno.EMFILE, errno.EMFILE]
        made.connect()
        made.acceptor.resume()
        await made.wait_until(lambda: len(made.taken) == 1)
        assert made.turned_away == []

    assert run(test) == ["accepting_paused", "accepting_resumed"]


def test_a_shortage_that_ends_after_a_hand_over_does_not_resume() -> None:
    async def test(made: Fixture) -> None:
        made.listening.errors = [errno.ENOMEM]
        made.connect()
        made.acceptor._accept("mx", made.listening)
        made.acceptor.pause()
        retried = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, retried.set)
        await retried.wait()
        assert made.acceptor._retry is None
        assert made.taken == []
        made.acceptor.resume()
        await made.wait_until(lambda: len(made.taken) == 1)

    assert run(test) == ["accepting_paused", "accepting_resumed"]


def test_a_released_acceptor_returns_its_sockets_once() -> None:
    async def test(made: Fixture) -> None:
        made.acceptor.resume()
        assert [each.sock for each in made.acceptor.release()] == [made.listening]
        assert made.acceptor.release() == []

    assert run(test) == []


# The limiter.


def test_at_most_32_connections_over_the_limit_get_a_lingering_close() -> None:
    metrics = Metrics()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reactor = Reactor(loop)
        limiter = Limiter(
            lambda *_: pytest.fail("a session began"),
            lambda sock: Connection(reactor, sock, may_be_readable=True),
            ["the one session"],
            metrics,
            Throttle(),
            structlog.get_logger(),
        )
        limiter.adopt(Limits(sessions=1))
        with ExitStack() as cleanup:
            clients = []
            for _ in range(40):
                client, sock = socket.socketpair()
                sock.setblocking(False)
                clients.append(cleanup.enter_context(client))
                limiter.admit("mx", sock, None)
            assert len(limiter._lingering) == 32
            for client in clients[32:]:
                assert (client.recv(1000), client.recv(1)) == (TOO_MANY, b"")
            async with asyncio.timeout(LIMIT_S):
                for client in clients[:32]:
                    client.setblocking(False)
                    assert await loop.sock_recv(client, 1000) == TOO_MANY
                    client.close()
                await asyncio.gather(*limiter._lingering)

    with capture_logs() as logged:
        asyncio.run(main())
    assert metrics.refusals == {"too_many_sessions": 40}
    assert [event["event"] for event in logged] == ["connection_shed"]
