"""A real DNS server: Unbound, which answers from the records of a test and asks nobody."""

from collections.abc import Sequence
from pathlib import Path

from tests.integration.lab.needs import find_program
from tests.integration.lab.netns import Host
from tests.integration.lab.programs import Program

# The server knows its own records only; other names do not exist.  The small
# max-udp-size makes long answers come by TCP.
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
        """Serve *records* (lines of a zone file) on port 53 of *address*.

        *zones* are names that are answered in another way: "always_deny" is silent,
        "always_refuse" refuses (unbound.conf(5), local-zone).
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
