"""Sendmail, which takes the client's own address only."""

from tests.docs import marked
from tests.matrix.boxed import Boxed, start_or_stop
from tests.matrix.server import (
    DOMAIN,
    HOST_NAME,
    SOURCE,
    TRUSTED,
    Home,
    Kind,
    all_groups,
)

CONFIG = """\
include(`/usr/share/sendmail/cf/m4/cf.m4')dnl
OSTYPE(`debian')dnl
DOMAIN(`debian-mta')dnl
define(`confDOMAIN_NAME', `{host}')dnl
define(`confDELIVERY_MODE', `interactive')dnl
define(`confPRIVACY_FLAGS', `noetrn')dnl
define(`confCACERT_PATH', `/etc/ssl/certs')dnl
define(`confCACERT', `/etc/mail.crt')dnl
define(`confSERVER_CERT', `/etc/mail.crt')dnl
define(`confSERVER_KEY', `/etc/mail.key')dnl
define(`confDONT_BLAME_SENDMAIL', `GroupReadableKeyFile')dnl
define(`confTO_IDENT', `0')dnl
undefine(`confHOST_STATUS_DIRECTORY')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unresolvable_domains')dnl
FEATURE(`access_db')dnl
FEATURE(`no_default_msa')dnl
{service}
MAILER(`local')dnl
MAILER(`smtp')dnl
LOCAL_CONFIG
Cw{domain}
"""


class Sendmail(Boxed):
    """The running Sendmail."""

    def __init__(self, home: Home) -> None:
        """Start it."""
        users = {"smmta": 956, "smmsp": 957, "user": 958}
        super().__init__(home, ["sendmail-bin", "sendmail-cf", "m4"], users)
        self.backends = {SOURCE: ["127.0.0.1:10725", "[::1]:10725"]}
        self.unprepared = ["127.0.0.1:10725"]
        start_or_stop(self, self._start)

    def _start(self) -> None:
        script = """
        install -d -m 700 /var/spool/mqueue
        install -d -m 777 /shared/mail
        install -d /run/sendmail/mta
        printf '#!/bin/sh\\nexec cat >"$(mktemp /shared/mail/XXXXXXXX)"\\n' >/usr/local/bin/keep
        chmod 755 /usr/local/bin/keep
        cd /etc/mail
        printf 'hosts files\\n' >service.switch
        echo 'user: "|/usr/local/bin/keep"' >aliases
        m4 sendmail.mc >sendmail.cf
        makemap hash access <access
        /usr/libexec/sendmail/newaliases
        """
        config = CONFIG.format(
            host=HOST_NAME, domain=DOMAIN, service=marked("sendmail: sendmail.mc")
        )
        self.box.write("/etc/mail/sendmail.mc", config)
        lines = [_access(address) for address in TRUSTED]
        self.box.write("/etc/mail/access", "".join(lines))
        self.box.run("sh", "-ec", script)
        self.start("sendmail", "/usr/libexec/sendmail/sendmail", "-bD", "-q1h")
        self.log.wait_for("starting daemon")


def _access(address: str) -> str:
    text = f"IPv6:{all_groups(address)}" if ":" in address else address
    return f"Connect:{text}\tRELAY\n"


SENDMAIL = Kind(
    "sendmail",
    [SOURCE],
    Sendmail,
    in_log=r"relay=.*\[{address}\]",
    in_log6=r"relay=.*\[IPv6:{all_groups}\]",
    received=r"\[{address}\]",
    received6=r"\[IPv6:{all_groups}\]",
    advice={"xclient": 'set convey = "source-address"'},
)
