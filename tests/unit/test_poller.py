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
    """Both sockets have an edge in one turn; the first to hear gives the other's away."""

    async def run() -> None:
        poller = Poller(asyncio.get_running_loop())
        turn_over = asyncio.Event()
        heir = Owner()
        numbers: list[int] = []

        def give_away() -> None:
            for number in numbers:
                poller.forget(number)
                poller._watched[number] = heir
            turn_over.set()

        one, other = socket.socketpair()
        with one, other:
            owners = Owner(give_away), Owner(give_away)
            for sock, owner in zip((one, other), owners, strict=True):
                numbers.append(sock.fileno())
                poller.add(sock.fileno(), owner)
            async with asyncio.timeout(LIMIT_S):
                await turn_over.wait()
            assert [owner.edges for owner in owners] == [1, 1]
            assert heir.edges == 0

    uvloop.run(run())
