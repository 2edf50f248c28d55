"""SMTP clients that choose their own address: smtplib, and one that shows every byte."""

import contextlib
import re
import smtplib
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Self

from tests.integration.lab.netns import Host


@dataclass(frozen=True, slots=True)
class Reply:
    """An SMTP reply as received."""

    octets: bytes

    @property
    def code(self) -> int:
        """Return the code; 0 if the server closed instead of replying."""
        return int(self.octets[:3] or b"0")

    @property
    def lines(self) -> list[str]:
        """Return the text of each line, without the codes."""
        return [line[4:] for line in str(self).split("\r\n")]

    def __str__(self) -> str:
        """Return the text as sent, without the last line end."""
        return self.octets.decode("ascii", "backslashreplace").removesuffix("\r\n")


class Conversation:
    """A client that sends exactly what the test says, and reads whole replies."""

    def __init__(self, sock: socket.socket) -> None:
        """Use *sock*, whose time limit applies to every step."""
        self.sock = sock
        self._input = sock.makefile("rb")

    @classmethod
    def open(cls, host: Host, to: tuple[str, int], source: str) -> Self:
        """Connect from *source* on *host*."""
        return cls(host.connect(to, source))

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close both the file and the socket."""
        self.close()

    def close(self) -> None:
        """Close without a QUIT."""
        self._input.close()
        self.sock.close()

    @property
    def port(self) -> int:
        """Return our own port."""
        return int(self.sock.getsockname()[1])

    @property
    def name(self) -> str:
        """Return our own address and port, as proxyshim logs them."""
        address = self.sock.getsockname()[0]
        return (
            f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"
        )

    @property
    def postfix_name(self) -> str:
        """Return our own address and port, as Postfix logs them."""
        return f"unknown[{self.sock.getsockname()[0]}]:{self.port}"

    def send(self, octets: bytes) -> None:
        """Send exactly these bytes."""
        self.sock.sendall(octets)

    def send_each_octet(self, octets: bytes) -> None:
        """Send each byte in its own segment."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in octets:
            self.sock.sendall(bytes([octet]))

    def reset_when_closed(self) -> None:
        """Make the coming close send a reset."""
        linger = struct.pack("ii", 1, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def finish(self) -> None:
        """Send an end of file; replies can still be read."""
        with contextlib.suppress(OSError):  # the other end may have closed already
            self.sock.shutdown(socket.SHUT_WR)

    def reply(self) -> Reply:
        """Read one reply with all its lines; it is empty at the end of file."""
        lines = []
        while line := self._input.readline():
            lines.append(line)
            if re.match(rb"[0-9]{3}( |\r?\n)", line):
                break
        return Reply(b"".join(lines))

    def ask(self, command: str | bytes) -> Reply:
        """Send a line and read the reply to it."""
        octets = command.encode() if isinstance(command, str) else command
        self.send(octets + b"\r\n")
        return self.reply()

    def rest(self) -> bytes:
        """Read until the server closes.  A reset counts as a close."""
        octets = bytearray()
        try:
            while chunk := self._input.read1():
                octets += chunk
        except ConnectionResetError:
            pass
        return bytes(octets)

    def start_tls(
        self, context: ssl.SSLContext | None = None, name: str | None = None
    ) -> "Conversation":
        """Return a conversation on the same connection, which is inside TLS from now on."""
        self._input.close()
        context = context or any_certificate()
        return Conversation(context.wrap_socket(self.sock, server_hostname=name))


class LabSmtp(smtplib.SMTP):
    """An smtplib client that connects from a host of the lab."""

    def __init__(self, host: Host, to: tuple[str, int], source: str) -> None:
        """Connect from *source* and read the greeting."""
        self._lab_host = host
        self._lab_source = source
        super().__init__(to[0], to[1], "client.example", timeout=10)

    @property
    def local_port(self) -> int:
        """Return our own port."""
        assert self.sock is not None
        return int(self.sock.getsockname()[1])

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        address = (host, port)
        return self._lab_host.connect(address, self._lab_source, within_s=timeout or 10)


def any_certificate() -> ssl.SSLContext:
    """Return a client context that accepts any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
