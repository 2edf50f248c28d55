"""aiosmtpd, the Python library, in a small server of our own."""

import sys

from tests.matrix.one_program import OneProgram
from tests.matrix.server import SOURCE, V1, V2, XCLIENT, Home, Kind

EXPECTS, PLAIN, PLAIN6 = "127.0.0.1:10725", "127.0.0.1:2500", "[::1]:2500"


class Aiosmtpd(OneProgram):
    """The running server."""

    def __init__(self, home: Home) -> None:
        """Start it."""
        argv = [sys.executable, "-m", "tests.matrix.servers.aiosmtpd_main"]
        super().__init__(home, argv, {})
        self.backends = {V1: [EXPECTS], V2: [EXPECTS], SOURCE: [PLAIN, PLAIN6]}
        self.unprepared = [PLAIN]


ADVICE = "with aiosmtpd, set proxy_protocol_timeout"
NOTE = "takes a PROXY header from 127.0.0.2 too"
AIOSMTPD = Kind(
    "aiosmtpd",
    [V1, V2, SOURCE],
    Aiosmtpd,
    in_log=r"client=\('{address}', {port}",
    in_log6=r"client=\('{address}', {port}",
    advice={V1: ADVICE, V2: ADVICE, XCLIENT: ADVICE},
    notes={V1: NOTE, V2: NOTE},
)
