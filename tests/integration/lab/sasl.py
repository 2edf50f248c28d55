"""Dovecot as the authentication server that Postfix asks over TCP."""

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
protocols =
ssl = no
auth_mechanisms = plain login
auth_failure_delay = 0
disable_plaintext_auth = no
passdb {{
  driver = static
  args = user={user} password={password}
}}
userdb {{
  driver = static
  args = uid=mail gid=mail home={directory}/home
}}
service auth {{
  inet_listener {{
    address = 127.0.0.1
    port = {port}
  }}
}}
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"""


class Sasl(Program):
    """A running Dovecot that knows one user and serves no mail."""

    def __init__(self, host: Host, directory: Path, port: int) -> None:
        """Start Dovecot on that *port* of the host's loopback."""
        directory.mkdir(parents=True)
        config = directory / "dovecot.conf"
        text = CONFIG.format(
            directory=directory, user=USER, password=PASSWORD, port=port
        )
        config.write_text(text)
        argv = [find_program("dovecot"), "-F", "-c", str(config)]
        super().__init__(f"dovecot in {directory}", host, argv)
        try:
            self.lines.wait_for("Dovecot .* starting up")
        except BaseException:
            self.stop()
            raise
