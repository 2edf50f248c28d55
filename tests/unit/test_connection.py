"""A connection sends at the end of the reactor's turn, and loses nothing."""

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from proxyshim.net.closing import close_gently
from proxyshim.net.connection import Connection
from proxyshim.net.reactor import Reactor

LIMIT_S = 5
MUCH = b"x" * 10_000_000  # more than a socket's buffer takes


def in_a_turn(act: Callable[[Connection, socket.socket], None]) -> None:
    """Call *act* in the middle of a turn, with a connection and its other end."""

    async def run() -> None:
        acted = asyncio.Event()
        near, far = socket.socketpair()
        near.setblocking(False)
        far.settimeout(LIMIT_S)
        connection = Connection(Reactor(asyncio.get_running_loop()), near)

        def act_once(_: bytes) -> None:
            act(connection, far)
            acted.set()

        with far:
            connection.start_reading(act_once, refuse, ignore)
            far.send(b"now")
            async with asyncio.timeout(LIMIT_S):
                await acted.wait()
            await asyncio.to_thread(check_what_arrives, act, connection, far)
            connection.close()

    uvloop.run(run())


def ignore() -> None:
    """Ignore a backlog."""


def refuse(what: object) -> None:
    """Fail, because nothing should arrive."""
    pytest.fail(f"arrived too early: {what!r}")


def check_what_arrives(
    act: Callable[..., None], connection: Connection, far: socket.socket
) -> None:
    expected, ends = ARRIVALS[act]
    octets = b""
    while len(octets) < len(expected) and (some := far.recv(65_536)):
        octets += some
    assert octets == expected
    if ends:
        assert far.recv(1) == b""
    assert connection.octets_sent == len(expected)


def send_twice(connection: Connection, far: socket.socket) -> None:
    connection.send(b"one, ")
    connection.send(b"two")
    far.setblocking(False)
    with pytest.raises(BlockingIOError):  # nothing is sent before the turn is over
        far.recv(1)
    far.settimeout(LIMIT_S)


def send_and_end(connection: Connection, _: socket.socket) -> None:
    connection.send(b"last words")
    connection.end_sending()


def send_and_close(connection: Connection, _: socket.socket) -> None:
    connection.send(b"last words")
    connection.close()


def send_and_flush(connection: Connection, far: socket.socket) -> None:
    connection.send(b"at once")
    connection.flush()
    assert far.recv(7, socket.MSG_PEEK) == b"at once"


ARRIVALS: dict[Callable[..., None], tuple[bytes, bool]] = {
    send_twice: (b"one, two", False),
    send_and_end: (b"last words", True),
    send_and_close: (b"last words", True),
    send_and_flush: (b"at once", False),
}


@pytest.mark.parametrize("act", ARRIVALS)
def test_bytes_sent_during_a_turn_arrive(
    act: Callable[[Connection, socket.socket], None],
) -> None:
    in_a_turn(act)


def test_a_backlog_that_appears_at_the_end_of_a_turn_is_reported() -> None:
    """Otherwise a relay would go on reading the other side."""

    async def run() -> None:
        reported = asyncio.Event()
        near, far = socket.socketpair()
        near.setblocking(False)
        connection = Connection(Reactor(asyncio.get_running_loop()), near)

        def send_much(_: bytes) -> None:
            connection.send(MUCH)
            assert connection.backlog_octets == 0
            connection.stop_reading()
            connection.start_reading(refuse, refuse, reported.set)

        with far:
            connection.start_reading(send_much, refuse, ignore)
            far.send(b"now")
            async with asyncio.timeout(LIMIT_S):
                await reported.wait()
            assert 0 < connection.backlog_octets < len(MUCH)
            connection.close()

    uvloop.run(run())


# The rest of the contract of streams (net/stream.py).


def test_peek_leaves_the_bytes_unread_and_an_exact_read_leaves_the_rest() -> None:
    async def run() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        connection = Connection(Reactor(asyncio.get_running_loop()), near)
        with far:
            assert connection.peek(10) is None
            far.send(b"PROXY UNKNOWN\r\nEHLO client.test\r\n")
            assert connection.peek(5) == b"PROXY"
            assert connection.receive_now(15) == b"PROXY UNKNOWN\r\n"
            assert connection.octets_received == 15
            assert connection.peek(100) == b"EHLO client.test\r\n"
            assert await connection.receive() == b"EHLO client.test\r\n"
            far.shutdown(socket.SHUT_WR)
            assert await connection.receive() == b""
            connection.close()

    uvloop.run(run())


def test_a_detached_socket_is_neither_watched_nor_closed() -> None:
    async def run() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        connection = Connection(Reactor(asyncio.get_running_loop()), near)
        with far, connection.detach() as given:
            assert connection.closed
            far.send(b"for the new owner")
            await close_gently(
                connection
            )  # must not read from a socket that was given away
            assert given.recv(100) == b"for the new owner"
            given.send(b"and back")
            assert far.recv(100) == b"and back"

    uvloop.run(run())
