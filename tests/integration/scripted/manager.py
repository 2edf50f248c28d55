"""A service manager played by the test: it receives what sd_notify(3) sends."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.integration.scripted.wire import LIMIT_S

Assignments = Mapping[str, str]


class Manager:
    """The socket that NOTIFY_SOCKET names, and the messages received so far."""

    def __init__(self, name: str) -> None:
        """Bind to a path, or to an abstract name that begins with "@"."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + name[1:] if name.startswith("@") else name)
        self.environment = {"NOTIFY_SOCKET": name}
        self.messages: list[Assignments] = []

    def wait(
        self, fits: Callable[[Assignments], bool], within_s: float = LIMIT_S
    ) -> Assignments:
        """Return the next message that fits; skip those before it."""
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            self._sock.settimeout(left)
            try:
                octets = self._sock.recv(65_536)
            except TimeoutError:
                break
            lines = octets.decode().split("\n")
            message = dict(line.split("=", 1) for line in lines)
            self.messages.append(message)
            if fits(message):
                return message
        raise AssertionError(f"no such message within {within_s} s: {self.messages}")

    def wait_for(self, key: str, value: str | None = None) -> Assignments:
        """Return the next message with that key, and with *value* if given."""
        return self.wait(lambda m: key in m and value in (None, m[key]))

    def lacks(self, key: str, *, for_s: float) -> bool:
        """Return True if no message with that key comes within that time."""
        try:
            self.wait(lambda m: key in m, for_s)
        except AssertionError:
            return True
        return False

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


@contextmanager
def listening_manager(directory: Path) -> Iterator[Manager]:
    """Run a manager with its socket in *directory* during the block."""
    manager = Manager(str(directory / "notify"))
    try:
        yield manager
    finally:
        manager.close()
