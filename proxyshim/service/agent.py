"""Would the backend serve a client now?  Asked when somebody wants to know, and not again soon."""

import asyncio
import time
from typing import Final

from proxyshim.backend.dial import Dial
from proxyshim.conveyance.contract import Conveyance
from proxyshim.errors import BackendError

# HAProxy asks every two seconds by default, and gives an answer as long.
ANSWER_WITHIN_S: Final = 1.5
_FRESH_S: Final = 1.0


class BackendHealth:
    """The state of one backend, as an agent check asks for it."""

    def __init__(self, conveyance: Conveyance, dial: Dial) -> None:
        """Ask nothing yet."""
        self._conveyance = conveyance
        self._dial = dial
        self._asking: asyncio.Task[bool] | None = None
        self._known = False
        self._known_at = float("-inf")

    async def is_up(self) -> bool:
        """Tell whether it greets and offers XCLIENT; an answer of the last second will do."""
        if time.monotonic() - self._known_at < _FRESH_S:
            return self._known
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
            self._asking.add_done_callback(self._note)
        return await asyncio.shield(self._asking)

    def _note(self, task: asyncio.Task[bool]) -> None:
        self._asking = None
        if not task.cancelled():
            self._known, self._known_at = task.result(), time.monotonic()

    async def _ask(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await self._conveyance.is_up(self._dial)
        except (BackendError, TimeoutError):
            return False
