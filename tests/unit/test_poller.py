"""Edges are told to whom they belong to."""

import asyncio
import socket
from collections.abc import Callable

import uvloop

from proxyshim.poller import Poller

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
        for pair in pairs:
            poller.forget(pair[0].fileno())
            for sock in pair:
                sock.close()

    uvloop.run(run())
