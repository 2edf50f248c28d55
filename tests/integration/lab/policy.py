"""A policy server for Postfix: it records every request, and decides nothing."""

import contextlib
import socket
import threading
from typing import Final

from tests.integration.lab.netns import Host

Request = dict[str, str]
BACKLOG: Final = 50


class Policy:
    """Answers DUNNO on a port of the host's loopback (SMTPD_POLICY_README)."""

    def __init__(self, host: Host, port: int) -> None:
        """Start answering, with a thread per connection."""
        self.requests: list[Request] = []
        self._open: list[socket.socket] = []
        self._listening = host.open_socket(socket.AF_INET)
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listening.bind(("127.0.0.1", port))
        self._listening.listen(BACKLOG)
        self._start(self._accept)

    def close(self) -> None:
        """Stop answering."""
        for sock in [self._listening, *self._open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _start(self, work: object, *arguments: object) -> None:
        assert callable(work)
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(sock)
            self._start(self._answer, sock)

    def _answer(self, sock: socket.socket) -> None:
        request: Request = {}
        try:
            with sock.makefile("rw", encoding="utf-8", newline="\n") as stream:
                for line in stream:
                    name, equals, value = line.rstrip("\n").partition("=")
                    if equals:
                        request[name] = value
                        continue
                    self.requests.append(request)
                    request = {}
                    stream.write("action=DUNNO\n\n")
                    stream.flush()
        except (OSError, ValueError):
            return
