"""A guard and a model backend, and the network between them and the client.

The network decides the timing: what the guard forwards reaches the backend at once, but the test
decides when the backend's replies reach the guard, in whole or in part.
"""

from proxyshim.smtp.guard import Guard, Rules
from tests import feeding
from tests.property.guard_models import Backend, Kind


class Network:
    """One session."""

    def __init__(self, kind: Kind, rules: Rules | None = None) -> None:
        """Begin after the greeting."""
        self.guard = Guard(rules or Rules())
        self.backend = Backend(kind)
        self.at_client = b""
        self.at_backend = b""
        self._partial = b""  # the rest of a reply that was delivered in part

    def send(self, octets: bytes) -> None:
        """Send *octets* from the client."""
        feeding.from_client(self.guard, octets)
        self._settle()

    def deliver(self, count: int = 1) -> None:
        """Deliver *count* replies; the rest of one that was delivered in part counts as one."""
        octets, self._partial = self._partial, b""
        for _ in range(count - bool(octets)):
            if not self.backend.replies:
                break
            octets += self.backend.replies.pop(0)
        self._pass(octets)

    def deliver_octets(self, count: int) -> None:
        """Deliver *count* bytes of replies."""
        while len(self._partial) < count and self.backend.replies:
            self._partial += self.backend.replies.pop(0)
        octets, self._partial = self._partial[:count], self._partial[count:]
        self._pass(octets)

    def deliver_all(self) -> None:
        """Deliver replies until no more come, not even after a moment."""
        while True:
            while self._partial or self.backend.replies:
                self.deliver(len(self.backend.replies) + 1)
            self.guard.from_backend(b"")
            self._settle()
            if not self.backend.replies:
                break

    def _pass(self, octets: bytes) -> None:
        if octets:
            feeding.from_backend(self.guard, octets)
            self._settle()

    def _settle(self) -> None:
        guard = self.guard
        to_backend = b"".join(guard.to_backend)
        self.at_backend += to_backend
        self.at_client += b"".join(guard.to_client)
        guard.to_backend.clear()
        guard.to_client.clear()
        if to_backend and not self.backend.closed:
            self.backend.feed(to_backend)
