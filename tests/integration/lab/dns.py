"""A real DNS server: Unbound, authoritative for what a test gives it, asking nobody."""

from collections.abc import Sequence
from pathlib import Path

from tests.integration.lab.needs import find_program
from tests.integration.lab.netns import Host
from tests.integration.lab.programs import Program

# Records are the server's own; what is not there does not exist.  The small answers make
# the long ones come by TCP.
CONFIG = """\
server:
    interface: {address}
    port: 53
    access-control: 0.0.0.0/0 allow
    access-control: ::/0 allow
    do-daemonize: no
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: ""
    use-syslog: no
    logfile: ""
    verbosity: 1
    num-threads: 1
    so-rcvbuf: 0
    max-udp-size: 512
    rrset-roundrobin: no
    module-config: "iterator"
    local-zone: "." static
"""
TAIL = """\
remote-control:
    control-enable: no
"""


class Unbound(Program):
    """A running Unbound."""

    def __init__(
        self,
        host: Host,
        directory: Path,
        address: str,
        records: Sequence[str],
        zones: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Serve *records*, a line each as in a zone file, on port 53 of *address*.

        *zones* are names with another way to answer: "always_deny" is silent, "refuse"
        refuses (unbound.conf(5), local-zone).
        """
        directory.mkdir(parents=True)
        config = directory / "unbound.conf"
        text = CONFIG.format(address=address, directory=directory)
        text += "".join(f'    local-zone: "{name}" {way}\n' for name, way in zones)
        text += "".join(f"    local-data: '{record}'\n" for record in records)
        config.write_text(text + TAIL)
        argv = [find_program("unbound"), "-d", "-c", str(config)]
        super().__init__(f"unbound in {directory}", host, argv)
        try:
            self.lines.wait_for("start of service")
        except BaseException:
            self.stop()
            raise
