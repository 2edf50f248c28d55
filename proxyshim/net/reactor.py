"""The runtime of all sessions: one epoll set, one clock and one timer wheel.

A process makes one ``Reactor`` and hands it down.  The event loop sees it as a single descriptor.

The loop's own ``add_reader`` costs an epoll_ctl each time a reader is added, removed or paused,
and a session does that a dozen times.  Here a socket is registered once, edge-triggered: the
kernel reports once that it became readable or writable, and its owner then works until nothing is
left.  A reset is an edge as well, and what came before it is read first.  So pausing, resuming
and closing cost no system call.

A turn has three steps.  First, each owner is notified of its socket's events.  Then the
postponed calls run (``call_after_events``).  Finally, every connection
flushes its pending output (``flush_later``).  So when many sessions are busy, the kernel's part
of sending runs many times in a row, and a receiver is woken once for several packets.

An edge comes once, so an owner that an exception interrupts may wait for its next one for ever.
Therefore an owner that raises an exception here gets it back (``fail``), and ends its session.

Source: epoll(7), "Level-triggered and edge-triggered".
"""

import asyncio
import select
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from proxyshim.net.deadlines import Deadlines, Limit
from proxyshim.net.fiber import Waiter, get_waiter
from proxyshim.net.memory import MemoryWatch

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT
# The connection is gone, as after a reset: while our own side is open, nothing else sets these.
RESET: Final = select.EPOLLHUP | select.EPOLLERR
# The other end has shut down or reset.
ENDED: Final = select.EPOLLRDHUP | RESET
# Urgent data (TCP's out-of-band octet): a read stops in front of it, although more has arrived.
URGENT: Final = select.EPOLLPRI

_EDGES: Final = READABLE | WRITABLE | URGENT | select.EPOLLRDHUP | select.EPOLLET
_EVENTS_A_TURN: Final = 256
_RETRY_S: Final = 0.2  # after something failed that must not


# Ends the session in whose callback our own code raised an exception.
OnFailure = Callable[[Exception], None]


class Watched(Protocol):
    """The owner of a watched socket."""

    def on_events(self, events: int) -> None:
        """Take READABLE, WRITABLE, ENDED and URGENT, in any combination."""

    def fail(self, error: Exception) -> None:
        """End the session, because ``on_events`` raised *error*."""

    def close(self) -> None:
        """Close the socket at once: the reactor is closing."""


class Sender(Protocol):
    """Something with output to send at the end of a turn."""

    def flush(self) -> None:
        """Send it."""

    def fail(self, error: Exception) -> None:
        """End the session, because ``flush`` raised *error*."""


class Reactor:
    """The epoll set, the clock and the timer wheel of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Join *loop*.  Raises OSError when there is no descriptor left."""
        self.loop = loop
        self.time = loop.time
        self.deadlines = Deadlines(loop, self._has_caught_up)
        self.memory = MemoryWatch(loop.time)
        # ``with reactor.limit(seconds):`` raises TimeoutError when the body takes longer.
        self.limit = partial(Limit, self.deadlines)
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        self._in_turn = False
        self._is_behind = False  # the last turn did not take all events
        # Of this turn: new descriptors, postponed calls, and connections with output.
        self._added: set[int] = set()
        self._postponed: list[tuple[Callable[[], None], OnFailure]] = []
        self._senders: list[Sender] = []
        loop.add_reader(self._epoll.fileno(), self._turn)

    def close(self) -> None:
        """Leave the loop.  Close what is left: connections that linger in the background."""
        for owner in list(self._watched.values()):
            owner.close()
        self.deadlines.close()  # so that what lingers ends now
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def get_waiter(self) -> Waiter:
        """Return what the calling coroutine waits with."""
        return get_waiter(self.loop)

    # Sockets.

    def watch(self, descriptor: int, owner: Watched) -> None:
        """Notify *owner* of a socket's events; its present state counts as the first ones.

        Raises OSError when the kernel watches too many already.
        """
        self._epoll.register(descriptor, _EDGES)
        self._watched[descriptor] = owner
        self._added.add(descriptor)

    def replace(self, descriptor: int, owner: Watched) -> None:
        """Notify *owner* of the events of a watched socket from now on."""
        self._watched[descriptor] = owner

    def forget(self, descriptor: int) -> None:
        """Stop watching a socket that is about to be closed, which removes it from the set."""
        self._watched.pop(descriptor, None)

    def release(self, descriptor: int) -> None:
        """Stop watching a socket that stays open: somebody else takes it over."""
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    # Turns.

    def call_after_events(
        self, callback: Callable[[], None], on_failure: OnFailure
    ) -> None:
        """Call back after this turn's events; outside of a turn, a moment later."""
        if self._in_turn:
            self._postponed.append((callback, on_failure))
        else:
            self.loop.call_soon(self._call, callback, on_failure)

    def flush_later(self, sender: Sender) -> bool:
        """Have *sender* flush at the end of this turn; return False outside of a turn."""
        if self._in_turn:
            self._senders.append(sender)
        return self._in_turn

    def _turn(self) -> None:
        self._in_turn = True
        self._added.clear()
        try:
            self._dispatch_events()
        except Exception as error:  # noqa: BLE001 - no memory for the list of events
            self._report(error)
            self._look_again()
        for callback, on_failure in self._postponed:  # which may postpone more
            self._call(callback, on_failure)
        self._postponed.clear()
        self._in_turn = False
        senders, self._senders = self._senders, []
        for sender in senders:
            try:
                sender.flush()
            except Exception as error:  # noqa: BLE001 - as below
                self.give_back(error, sender.fail)

    def _dispatch_events(self) -> None:
        find, added = self._watched.get, self._added
        found = self._epoll.poll(0, _EVENTS_A_TURN)
        self._is_behind = len(found) == _EVENTS_A_TURN
        for descriptor, events in found:
            # An owner notified earlier in this turn may have closed another of these sockets, and
            # a socket opened since may have its number: then the events are not about the new one.
            if descriptor in added or (owner := find(descriptor)) is None:
                continue
            try:
                owner.on_events(events)
            except Exception as error:  # noqa: BLE001 - the other owners see their edges only once
                self.give_back(error, owner.fail)

    # Failures.

    def _call(self, callback: Callable[[], None], on_failure: OnFailure) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - as above
            self.give_back(error, on_failure)

    def give_back(self, error: Exception, on_failure: OnFailure) -> None:
        """Make the owner that raised *error* act on it, as often as it takes."""
        if isinstance(error, MemoryError):
            self.memory.note_error()
        try:
            on_failure(error)
        except Exception as another:  # noqa: BLE001 - as above
            self._report(another)
            self.loop.call_later(_RETRY_S, self.give_back, error, on_failure)

    def _look_again(self) -> None:
        """Have the kernel report the present state of all sockets again: events were lost."""
        try:
            for descriptor in self._watched:
                self._epoll.modify(descriptor, _EDGES)
        except Exception as error:  # noqa: BLE001 - as above
            self._report(error)
            self.loop.call_later(_RETRY_S, self._look_again)

    def _has_caught_up(self) -> bool:
        return not self._is_behind

    def _report(self, error: Exception) -> None:
        self.loop.call_exception_handler(
            {"message": "a socket's owner failed", "exception": error}
        )
