"""A socket that was handed over may be open in another process, too, which shares its settings."""

import asyncio
import os
import socket
from collections.abc import Callable

import pytest
import uvloop

from proxyshim.net.connection import Connection
from proxyshim.net.reactor import ENDED, WRITABLE, Reactor

LIMIT_S = 5
MUCH = b"x" * 10_000_000  # more than a socket's buffer takes


class Heir:
    """The owner of a socket that got the number of a closed one."""

    def __init__(self) -> None:
        self.events = 0
        self.notified = asyncio.Event()

    def on_events(self, events: int) -> None:
        self.events |= events
        self.notified.set()

    def fail(self, error: Exception) -> None:
        raise error

    def close(self) -> None:
        pytest.fail("the reactor is not closed in these tests")


def receive(connection: Connection) -> None:
    assert connection.receive_now() is None


def peek(connection: Connection) -> None:
    assert connection.peek(1) is None


def send(connection: Connection) -> None:
    connection.send(MUCH)
    assert connection.backlog_octets


def end_sending(connection: Connection) -> None:
    connection._outbox = MUCH  # as in the middle of a turn
    connection.end_sending()
    assert connection.backlog_octets


def send_backlog(connection: Connection) -> None:
    os.set_blocking(connection.descriptor, False)
    connection.send(MUCH)
    os.set_blocking(connection.descriptor, True)
    connection.on_events(WRITABLE)
    assert connection.backlog_octets


@pytest.mark.parametrize("act", [receive, peek, send, end_sending, send_backlog])
def test_a_socket_that_smtpd_made_blocking_does_not_block_us(
    act: Callable[[Connection], None],
) -> None:
    async def run() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        connection = Connection(Reactor(asyncio.get_running_loop()), near)
        with near.dup() as smtpds:
            os.set_blocking(smtpds.fileno(), True)
            acting = asyncio.create_task(asyncio.to_thread(act, connection))
            done, _ = await asyncio.wait([acting], timeout=LIMIT_S)
            far.close()  # which ends a call that has not returned
            if not done:
                await asyncio.wait([acting], timeout=LIMIT_S)
                pytest.fail("it blocks")
            await acting
            connection.close()

    uvloop.run(run())


def test_the_end_of_a_shared_connection_is_not_the_end_of_the_next_one() -> None:
    """The open file lives on in smtpd's queue, and the next socket gets the number."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        reactor = Reactor(loop)
        near, far = socket.socketpair()
        near.setblocking(False)
        connection = Connection(reactor, near)
        number = connection.descriptor
        with near.dup(), far:
            connection.is_shared = True
            connection.close()
            ours, theirs = socket.socketpair()
            with ours, theirs:
                assert ours.fileno() == number
                heir = Heir()
                reactor.watch(number, heir)
                async with asyncio.timeout(LIMIT_S):
                    await heir.notified.wait()
                assert not heir.events & ENDED
                reactor.release(number)

    uvloop.run(run())
