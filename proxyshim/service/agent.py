"""HAProxy's agent check: one line that says whether a listener can serve clients now.

Source: HAProxy's configuration manual, agent-check.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

from proxyshim.addresses import Endpoint
from proxyshim.backend.dial import Dial
from proxyshim.conveyance.contract import Conveyance
from proxyshim.errors import BackendError, Reason
from proxyshim.metrics import Metrics
from proxyshim.net.closing import close_gently
from proxyshim.net.stream import Stream
from proxyshim.session.shared import Shared

# By default HAProxy checks every two seconds and waits just as long for the answer.
ANSWER_WITHIN_S: Final = 1.5
_CACHED_S: Final = 1.0
# For this long after the start we send "ready".  Every HAProxy should check at least once in it.
_SEND_READY_S: Final = 60.0


class BackendHealth:
    """On-demand health check of one backend, cached for one second."""

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
        except (BackendError, TimeoutError):
            return False


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
        self._started_at = float("-inf")

    def adopt(self, shared: Shared) -> None:
        """Answer the listed peers of a listener, from now on, for its backend."""
        name = shared.listener.settings.name
        self._is_listed[name] = shared.is_listed
        self._health[name] = BackendHealth(shared.conveyance, shared.dial)

    def note_start(self) -> None:
        """Begin the time during which the answers contain "ready"."""
        self._started_at = time.monotonic()

    def answer(self, listener: str, sock: socket.socket, peer: Endpoint | None) -> None:
        """Answer a listed peer; close the connection of any other peer without an answer."""
        if not self._is_listed[listener](peer):
            sock.close()
            return
        connection = self._open_connection(sock)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._send_answer(listener, connection))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def turn_away(self, sock: socket.socket, _: Reason) -> None:
        """Close a connection that cannot be answered.

        We send nothing, because an SMTP reply would not be a valid answer.
        """
        sock.close()

    async def _send_answer(self, listener: str, connection: Stream) -> None:
        """Send the state of *listener*.

        After "drain", HAProxy keeps the server in drain until it receives "ready", even if "up"
        comes first.  But "ready" also cancels a state that an operator set by hand, so we send it
        only after the start.
        """
        if not self._metrics.ready:
            words = b"drain"
        else:
            words = b"up" if await self._health[listener].is_up() else b"down"
            if time.monotonic() - self._started_at < _SEND_READY_S:
                words += b" ready"
        connection.send(words + b"\n")
        await close_gently(connection)
