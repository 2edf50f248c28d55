"""``proxyshim check`` beside a real Postfix: a port that master.cf has twice, or still has."""

import subprocess
import sys

from tests.integration.lab.postfix import Postfix, Smtpd, front_door
from tests.integration.lab.site import MAIL, Site

# A content filter returns its mail to this port.
FILTER = "127.0.0.1:11925"
OF_ITS_OWN = "127.0.0.1:11926"
# proxyshim shall have this port, which Postfix has.
STILL_POSTFIXS = f"{MAIL}:2599"


def checked(site: Site, backend: str) -> tuple[int, str]:
    """Run check; return the exit status and what it printed."""
    services = {
        "old": Smtpd(STILL_POSTFIXS, {}),
        "filter": Smtpd(FILTER, {"content_filter": ""}),
        "front": front_door(backend),
    }
    place = site.new_place("postfix")
    postfix = Postfix(site.mail, place, services)
    try:
        config = place / "proxyshim.toml"
        config.write_text(
            f'[[listener]]\nname = "mx"\nbind = "{STILL_POSTFIXS}"\n'
            f'backend = "{backend}"\nresolve = false\n'
        )
        check = [sys.executable, "-m", "proxyshim", "check", "-c", str(config)]
        done = subprocess.run(
            site.mail.command(["env", f"MAIL_CONFIG={place}/etc", *check]),
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout
    finally:
        postfix.stop()


def test_a_port_that_a_content_filter_uses_is_an_error(site: Site) -> None:
    status, output = checked(site, FILTER)
    assert status == 1, output
    says = f"error    backend {FILTER}: master.cf has 2 services on this port"
    assert says in output


def test_a_port_that_is_still_postfixs_is_a_warning(site: Site) -> None:
    status, output = checked(site, OF_ITS_OWN)
    assert status == 0, output
    says = f"warning  listener mx: bind {STILL_POSTFIXS}: in use by master (process"
    assert says in output
    assert "master.cf has" not in output
