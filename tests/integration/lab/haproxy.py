"""A real HAProxy: one process with any number of listen sections in TCP mode."""

import csv
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from tests.integration.lab.needs import find_program
from tests.integration.lab.netns import Host
from tests.integration.lab.programs import DEADLINE_S, Program

GLOBAL = """\
global
    stats socket {stats} mode 600 level admin
    log stdout format raw daemon debug
    maxconn 500
    # With one thread, "show stat" cannot be older than the log.
    nbthread 1
defaults
    mode tcp
    log global
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout check 5s
"""

# Every TLV that HAProxy can send.  For a plain client, ssl and cert-cn say "no TLS".
ALL_V2_OPTIONS = "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority,ssl,cert-cn"
UNIQUE_ID = r"unique-id-format %{+X}o\ %ci:%cp_%fi:%fp_%Ts_%rt:%pid"


@dataclass(frozen=True, slots=True)
class Listen:
    """A listen section with the one server ``mx``."""

    name: str
    bind: str
    server: str
    options: str = ""
    lines: Sequence[str] = ()

    def text(self) -> str:
        """Return the section as haproxy.cfg has it."""
        body = [
            f"bind {self.bind}",
            *self.lines,
            f"server mx {self.server} {self.options}",
        ]
        return f"listen {self.name}\n" + "".join(f"    {line}\n" for line in body)


class HAProxy(Program):
    """A running HAProxy.  Its log (a server goes up or down, ...) is in ``lines``."""

    def __init__(self, host: Host, directory: Path, listens: Sequence[Listen]) -> None:
        """Write haproxy.cfg below *directory* and start it on *host*."""
        directory.mkdir(parents=True)
        self._stats = directory / "stats"
        config = directory / "haproxy.cfg"
        sections = "\n".join(listen.text() for listen in listens)
        config.write_text(GLOBAL.format(stats=self._stats) + "\n" + sections)
        # Only in its mode for systemd does HAProxy report when it is ready.
        argv = [find_program("haproxy"), "-Ws", "-f", str(config)]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.settimeout(DEADLINE_S)
            notices.bind(str(directory / "notify"))
            environment = {"NOTIFY_SOCKET": str(directory / "notify")}
            name = f"haproxy in {directory}"
            super().__init__(name, host, argv, environment=environment)
            try:
                while not notices.recv(4096).startswith(b"READY=1"):
                    pass
            except BaseException as problem:
                self.stop()
                problem.add_note("\n".join(self.lines.since()))
                raise

    def server_state(self, listen: str, server: str = "mx") -> dict[str, str]:
        """Return the row of "show stat" for that section's *server*."""
        for row in csv.DictReader(StringIO(self._ask("show stat").lstrip("# "))):
            if row["pxname"] == listen and row["svname"] == server:
                return row
        raise AssertionError(f"haproxy has no server {listen}/{server}")

    def tell(self, command: str) -> None:
        """Give an order on the socket for administrators."""
        answer = self._ask(command).strip()
        assert not answer, answer

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self._stats))
            sock.sendall(command.encode() + b"\n")
            with sock.makefile("rb") as answer:
                return answer.read().decode()
