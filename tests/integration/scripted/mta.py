"""A scripted backend: the test accepts its connections and sends every reply."""

import socket
from pathlib import Path

from tests.integration.scripted.wire import LIMIT_S, Wire

ATTRIBUTES = b"NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT REVERSE_NAME"
OFFER = b"250-mx.test\r\n250-PIPELINING\r\n250 XCLIENT " + ATTRIBUTES + b"\r\n"
# The reply to the client's own EHLO, once the XCLIENT right is gone.
EXTENSIONS = b"250-mx.test\r\n250-PIPELINING\r\n250 SIZE 1000000\r\n"
FIRST_GREETING = b"220 mx.test for the shim alone\r\n"
GREETING = b"220 mx.test ESMTP at your service\r\n"
# The shim's ehlo_name in all these tests.
EHLO = b"EHLO shim.test\r\n"


class Mta(Wire):
    """The backend's end of one connection from the shim."""

    def greet(self, offer: bytes = OFFER) -> bytes:
        """Greet the shim and answer its EHLO; return the command that follows."""
        self.send(FIRST_GREETING)
        self.expect(EHLO)
        self.send(offer)
        return self.line()

    def introduce(self, offer: bytes = OFFER, greeting: bytes = GREETING) -> bytes:
        """Accept the XCLIENT, and greet the client; return the XCLIENT line."""
        xclient = self.greet(offer)
        self.send(greeting)
        return xclient


class Backend:
    """The listening socket of the backend."""

    def __init__(
        self, path: Path | None = None, host: str = "127.0.0.1", backlog: int = 64
    ) -> None:
        """Listen on a port of *host*, or on the unix socket *path*."""
        if path is not None:
            self._sock = socket.socket(socket.AF_UNIX)
            self._sock.bind(str(path))
            self.name = f"unix:{path}"
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._sock = socket.socket(family)
            self._sock.bind((host, 0))
            shown = f"[{host}]" if ":" in host else host
            self.name = f"{shown}:{self._sock.getsockname()[1]}"
        self._sock.listen(backlog)

    @property
    def port(self) -> int:
        """Return the port that it listens on."""
        return int(self._sock.getsockname()[1])

    def accept(self) -> Mta:
        """Accept the next connection."""
        self._sock.settimeout(LIMIT_S)
        return Mta(self._sock.accept()[0])

    def was_left_alone(self) -> bool:
        """Return True if no connection waits to be accepted."""
        self._sock.settimeout(0)
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return True
        sock.close()
        return False

    def close(self) -> None:
        """Stop listening."""
        self._sock.close()
