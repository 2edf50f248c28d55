"""A DNS server in a thread of its own, and shims that ask it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.dns_responder import Responder, responder
from tests.integration.scripted.wire import LIMIT_S

T = TypeVar("T")


class Dns:
    """The DNS server, in a thread with its own event loop."""

    def __init__(self) -> None:
        self.served: Responder
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dns")
        self._thread.start()
        assert self._started.wait(LIMIT_S)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with responder() as self.served:
            self._started.set()
            await self._stop.wait()

    def call(self, work: Callable[[], T]) -> T:
        """Call *work* in the server's loop, where its data is."""

        async def do() -> T:
            return work()

        return self.wait(do())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* in the server's loop, and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def add_confirmed_name(self, address: str, name: str) -> None:
        """Give *address* this name, in both directions."""
        self.served.add_ptr(address, name)
        self.served.add_host(name, address)

    def asked(self) -> list[tuple[str, str]]:
        """Return the questions that came."""
        return self.call(lambda: list(self.served.asked))

    def close(self) -> None:
        """Stop the server."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LIMIT_S)
