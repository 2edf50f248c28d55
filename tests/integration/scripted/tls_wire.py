"""The test's end of a connection, inside TLS."""

import contextlib
import ssl
from pathlib import Path
from typing import Any

from tests.integration.scripted.wire import LIMIT_S, Wire


def client_context(ca: Path, **changes: Any) -> ssl.SSLContext:
    """Return a context that trusts *ca*; *changes* are attributes of it."""
    context = ssl.create_default_context(cafile=str(ca))
    for name, value in changes.items():
        setattr(context, name, value)
    return context


class TlsWire(Wire):
    """A connection inside TLS.  An end without close_notify is an error."""

    def __init__(
        self, plain: Wire, context: ssl.SSLContext, server_name: str | None
    ) -> None:
        """Shake hands as the client.  Raises ssl.SSLError."""
        self.secure = context.wrap_socket(
            plain.sock,
            server_hostname=server_name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        plain.sock = self.secure  # who closes that closes this
        self.secure.do_handshake()
        super().__init__(self.secure)

    def finish(self) -> None:
        """Send close_notify; the other direction stays open."""
        self.sock.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.secure.unwrap()
        self.sock.settimeout(LIMIT_S)

    def is_silent(self, for_s: float) -> bool:
        """Return True if nothing comes within that time; what TLS itself says does not count."""
        self.sock.settimeout(for_s)
        try:
            self.received += self.sock.recv(1)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(LIMIT_S)
        return False
