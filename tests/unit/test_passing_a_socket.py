"""A socket that is handed over: what we know when the wait for its receipt is interrupted."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
import uvloop

from proxyshim.net.fiber import Fiber
from proxyshim.net.passing import pass_socket
from proxyshim.net.reactor import Reactor

LIMIT_S = 5


class Given:
    """A fiber that hands a socket over, and what became of it."""

    def __init__(self, reactor: Reactor, path: Path, descriptor: int) -> None:
        self.received = self.ended = False
        self.error: BaseException | None = None
        giving = self._give(reactor, str(path), descriptor)
        self.fiber = Fiber(giving, self._note_end)
        self.fiber.wake()

    async def _give(self, reactor: Reactor, path: str, descriptor: int) -> None:
        await pass_socket(reactor, path, descriptor, b"\0")
        self.received = True

    def _note_end(self, error: BaseException | None) -> None:
        self.ended, self.error = True, error


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "waiting"])
def test_an_interrupted_hand_over_knows_whether_the_receipt_has_come(
    tmp_path: Path, taken: bool
) -> None:
    """The server's close has arrived, and the event loop has not seen it yet."""

    async def run() -> None:
        reactor = Reactor(asyncio.get_running_loop())
        ours, theirs = socket.socketpair()
        with ours, theirs, socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "pass"))
            server.listen()
            server.settimeout(LIMIT_S)
            given = Given(reactor, tmp_path / "pass", theirs.fileno())
            connection, _ = server.accept()
            with connection:
                _, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
                socket.socket(fileno=descriptors[0]).close()
                if taken:
                    connection.close()
                given.fiber.interrupt(asyncio.CancelledError())
            assert given.ended
            assert given.received == taken
            assert (given.error is None) == taken

    uvloop.run(run())


def test_the_cancellation_of_a_task_is_never_swallowed(tmp_path: Path) -> None:
    async def run() -> None:
        reactor = Reactor(asyncio.get_running_loop())
        ours, theirs = socket.socketpair()
        with ours, theirs, socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "pass"))
            server.listen()
            server.settimeout(LIMIT_S)
            giving = pass_socket(reactor, str(tmp_path / "pass"), theirs.fileno(), b"0")
            task = asyncio.create_task(giving)
            await asyncio.sleep(0)  # it has sent
            server.accept()[0].close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()

    uvloop.run(run())
