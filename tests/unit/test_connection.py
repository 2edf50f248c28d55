"""A connection sends at the end of the poller's turn, and loses nothing by that."""

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from proxyshim.net.connection import Connection

LIMIT_S = 5
MUCH = b"x" * 10_000_000  # more than a socket's buffer takes


def in_a_turn(act: Callable[[Connection, socket.socket], None]) -> None:
    """Have *act* called in the middle of a turn, with a connection and its other end."""

    async def run() -> None:
        acted = asyncio.Event()
        near, far = socket.socketpair()
        near.setblocking(False)
        far.settimeout(LIMIT_S)
        connection = Connection(asyncio.get_running_loop(), near)

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
    """Take no notice of a backlog."""


def refuse(what: object) -> None:
    """Fail, for nothing should come here."""
    pytest.fail(f"came too early: {what!r}")


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
    with pytest.raises(BlockingIOError):  # not before the turn is over
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
def test_what_is_sent_in_a_turn_arrives(
    act: Callable[[Connection, socket.socket], None],
) -> None:
    in_a_turn(act)


def test_a_backlog_that_comes_about_at_the_end_of_a_turn_is_told() -> None:
    """Or the other side of a relay would be read on."""

    async def run() -> None:
        told = asyncio.Event()
        near, far = socket.socketpair()
        near.setblocking(False)
        connection = Connection(asyncio.get_running_loop(), near)

        def send_much(_: bytes) -> None:
            connection.send(MUCH)
            assert connection.backlog_octets == 0
            connection.stop_callbacks()
            connection.start_reading(refuse, refuse, told.set)

        with far:
            connection.start_reading(send_much, refuse, ignore)
            far.send(b"now")
            async with asyncio.timeout(LIMIT_S):
                await told.wait()
            assert 0 < connection.backlog_octets < len(MUCH)
            connection.close()

    uvloop.run(run())


def test_a_close_in_the_background_is_one_however_often_it_is_asked_for() -> None:
    """Two would wait for the same edges, and one of them in vain."""

    async def run() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        connection = Connection(asyncio.get_running_loop(), near)
        before = limits_in(connection)
        with far:
            connection.close_in_background()
            connection.close_in_background()
            assert limits_in(connection) == before + 1
            far.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(LIMIT_S):
                while not connection.closed:  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(0)
        assert limits_in(connection) == before

    uvloop.run(run())


def limits_in(connection: Connection) -> int:
    """Count the limits that run now."""
    return sum(map(len, connection.deadlines._wheel.values()))
