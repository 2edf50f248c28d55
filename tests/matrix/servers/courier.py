"""Courier, which takes the client's own address only."""

import ipaddress

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

SETTINGS = """\
BOFHCHECKDNS=0
TLS_CERTFILE=/etc/courier/esmtpd.pem
ESMTPAUTH=
"""
# As Courier's own script, without going into the background.
RUN = """
set -a
. /etc/courier/esmtpd
. /etc/courier/lab
exec /usr/sbin/couriertcpd -stderrlogger=/usr/sbin/courierlogger -noidentlookup \
    -nodnslookup -user=courier -group=courier -access=/etc/courier/smtpaccess.dat \
    -maxprocs=40 -maxperc=40 -maxperip=40 \
    "$PORT" /usr/sbin/courieresmtpd
"""


class Courier(Boxed):
    """The running Courier.  Mail stays in its queue, where we look at it."""

    def __init__(self, home: Home) -> None:
        """Start it."""
        super().__init__(home, ["courier-mta"], {"courier": 961})
        self.backends = {SOURCE: ["127.0.0.1:10725", "[::1]:10725"]}
        self.unprepared = ["127.0.0.1:10725"]
        start_or_stop(self, self._start)

    def _start(self) -> None:
        for name, text in {
            "lab": SETTINGS + marked("courier: esmtpd"),
            "me": HOST_NAME,
            "defaultdomain": DOMAIN,
            "locals": "localhost",
            "esmtpacceptmailfor": DOMAIN,
            "smtpaccess/default": "".join(_access(address) for address in TRUSTED),
        }.items():
            self.box.write(f"/etc/courier/{name}", f"{text}\n")
        script = """
        cat /etc/mail.crt >/etc/courier/esmtpd.pem
        rm -rf /shared/mail
        install -d -o courier -g courier /shared/mail /run/courier
        for each in tmp msgs msgq filters allfilters track; do
            mkdir -p /var/lib/courier/$each
        done
        chown -R courier:courier /var/lib/courier /etc/courier
        mount --bind /shared/mail /var/lib/courier/tmp
        ln -sf /usr/lib/courier/makedat /usr/bin/makedat
        /usr/sbin/makesmtpaccess
        /usr/sbin/makeacceptmailfor
        /usr/sbin/makealiases || true
        """
        self.box.run("sh", "-ec", script)
        self.start("courier", "/bin/sh", "-ec", RUN)


def _access(address: str) -> str:
    text = address
    if ":" in address:
        text = f":{ipaddress.ip_address(address).exploded}"
    return f"{text}\tallow,RELAYCLIENT\n"


COURIER = Kind(
    "courier",
    [SOURCE],
    Courier,
    in_log=r"{address}",
    in_log6=r"{address}",
    received=r"{address}",
    received6=r"{address}",
    advice={XCLIENT: 'set convey = "source-address"'},
)
