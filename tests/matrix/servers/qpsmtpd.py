"""qpsmtpd, the Perl server, which takes the client's own address only."""

from ipaddress import ip_address

from tests.docs import marked
from tests.matrix.boxed import Boxed, start_or_stop
from tests.matrix.server import (
    DOMAIN,
    HOST_NAME,
    SOURCE,
    TRUSTED,
    XCLIENT,
    Home,
    Kind,
)

FILES = {
    "me": HOST_NAME,
    "loglevel": "7",
    "logging": "logging/warn 7",
    "rcpthosts": DOMAIN,
    # It compares IPv6 addresses with all their digits.
    "relayclients": "\n".join(ip_address(one).exploded for one in TRUSTED),
    "plugin_dirs": "/usr/share/qpsmtpd/plugins",
    "plugins": "tls /etc/mail.crt /etc/mail.key /etc/mail.crt\n"
    "relay\nrcpt_ok\nqueue/maildir /shared/mail",
    "spool_dir": "/shared/spool",
}


class Qpsmtpd(Boxed):
    """The running qpsmtpd."""

    def __init__(self, home: Home) -> None:
        """Start it."""
        packages = ["qpsmtpd", "libio-socket-ssl-perl", "libnet-ip-perl"]
        super().__init__(home, packages, {"qpsmtpd": 960})
        self.backends = {SOURCE: ["127.0.0.1:10725", "[::1]:10725"]}
        self.unprepared = ["127.0.0.1:10725"]
        start_or_stop(self, self._start)

    def _start(self) -> None:
        for name, text in FILES.items():
            self.box.write(f"/etc/qpsmtpd/{name}", f"{text}\n")
        script = """
        chown qpsmtpd /etc/mail.key
        install -d -m 700 -o qpsmtpd /shared/mail /shared/spool
        """
        self.box.run("sh", "-ec", script)
        program = self.start(
            "qpsmtpd",
            "/usr/bin/env",
            "QPSMTPD_CONFIG=/etc/qpsmtpd",
            *marked("qpsmtpd: command").split(),
            *("-u", "qpsmtpd", "-c", "100", "-m", "100", "-H", "-p", "10725"),
        )
        self.log = program.lines
        self.log.wait_for("Running as user|Listening on")


QPSMTPD = Kind(
    "qpsmtpd",
    [SOURCE],
    Qpsmtpd,
    in_log=r"{address}",
    in_log6=r"{address}",
    received=r"\({address}\)",
    received6=r"\({address}\)",
    advice={XCLIENT: 'set convey = "source-address"'},
)
