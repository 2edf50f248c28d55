"""smtp-server, nodemailer's library for Node.js, in a small server of our own."""

import shutil
from pathlib import Path

from tests.docs import marked
from tests.matrix.one_program import OneProgram
from tests.matrix.packages import install_npm
from tests.matrix.server import (
    DOMAIN,
    HOST_NAME,
    SOURCE,
    TRUSTED,
    V1,
    XCLIENT,
    Home,
    Kind,
)

SCRIPT = Path(__file__).with_suffix(".cjs")
PREPARED, EXPECTS = "127.0.0.1:10725", "127.0.0.1:10726"
PLAIN, PLAIN6 = "127.0.0.1:2500", "[::1]:2500"


class SmtpServer(OneProgram):
    """The running server."""

    def __init__(self, home: Home) -> None:
        """Start it."""
        modules = install_npm("smtp-server@3.21.6") / "node_modules"
        node = shutil.which("node")
        assert node is not None, "needs node (Debian package nodejs)"
        environment = {
            "NODE_PATH": str(modules),
            "HOST_NAME": HOST_NAME,
            "DOMAIN": DOMAIN,
            "TRUSTED": " ".join(TRUSTED),
            "XCLIENT": marked("smtp-server: XCLIENT"),
            "PROXY": marked("smtp-server: PROXY header"),
        }
        super().__init__(home, [node, str(SCRIPT)], environment)
        self.backends = {XCLIENT: [PREPARED], V1: [EXPECTS], SOURCE: [PLAIN, PLAIN6]}
        self.unprepared = [PLAIN]


SMTP_SERVER = Kind(
    "smtp-server",
    [XCLIENT, V1, SOURCE],
    SmtpServer,
    in_log=r"client={address} {port}",
    in_log6=r"client={address} {port}",
    advice={
        V1: "set up a service of the mail server that expects it",
        XCLIENT: 'with another server, set convey = "proxy-v2"',
    },
)
