"""Edges are told to whom they belong to."""

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from proxyshim.net.reactor import Poller

LIMIT_S = 5


class Owner:
    """A socket's owner: counts its edges, and does something at each."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.edges = 0
        self._then = then

    def on_edge(self, events: int) -> None:
        assert events
        self.edges += 1
        self._then()


def test_who_gets_a_number_in_a_turn_does_not_hear_of_the_owner_before() -> None:
    """Both sockets have an edge in one turn; the first to hear closes both and opens others."""

    async def run() -> None:
        poller = Poller(asyncio.get_running_loop())
        turn_over = asyncio.Event()
        all_heard = asyncio.Event()

        def note_edge() -> None:
            if heir.edges == len(inherited):
                all_heard.set()

        heir = Owner(note_edge)
        owned: list[socket.socket] = []
        inherited: list[socket.socket] = []

        def give_away() -> None:
            numbers = {sock.fileno() for sock in owned}
            for sock in owned:
                poller.forget(sock.fileno())
                sock.close()
            inherited.extend(socket.socketpair())
            assert {sock.fileno() for sock in inherited} == numbers
            for sock in inherited:
                poller.add(sock.fileno(), heir)
            turn_over.set()

        owned.extend(socket.socketpair())
        owners = Owner(give_away), Owner(give_away)
        for sock, owner in zip(owned, owners, strict=True):
            poller.add(sock.fileno(), owner)
        async with asyncio.timeout(LIMIT_S):
            await turn_over.wait()
        assert sum(owner.edges for owner in owners) == 1
        assert heir.edges == 0
        async with asyncio.timeout(LIMIT_S):  # its own come in the next turn
            await all_heard.wait()
        for sock in inherited:
            poller.forget(sock.fileno())
            sock.close()

    uvloop.run(run())


def test_an_owner_that_fails_does_not_keep_edges_from_the_others() -> None:
    def fail() -> None:
        raise ValueError("a defect")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        failures: list[object] = []
        both_failed, heard = asyncio.Event(), asyncio.Event()

        def note_failure(_: object, context: object) -> None:
            failures.append(context)
            if len(failures) == 2:
                both_failed.set()

        loop.set_exception_handler(note_failure)
        poller = Poller(loop)
        owners = Owner(fail), Owner(heard.set), Owner(fail)
        pairs = [socket.socketpair() for _ in owners]
        for (sock, _), owner in zip(pairs, owners, strict=True):
            poller.add(sock.fileno(), owner)
        async with asyncio.timeout(LIMIT_S):
            await heard.wait()
            await both_failed.wait()
        close(poller, pairs)

    uvloop.run(run())


def test_what_is_put_off_comes_behind_all_edges_and_sending_comes_last() -> None:
    async def run() -> None:
        poller = Poller(asyncio.get_running_loop())
        steps: list[str] = []
        turn_over = asyncio.Event()

        class Sender:
            def flush(self) -> None:
                steps.append("sent")
                if steps.count("sent") == len(pairs):
                    turn_over.set()

        def take_edge() -> None:
            steps.append("told")
            poller.soon(put_off)
            assert poller.flush_later(Sender())

        def put_off() -> None:
            steps.append("put off")
            if steps.count("put off") == 1:
                poller.soon(lambda: steps.append("put off again"))

        pairs = [socket.socketpair() for _ in range(3)]
        for sock, _ in pairs:
            poller.add(sock.fileno(), Owner(take_edge))
        async with asyncio.timeout(LIMIT_S):
            await turn_over.wait()
        assert steps == [
            *["told"] * 3,
            *["put off"] * 3,
            "put off again",
            *["sent"] * 3,
        ]
        close(poller, pairs)

    uvloop.run(run())


def test_outside_of_a_turn_the_loop_is_asked_and_nobody_sends_later() -> None:
    async def run() -> None:
        poller = Poller(asyncio.get_running_loop())
        called = asyncio.Event()
        poller.soon(called.set)
        assert not called.is_set()
        async with asyncio.timeout(LIMIT_S):
            await called.wait()
        assert not poller.flush_later(NeverFlushed())

    uvloop.run(run())


class NeverFlushed:
    """A sender that has to send at once."""

    def flush(self) -> None:
        pytest.fail("there is no turn")


@pytest.mark.parametrize("step", ["soon", "flush_later"])
def test_one_that_fails_later_in_a_turn_does_not_keep_the_others(step: str) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        failures: list[object] = []
        loop.set_exception_handler(lambda _, context: failures.append(context))
        poller = Poller(loop)
        done = asyncio.Event()

        class Failing:
            def flush(self) -> None:
                raise ValueError("a defect")

        class Last:
            def flush(self) -> None:
                done.set()

        def take_edge() -> None:
            for each in (Failing(), Last()):
                if step == "soon":
                    poller.soon(each.flush)
                else:
                    poller.flush_later(each)

        pairs = [socket.socketpair()]
        poller.add(pairs[0][0].fileno(), Owner(take_edge))
        async with asyncio.timeout(LIMIT_S):
            await done.wait()
        assert len(failures) == 1
        close(poller, pairs)

    uvloop.run(run())


def close(poller: Poller, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Close all, those that are watched first."""
    for pair in pairs:
        poller.forget(pair[0].fileno())
        for sock in pair:
            sock.close()
