"""One epoll set for the sockets of all sessions; the event loop sees it as one descriptor.

The loop's own ``add_reader`` costs system calls each time it is added, removed or paused, which a
session does a dozen times.  Here a socket is registered once, for edges: what becomes readable or
writable is told once, and whoever is told goes on until there is nothing more; a reset too is an
edge, and what came before it is read first.  So pausing, resuming and closing cost no system call.
Source: epoll(7), "Level-triggered and edge-triggered".
"""

import asyncio
import select
import weakref
from typing import Final, Protocol

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT
# The other end has shut down or reset; reading shows which.
ENDED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

_EDGES: Final = READABLE | WRITABLE | select.EPOLLRDHUP | select.EPOLLET
_EVENTS_A_TURN: Final = 256


class Watched(Protocol):
    """Who hears of a socket's edges."""

    def on_edge(self, events: int) -> None:
        """Take READABLE, WRITABLE and ENDED, in any combination; perhaps once after forget."""


class Poller:
    """The set of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Join *loop*."""
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        loop.add_reader(self._epoll.fileno(), self._turn)

    def add(self, descriptor: int, watched: Watched) -> None:
        """Watch a socket; the state that it has already is told as the first edge."""
        self._watched[descriptor] = watched
        self._epoll.register(descriptor, _EDGES)

    def forget(self, descriptor: int) -> None:
        """Watch a socket no more: it is about to be closed, which takes it out of the set."""
        self._watched.pop(descriptor, None)

    def _turn(self) -> None:
        find = self._watched.get
        told = self._epoll.poll(0, _EVENTS_A_TURN)
        # Found before the first is told: it may close another of them, and a socket opened then
        # gets that one's number.
        for watched, events in [(find(number), events) for number, events in told]:
            if watched is not None:
                watched.on_edge(events)


_pollers: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Poller]] = (
    weakref.WeakKeyDictionary()
)


def poller_of(loop: asyncio.AbstractEventLoop) -> Poller:
    """Return the poller of *loop*, which lives as long as it does."""
    poller = _pollers.get(loop)
    if poller is None:
        poller = _pollers[loop] = Poller(loop)
    return poller
