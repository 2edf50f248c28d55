"""aiosmtpd, the Python library, in a small server of our own."""

import sys

from tests.integration.lab.programs import Program
from tests.matrix.server import (
    SOURCE,
    V1,
    V2,
    XCLIENT,
    Home,
    Kind,
    Server,
    search_files,
)

EXPECTS, PLAIN, PLAIN6 = "127.0.0.1:10725", "127.0.0.1:2500", "[::1]:2500"


class Aiosmtpd(Server):
    """The running server."""

    def __init__(self, home: Home) -> None:
        """Start it."""
        self._mail = home.directory / "mail"
        self._mail.mkdir()
        module = "tests.matrix.servers.aiosmtpd_main"
        argv = [sys.executable, "-m", module, str(self._mail), str(home.certificate)]
        self._program = Program("aiosmtpd", home.host, argv)
        self.log = self._program.lines
        try:
            self.log.wait_for("^ready$")
        except BaseException:
            self.stop()
            raise
        self.backends = {V1: [EXPECTS], V2: [EXPECTS], SOURCE: [PLAIN, PLAIN6]}
        self.unprepared = [PLAIN]

    def stop(self) -> None:
        """Stop it."""
        self._program.stop()

    def find_message(self, message_id: str) -> str | None:
        """Look into its folder."""
        return search_files(self._mail, message_id)


def start(home: Home) -> Server:
    """Start it."""
    return Aiosmtpd(home)


ADVICE = "with aiosmtpd, set proxy_protocol_timeout"
NOTE = "takes a PROXY header from 127.0.0.2 too"
AIOSMTPD = Kind(
    "aiosmtpd",
    [V1, V2, SOURCE],
    start,
    in_log=r"client=\('{address}', {port}",
    in_log6=r"client=\('{address}', {port}",
    advice={V1: ADVICE, V2: ADVICE, XCLIENT: ADVICE},
    notes={V1: NOTE, V2: NOTE},
)
