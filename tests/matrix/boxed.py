"""A mail server that runs in a box."""

from collections.abc import Callable, Sequence

from tests.integration.lab.programs import Lines, Program
from tests.matrix.box import Box, Users
from tests.matrix.packages import unpack_debian
from tests.matrix.server import Home, Server, search_files


class Boxed(Server):
    """A mail server in a box, with all its programs."""

    def __init__(self, home: Home, packages: Sequence[str], users: Users) -> None:
        """Unpack *packages*; nothing is started yet."""
        unpacked = unpack_debian(*packages)
        self.box = Box(home.host, home.directory / "root", unpacked, users)
        self.log: Lines = self.box.log
        self._programs: list[Program] = []
        self.box.write(
            "/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"
        )
        self.box.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        self.box.write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
        self.box.write("/etc/mail.crt", home.certificate.read_text())
        self.box.write("/etc/mail.key", home.certificate.read_text(), "600")

    def start(self, name: str, *argv: str) -> Program:
        """Start a program of the server."""
        program = self.box.start(name, *argv)
        self._programs.append(program)
        return program

    def stop(self) -> None:
        """End all programs, and remove the box."""
        for program in reversed(self._programs):
            program.stop()
        self.box.close()

    def find_message(self, message_id: str) -> str | None:
        """Look into the folder that box and tests share."""
        return search_files(self.box.shared, message_id)


def start_or_stop(server: Boxed, start: Callable[[], None]) -> None:
    """Start the server's programs; if that fails, stop what has started."""
    try:
        start()
    except BaseException as problem:
        problem.add_note("\n".join(server.log.since()[-20:]))
        server.stop()
        raise
