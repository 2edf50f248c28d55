"""Do names fail for everybody?  Then sessions stop waiting for them, and the log reports it.

A dead zone fails for its own clients, so only failures of different clients in a row count, and
any good answer from a DNS server ends the row.  While names fail because the servers are silent,
a session waits only for a moment.  Its question goes out all the same, and the question of the
last client without an answer is repeated every second, so the recovery shows without a client.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import structlog

from proxyshim.addresses import Address
from proxyshim.limits import client_key
from proxyshim.throttle import Throttle

# Names fail for everybody once this many clients in a row had none.
CLIENTS_IN_A_ROW: Final = 5
# How long sessions wait meanwhile: a server that is back answers most questions within this.
SHORT_WAIT_S: Final = 0.5
SHORT_SHARE: Final = 0.1  # of the ordinary limit, if that is less
PROBE_EVERY_S: Final = 1.0


class Health:
    """Whether the last lookups failed, for different clients."""

    def __init__(self, probe: Callable[[Address], Awaitable[bool]]) -> None:
        """Begin healthy.  *probe* asks for an address again; True if a server answered."""
        self._probe = probe
        self._log: Any = structlog.get_logger()
        self._throttle = Throttle()
        self._failed: set[str] = set()
        self._reported = False
        self._last: Address | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_silent(self) -> bool:
        """True while no DNS server answers anybody."""
        return self._probing is not None

    def wait_s(self, limit_s: float) -> float:
        """Return how long a session may wait, if it may ordinarily wait *limit_s*."""
        if self.is_silent:
            return min(SHORT_WAIT_S, limit_s * SHORT_SHARE)
        return limit_s

    def note_answer(self) -> None:
        """Note that a DNS server has answered a question."""
        self._failed.clear()
        self._end_silence()
        if self._reported:
            self._reported = False
            self._log.info("names_recovered")

    def note_failure(self, address: Address, detail: str, *, silent: bool) -> None:
        """Note that a lookup failed; *silent* if no DNS server answered in time."""
        if len(self._failed) < CLIENTS_IN_A_ROW:
            self._failed.add(client_key(address))
        if silent:
            self._last = address
        else:
            self._end_silence()
        if len(self._failed) < CLIENTS_IN_A_ROW:
            return
        if not self._reported and self._throttle.admits("names", "", time.monotonic()):
            self._reported = True
            self._log.warning(
                "names_failing",
                clients=CLIENTS_IN_A_ROW,
                detail=detail,
                hint="the mail server sees clients without names; is the DNS server up, and is"
                " it the one in /etc/resolv.conf or dns.nameservers?",
            )
        if silent and self._probing is None:
            self._probing = asyncio.get_running_loop().create_task(self._keep_probing())

    async def _keep_probing(self) -> None:
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            assert self._last is not None
            if await self._probe(self._last):
                self.note_answer()  # which cancels this task
                return

    def _end_silence(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None

    async def close(self) -> None:
        """Stop probing."""
        probing, self._probing = self._probing, None
        if probing is not None:
            probing.cancel()
            with suppress(asyncio.CancelledError):
                await probing
