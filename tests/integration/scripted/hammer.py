"""A client that opens one connection after the other all the time, and counts results."""

import contextlib
import threading
import time
from typing import Self

from tests.integration.scripted.shim import STRANGER, connect
from tests.integration.scripted.wire import LIMIT_S


class Hammer:
    """Connects to an address again and again during the block."""

    def __init__(self, address: str) -> None:
        """Connect from an unlisted address."""
        self._address = address
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="hammer")
        self.greeted = 0
        self.slowest_s = 0.0
        self.refused = 0
        self.lost: list[str] = []  # connections that ended without a greeting

    def __enter__(self) -> Self:
        """Start connecting; wait for the first greetings."""
        self._thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *exc: object) -> None:
        """Finish the open connection, and stop."""
        self._stopping = True
        self._thread.join(2 * LIMIT_S)
        assert not self._thread.is_alive()

    def wait_for_more(self, number: int = 10) -> None:
        """Wait until *number* more connections were greeted."""
        with self._changed:
            wanted = self.greeted + number
            enough = self._changed.wait_for(lambda: self.greeted >= wanted, LIMIT_S)
        assert enough, f"not greeted: {self.refused} refused, {self.lost}"

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._connect_once()
            except ConnectionRefusedError:
                self.refused += 1
            except OSError as error:
                self.lost.append(repr(error))

    def _connect_once(self) -> None:
        began = time.monotonic()
        with connect(self._address, STRANGER) as client:
            line = client.line()
            if not line.startswith(b"220 "):
                self.lost.append(repr(line))
                return
            with self._changed:
                self.greeted += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self._changed.notify_all()
            with contextlib.suppress(OSError):  # the test may have killed the server
                client.send(b"QUIT\r\n")
                client.rest()
