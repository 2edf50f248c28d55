"""Dovecot's submission service, which passes mail on to a Postfix beside it."""

import smtplib

from tests.docs import marked
from tests.integration.lab.needs import find_program
from tests.integration.lab.postfix import Postfix, Smtpd
from tests.integration.lab.programs import Lines, Program
from tests.matrix.server import (
    FRIEND,
    FRIEND6,
    HOST_NAME,
    SOURCE,
    V1,
    V2,
    XCLIENT,
    Home,
    Kind,
    Server,
    expect,
    search_files,
)

COMMON = """\
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
default_internal_user = dovecot
default_login_user = dovenull
protocols = submission
hostname = {host}
auth_failure_delay = 0
login_log_format_elements = user=<%u> rip=%r rport=%{{rport}}
auth_mechanisms = plain
disable_plaintext_auth = no
ssl = yes
ssl_cert = <{certificate}
ssl_key = <{certificate}
mail_location = maildir:{directory}/mail
first_valid_uid = 1
submission_relay_host = 127.0.0.1
submission_relay_port = 2599
passdb {{
  driver = passwd-file
  args = {directory}/users
}}
userdb {{
  driver = static
  args = uid=mail gid=mail home={directory}/home
}}
service submission-login {{
  chroot =
}}
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  client_limit = 1000
}}
"""
PLAIN = """\
service submission-login {
  inet_listener submission {
    address = 127.0.0.1, ::1
    port = 2500
  }
}
"""
ANYBODY, HOME_ONLY, PASSWORD = "anybody@example.test", "home@example.test", "secret"
# The second user may log in from the friend's addresses only.
USERS = f"""\
{ANYBODY}:{{PLAIN}}{PASSWORD}::::::
{HOME_ONLY}:{{PLAIN}}{PASSWORD}::::::allow_nets={FRIEND},{FRIEND6}
"""


class DovecotServer(Server):
    """Three running Dovecots, and the relay host behind them."""

    def __init__(self, home: Home) -> None:
        """Start them."""
        find_program("/usr/lib/dovecot/submission")
        self._relay = Postfix(
            home.host, home.directory / "relay", {"in": Smtpd("127.0.0.1:2599")}
        )
        self._running: dict[str, Program] = {}
        services = {
            "plain": PLAIN,
            "xclient": marked("dovecot: XCLIENT"),
            "header": marked("dovecot: PROXY header").replace("10587", "10588"),
        }
        try:
            for name, service in services.items():
                self._running[name] = _start_one(home, name, service)
        except BaseException:
            self.stop()
            raise
        self.log = self._relay.lines
        self.backends = {
            XCLIENT: ["127.0.0.1:10587"],
            V1: ["127.0.0.1:10588"],
            V2: ["127.0.0.1:10588"],
            SOURCE: ["127.0.0.1:2500", "[::1]:2500"],
        }
        self.unprepared = ["127.0.0.1:2500"]

    def log_of(self, convey: str) -> Lines:
        """Return the log of the Dovecot for the conveyance."""
        name = {XCLIENT: "xclient", SOURCE: "plain"}.get(convey, "header")
        return self._running[name].lines

    def stop(self) -> None:
        """Stop them."""
        for program in self._running.values():
            program.stop()
        self._relay.stop()

    def find_message(self, message_id: str) -> str | None:
        """Look into the relay host's Maildir."""
        return search_files(self._relay.mail, message_id)

    def log_in(self, smtp: smtplib.SMTP) -> None:
        """Log in, because Dovecot takes mail from users only."""
        smtp.ehlo("client.example")
        code, _ = smtp.mail("someone@sender.example")
        assert code == 530
        smtp.login(ANYBODY, PASSWORD)

    def use_privilege(self, smtp: smtplib.SMTP, recipient: str) -> None:
        """Log in as the user who may do so from this address only, and relay."""
        smtp.login(HOME_ONLY, PASSWORD)
        expect(250, smtp.mail("someone@sender.example"))
        expect(250, smtp.rcpt(recipient))


def _start_one(home: Home, name: str, service: str) -> Program:
    directory = home.directory / name
    directory.mkdir()
    (directory / "users").write_text(USERS)
    config = directory / "dovecot.conf"
    common = COMMON.format(
        directory=directory, host=HOST_NAME, certificate=home.certificate
    )
    config.write_text(common + service)
    program = Program(
        f"dovecot in {directory}",
        home.host,
        [find_program("dovecot"), "-F", "-c", str(config)],
    )
    try:
        program.lines.wait_for("Dovecot .* starting up")
    except BaseException:
        program.stop()
        raise
    return program


HEADER_ADVICE = "with Dovecot, set haproxy = yes and haproxy_trusted_networks"
DOVECOT = Kind(
    "dovecot",
    [XCLIENT, V1, V2, SOURCE],
    DovecotServer,
    without_tls=[XCLIENT],  # the guard withholds it
    relays=False,
    in_log=r"rip={address}, rport={port}",
    in_log6=r"rip={address}, rport={port}",
    received=r"\[{address}\]",
    received6=r"\[(IPv6:)?{address}\]",
    settings={XCLIENT: {"allow_plaintext_auth": True}},
    advice={
        V1: HEADER_ADVICE,
        V2: HEADER_ADVICE,
        XCLIENT: HEADER_ADVICE,
    },
)
