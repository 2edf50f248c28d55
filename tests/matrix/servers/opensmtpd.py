"""OpenSMTPD: a service that expects a PROXY header of version 2, and one that does not."""

from tests.docs import marked
from tests.matrix.boxed import Boxed, start_or_stop
from tests.matrix.server import (
    DOMAIN,
    HOST_NAME,
    SOURCE,
    TRUSTED,
    V2,
    Home,
    Kind,
)

CONFIG = """\
pki {host} cert "/etc/mail.crt"
pki {host} key "/etc/mail.key"
table friends {{ {friends} }}
listen on lo port 2500 hostname {host} tls pki {host}
{proxied} hostname {host} tls pki {host}
action "store" maildir "/shared/mail" user receiver
action "drop" relay host smtp://127.0.0.1:9
match from any for domain "{domain}" action "store"
match from src <friends> for any action "drop"
"""
# OpenSMTPD looks up its recipients among the users of the system.
USERS = {"opensmtpd": 951, "opensmtpq": 952, "receiver": 953, "user": 954}


class OpenSMTPD(Boxed):
    """The running OpenSMTPD."""

    def __init__(self, home: Home) -> None:
        """Start it."""
        super().__init__(home, ["opensmtpd"], USERS)
        self.backends = {
            V2: ["127.0.0.1:10725"],
            SOURCE: ["127.0.0.1:2500", "[::1]:2500"],
        }
        self.unprepared = ["127.0.0.1:2500"]
        start_or_stop(self, self._start)

    def _start(self) -> None:
        script = """
        install -d -o receiver -g receiver /shared/mail
        install -d -m 711 /var/spool/smtpd /var/lib/opensmtpd/empty
        """
        self.box.run("sh", "-ec", script)
        config = CONFIG.format(
            host=HOST_NAME,
            domain=DOMAIN,
            friends=", ".join(f'"{address}"' for address in TRUSTED),
            proxied=marked("opensmtpd: PROXY header").strip(),
        )
        self.box.write("/etc/smtpd.conf", config, "600")
        program = self.start(
            "opensmtpd", "/usr/sbin/smtpd", "-dv", "-f", "/etc/smtpd.conf"
        )
        self.log = program.lines
        self.log.wait_for("server ready|OpenSMTPD .* starting")


OPENSMTPD = Kind(
    "opensmtpd",
    [V2, SOURCE],
    OpenSMTPD,
    without_tls=[
        V2,
        SOURCE,
    ],  # in Debian 12, STARTTLS fails here, without proxyshim too
    in_log=r"smtp connected address={address}",
    in_log6=r"smtp connected address=\[?(IPv6:)?{address}",
    received=r"\[{address}\]",
    received6=r"\[(IPv6:)?{address}\]",
    advice={
        V2: 'with OpenSMTPD, add proxy-v2 to the line "listen on"',
        "xclient": 'with OpenSMTPD, add proxy-v2 to the line "listen on"',
    },
)
