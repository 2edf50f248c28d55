"""The test's end of a connection: it sends and expects bytes, with time limits."""

import contextlib
import re
import select
import socket
import struct
from typing import Self

LIMIT_S = 10.0  # for anything that takes milliseconds on an idle machine

_LAST_LINE = re.compile(rb"[0-9]{3}( |\r?\n)")


class Wire:
    """A connected socket on which every wait fails after LIMIT_S."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected socket."""
        sock.settimeout(LIMIT_S)
        self.port = self.peer_port = 0
        if sock.family != socket.AF_UNIX:
            self.port = int(sock.getsockname()[1])
            with contextlib.suppress(OSError):  # the connection may be reset already
                self.peer_port = int(sock.getpeername()[1])
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.received = bytearray()  # everything that ever came
        self._read = 0  # how much of it the test has read

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    # Sending.

    def send(self, octets: bytes) -> None:
        """Send exactly these bytes."""
        self.sock.sendall(octets)

    def send_each_octet(self, octets: bytes) -> None:
        """Send each byte in its own segment."""
        for octet in octets:
            self.sock.sendall(bytes([octet]))

    def finish(self) -> None:
        """Send an end of file; the other direction stays open."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close.  If the other end sends more, it gets a reset."""
        self.sock.close()

    def reset(self) -> None:
        """Close with a reset instead of an end of file."""
        self.sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.sock.close()

    # Receiving.

    def line(self) -> bytes:
        """Read up to the next LF, or to the end of file."""
        while (end := self.received.find(b"\n", self._read) + 1) == 0:
            if not self._receive():
                end = len(self.received)
                break
        return self._take(end)

    def reply(self) -> bytes:
        """Read one SMTP reply with all its lines; empty at the end of file."""
        lines = []
        while line := self.line():
            lines.append(line)
            if _LAST_LINE.match(line):
                break
        return b"".join(lines)

    def expect(self, octets: bytes) -> None:
        """Read exactly these bytes, however they are fragmented."""
        end = self._read + len(octets)
        while len(self.received) < end and self._receive():
            # Stop at the first wrong byte instead of waiting for the time limit.
            have = len(self.received) - self._read
            if self.received[self._read :] != octets[:have]:
                break
        came = self._take(min(end, len(self.received)))
        assert came == octets, f"expected {octets!r}, got {came!r}"

    def take(self, count: int) -> bytes:
        """Read this many bytes, or up to the end of file."""
        end = self._read + count
        while len(self.received) < end and self._receive():
            pass
        return self._take(min(end, len(self.received)))

    def rest(self) -> bytes:
        """Read up to the end of file.  Raises ConnectionResetError on a reset."""
        while self._receive():
            pass
        return self._take(len(self.received))

    def last_words(self) -> bytes:
        """Read up to the end of file, and close, as clients do."""
        rest = self.rest()
        self.close()
        return rest

    def end(self) -> bytes:
        """Read up to the end of file or a reset, and close."""
        with contextlib.suppress(ConnectionError):
            while self._receive():
                pass
        self.close()
        return self._take(len(self.received))

    def is_silent(self, for_s: float) -> bool:
        """Return True if nothing comes within that time, not even an end of file."""
        assert self._read == len(self.received), "there is unread input"
        return not select.select([self.sock], [], [], for_s)[0]

    def _receive(self) -> bool:
        data = self.sock.recv(262_144)
        self.received += data
        return bool(data)

    def _take(self, end: int) -> bytes:
        start, self._read = self._read, end
        return bytes(self.received[start:end])
