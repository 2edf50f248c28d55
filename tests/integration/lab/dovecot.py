"""Dovecot's submission service: a backend that keeps the XCLIENT right after its use.

It passes mail on to a relay host, here the lab's Postfix on the same host.
"""

from pathlib import Path

from tests.integration.lab.needs import find_program
from tests.integration.lab.netns import Host
from tests.integration.lab.programs import Program

USER, PASSWORD = "someone@example.test", "secret"

CONFIG = """\
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
default_internal_user = dovecot
default_login_user = dovenull
protocols = submission
hostname = mail.example.test
auth_verbose = yes
auth_failure_delay = 0
login_log_format_elements = user=<%u> method=%m rip=%r rport=%{{rport}}
auth_mechanisms = plain login
disable_plaintext_auth = no
ssl = {ssl}
{certificate}
login_trusted_networks = 127.0.0.1
mail_location = maildir:{directory}/mail
first_valid_uid = 1
submission_relay_host = {relay_address}
submission_relay_port = {relay_port}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid=mail gid=mail home={directory}/home
}}
service submission-login {{
  chroot =
  inet_listener submission {{
    address = {address}
    port = {port}
    haproxy = {haproxy}
  }}
}}
haproxy_trusted_networks = 127.0.0.1
# Do not delay a client that failed to log in before.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  client_limit = 1000
}}
"""


class Dovecot(Program):
    """A running Dovecot; its log is in ``lines``."""

    def __init__(
        self,
        host: Host,
        directory: Path,
        *,
        listen: tuple[str, int],
        relay: tuple[str, int],
        certificate: Path | None = None,
        expects_header: bool = False,
    ) -> None:
        """Write the configuration into *directory* and start Dovecot on *host*."""
        find_program("/usr/lib/dovecot/submission")
        directory.mkdir(parents=True)
        keys = ""
        if certificate is not None:
            keys = f"ssl_cert = <{certificate}\nssl_key = <{certificate}"
        config = directory / "dovecot.conf"
        config.write_text(
            CONFIG.format(
                directory=directory,
                ssl="no" if certificate is None else "yes",
                certificate=keys,
                address=listen[0],
                port=listen[1],
                haproxy="yes" if expects_header else "no",
                relay_address=relay[0],
                relay_port=relay[1],
                password=PASSWORD,
            )
        )
        argv = [find_program("dovecot"), "-F", "-c", str(config)]
        super().__init__(f"dovecot in {directory}", host, argv)
        try:
            self.lines.wait_for("Dovecot .* starting up")
        except BaseException:
            self.stop()
            raise
