"""One epoll set for the sockets of all sessions; the event loop sees it as one descriptor.

The loop's own ``add_reader`` costs system calls each time it is added, removed or paused, which a
session does a dozen times.  Here a socket is registered once, for edges: what becomes readable or
writable is told once, and whoever is told goes on until there is nothing more; a reset too is an
edge, and what came before it is read first.  So pausing, resuming and closing cost no system call.
Source: epoll(7), "Level-triggered and edge-triggered".
"""

import asyncio
import select
from typing import Final, Protocol

from proxyshim.per_loop import PerLoop

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT
# The other end has shut down or reset; reading shows which.
ENDED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

_EDGES: Final = READABLE | WRITABLE | select.EPOLLRDHUP | select.EPOLLET
_EVENTS_A_TURN: Final = 256


class Watched(Protocol):
    """Who hears of a socket's edges."""

    def on_edge(self, events: int) -> None:
        """Take READABLE, WRITABLE and ENDED, in any combination."""


class Poller:
    """The set of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Join *loop*."""
        self._loop = loop
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        self._added: set[int] = set()  # in this turn
        loop.add_reader(self._epoll.fileno(), self._turn)

    def add(self, descriptor: int, watched: Watched) -> None:
        """Watch a socket; the state that it has already is told as the first edge."""
        self._watched[descriptor] = watched
        self._added.add(descriptor)
        self._epoll.register(descriptor, _EDGES)

    def forget(self, descriptor: int) -> None:
        """Watch a socket no more: it is about to be closed, which takes it out of the set."""
        self._watched.pop(descriptor, None)

    def _turn(self) -> None:
        added = self._added
        added.clear()
        find = self._watched.get
        for descriptor, events in self._epoll.poll(0, _EVENTS_A_TURN):
            # One that was told may have closed another of them, and a socket opened then may
            # have got that one's number: what was found is not about the new one.
            if descriptor in added or (watched := find(descriptor)) is None:
                continue
            try:
                watched.on_edge(events)
            except Exception as error:  # noqa: BLE001 - the others' edges are told only once
                self._loop.call_exception_handler(
                    {"message": "an edge was not taken", "exception": error}
                )


_pollers: Final = PerLoop(Poller)
poller_of: Final = _pollers.of
