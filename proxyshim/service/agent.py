"""HAProxy's agent check: one line that says whether a listener can serve clients now.

Source: HAProxy's configuration manual, agent-check.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Final

from proxyshim.addresses import Endpoint
from proxyshim.backend.dial import Dial
from proxyshim.conveyance.contract import Conveyance
from proxyshim.errors import BackendError, BackendTimeout, Reason
from proxyshim.metrics import Metrics
from proxyshim.net.closing import close_gently
from proxyshim.net.stream import Stream
from proxyshim.service.bounded_acceptor import BoundedAcceptor
from proxyshim.service.set_aside import DEADLINE_S
from proxyshim.session.shared import Shared

# By default HAProxy checks every two seconds and waits just as long for the answer.
ANSWER_WITHIN_S: Final = 1.5
# A backend that does not answer is up if it has replied to anybody within this time.
REPLIED_WITHIN_S: Final = 60.0
_OUR_SHORTAGES: Final = (Reason.OUT_OF_DESCRIPTORS, Reason.OUT_OF_RESOURCES)
_CACHED_S: Final = 1.0
# For this long after the start we send "ready".  Every HAProxy should check at least once in it.
_SEND_READY_S: Final = 60.0


class BackendHealth:
    """On-demand health check of one backend, cached for one second.

    A backend that does not answer may be down, or busy: when idle clients hold all processes of a
    Postfix, it greets nobody until one of them leaves.  Then the next client waits a little, and
    it would be wrong to send it elsewhere.  So a backend that does not answer counts as up while
    it has replied to anybody lately.
    """

    def __init__(self, conveyance: Conveyance, dial: Dial) -> None:
        """Connect to nothing before ``is_up``."""
        self._conveyance = conveyance
        self._dial = dial
        self._check: asyncio.Task[bool] | None = None
        self._was_up = False
        self._checked_at = float("-inf")

    async def is_up(self) -> bool:
        """Return True if the backend would take a client now.

        Concurrent callers share one connection to the backend.
        """
        if time.monotonic() - self._checked_at < _CACHED_S:
            return self._was_up
        if self._check is None:
            self._check = asyncio.get_running_loop().create_task(self._connect())
            self._check.add_done_callback(self._note_result)
        return await asyncio.shield(self._check)

    def _note_result(self, task: asyncio.Task[bool]) -> None:
        self._check = None
        if not task.cancelled():
            self._was_up, self._checked_at = task.result(), time.monotonic()

    async def _connect(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await self._conveyance.is_up(self._dial)
        except (BackendTimeout, TimeoutError):
            return self._has_replied_lately()
        except BackendError as error:
            # A shortage on this host says nothing about the backend.
            return error.reason in _OUR_SHORTAGES and self._has_replied_lately()

    def _has_replied_lately(self) -> bool:
        now = asyncio.get_running_loop().time()
        return now - self._dial.last_reply.at <= REPLIED_WITHIN_S


class AgentChecks:
    """Answers the agent checks of all listeners."""

    def __init__(
        self, open_connection: Callable[[socket.socket], Stream], metrics: Metrics
    ) -> None:
        """Prepare to answer; ``adopt`` provides the listeners.

        While *metrics* show that the service is not ready, the answer is "drain".
        """
        self._open_connection = open_connection
        self._metrics = metrics
        self._is_listed: dict[str, Callable[[Endpoint | None], bool]] = {}
        self._health: dict[str, BackendHealth] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.acceptor = BoundedAcceptor(self._answer)
        self._started_at = float("-inf")

    def adopt(self, shared: Shared) -> None:
        """Answer the listed peers of a listener, from now on, for its backend."""
        name = shared.listener.settings.name
        self._is_listed[name] = shared.is_listed
        self._health[name] = BackendHealth(shared.conveyance, shared.dial)

    def note_start(self) -> None:
        """Begin the time during which the answers contain "ready"."""
        self._started_at = time.monotonic()

    def _answer(
        self, listener: str, sock: socket.socket, peer: Endpoint | None
    ) -> None:
        """Answer a listed peer; close the connection of any other peer without an answer."""
        if not self._is_listed[listener](peer):
            sock.close()
            self.acceptor.note_end()
            return
        connection = self._open_connection(sock)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._send_answer(listener, connection))
        self._answering.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self.acceptor.note_end()

    async def _send_answer(self, listener: str, connection: Stream) -> None:
        """Send the state of *listener*.

        After "drain", HAProxy keeps the server in drain until it receives "ready", even if "up"
        comes first.  But "ready" also cancels a state that an operator set by hand, so we send it
        only after the start.
        """
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEADLINE_S):
                    connection.send(await self._state(listener) + b"\n")
                    await close_gently(connection)
        finally:
            connection.close()

    async def _state(self, listener: str) -> bytes:
        if not self._metrics.ready:
            return b"drain"
        words = b"up" if await self._health[listener].is_up() else b"down"
        if time.monotonic() - self._started_at < _SEND_READY_S:
            words += b" ready"
        return words
