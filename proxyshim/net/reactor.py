"""One epoll set for the sockets of all sessions; the event loop sees it as one descriptor.

The loop's own ``add_reader`` costs system calls each time it is added, removed or paused, which a
session does a dozen times.  Here a socket is registered once, for edges: what becomes readable or
writable is told once, and whoever is told goes on until there is nothing more; a reset too is an
edge, and what came before it is read first.  So pausing, resuming and closing cost no system call.

A turn has three steps: all edges are told; then runs what was put off until they are (``soon``);
then everybody sends what he has to send (``flush_later``).  When many sessions are busy at once,
the kernel's part of sending so runs many times in a row, and who receives is woken once for many.
Source: epoll(7), "Level-triggered and edge-triggered".
"""

import asyncio
import select
from collections.abc import Callable
from typing import Final, Protocol

from proxyshim.net.per_loop import PerLoop

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


class Sender(Protocol):
    """Who has something to send at the end of a turn."""

    def flush(self) -> None:
        """Send it."""


class Poller:
    """The set of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Join *loop*."""
        self._loop = loop
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        self._turning = False
        # In this turn: the new descriptors, what was put off, and who is to send.
        self._added: set[int] = set()
        self._put_off: list[Callable[[], None]] = []
        self._senders: list[Sender] = []
        loop.add_reader(self._epoll.fileno(), self._turn)

    def add(self, descriptor: int, watched: Watched) -> None:
        """Watch a socket; the state that it has already is told as the first edge.

        Raises OSError when the kernel watches too much already.
        """
        self._epoll.register(descriptor, _EDGES)
        self._watched[descriptor] = watched
        self._added.add(descriptor)

    def forget(self, descriptor: int) -> None:
        """Watch a socket no more: it is about to be closed, which takes it out of the set."""
        self._watched.pop(descriptor, None)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back when the edges of this turn are told; outside of one, a moment later."""
        if self._turning:
            self._put_off.append(callback)
        else:
            self._loop.call_soon(callback)

    def flush_later(self, sender: Sender) -> bool:
        """Have *sender* flush at the end of this turn; False when there is none."""
        if self._turning:
            self._senders.append(sender)
        return self._turning

    def _turn(self) -> None:
        self._turning = True
        self._added.clear()
        self._tell_edges()
        for callback in self._put_off:  # which may put off more
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - as below
                self._report(error)
        self._put_off.clear()
        self._turning = False
        senders, self._senders = self._senders, []
        for sender in senders:
            try:
                sender.flush()
            except Exception as error:  # noqa: BLE001 - as below
                self._report(error)

    def _tell_edges(self) -> None:
        find, added = self._watched.get, self._added
        for descriptor, events in self._epoll.poll(0, _EVENTS_A_TURN):
            # One that was told may have closed another of them, and a socket opened then may
            # have got that one's number: what was found is not about the new one.
            if descriptor in added or (watched := find(descriptor)) is None:
                continue
            try:
                watched.on_edge(events)
            except Exception as error:  # noqa: BLE001 - the others' edges are told only once
                self._report(error)

    def _report(self, error: Exception) -> None:
        self._loop.call_exception_handler(
            {"message": "a socket's owner failed", "exception": error}
        )


_pollers: Final = PerLoop(Poller)
poller_of: Final = _pollers.of
