"""A real Postfix for the tests, with as many smtpd services as a test needs.

One instance is enough for many settings, because each service in master.cf has its own
address and its own overrides.  Mail for example.test goes into one Maildir; relayed mail
is discarded.  This Postfix reads nothing from /etc/postfix.
"""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.lab.needs import find_program
from tests.integration.lab.netns import Host
from tests.integration.lab.programs import Program

DAEMONS = Path("/usr/lib/postfix/sbin")
QUEUES = "active bounce corrupt defer deferred flush hold incoming private saved trace"

# As /etc/postfix/master.cf, but without pickup, and with the log on standard output.
PARTS = """\
cleanup    unix n - n - 0 cleanup
qmgr       unix n - n 300 1 qmgr
tlsmgr     unix - - n 1000? 1 tlsmgr
rewrite    unix - - n - - trivial-rewrite
bounce     unix - - n - 0 bounce
defer      unix - - n - 0 bounce
trace      unix - - n - 0 bounce
verify     unix - - n - 1 verify
flush      unix n - n 1000? 0 flush
proxymap   unix - - n - - proxymap
smtp       unix - - n - - smtp
error      unix - - n - - error
retry      unix - - n - - error
discard    unix - - n - - discard
virtual    unix - n n - - virtual
anvil      unix - - n - 1 anvil
scache     unix - - n - 1 scache
postlog    unix-dgram n - n - 1 postlogd
"""

SETTINGS = {
    "compatibility_level": "3.6",
    "command_directory": "/usr/sbin",
    "daemon_directory": str(DAEMONS),
    "mail_owner": "postfix",
    "setgid_group": "postdrop",
    "maillog_file": "/dev/stdout",
    "myhostname": "mail.example.test",
    "mydestination": "",
    "alias_maps": "",
    "inet_interfaces": "all",
    "inet_protocols": "all",
    # The lab has no DNS, so names are unknown at once, for direct clients too.
    "smtpd_peername_lookup": "no",
    "disable_dns_lookups": "yes",
    "smtpd_client_port_logging": "yes",
    "mynetworks": "127.0.0.0/8 [::1]/128",
    "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
    "virtual_mailbox_domains": "example.test",
    "virtual_mailbox_maps": "static:inbox/",
    "virtual_minimum_uid": "100",
    "virtual_uid_maps": "static:65534",
    "virtual_gid_maps": "static:65534",
    "virtual_mailbox_limit": "0",
    "default_transport": "discard",
    "relay_transport": "discard",
}


@dataclass(frozen=True, slots=True)
class Smtpd:
    """An smtpd service: where it listens, and how it differs from main.cf.

    An address without a port is the name of a unix socket in the queue's folder public.
    """

    address: str
    settings: Mapping[str, str] = field(default_factory=dict)
    processes: str = "-"  # at most; the default is default_process_limit

    def line(self) -> str:
        """Return the service's entry in master.cf."""
        kind = "inet" if ":" in self.address else "unix"
        overrides = "".join(
            f"\n    -o {{ {name} = {value} }}" for name, value in self.settings.items()
        )
        return f"{self.address} {kind} n - y - {self.processes} smtpd{overrides}\n"


def front_door(address: str, **settings: str) -> Smtpd:
    """Return the service that the docs recommend, plus *settings*.

    Without the third recommended setting, Postfix would complete and rewrite the headers
    of all mail as if it were local: the default there, permit_inet_interfaces, looks at
    the address of the socket and ignores XCLIENT.
    """
    recommended = {
        "smtpd_authorized_xclient_hosts": "127.0.0.1",
        "smtpd_authorized_xforward_hosts": "",
        "local_header_rewrite_clients": "",
    }
    return Smtpd(address, {**recommended, **settings})


class Postfix(Program):
    """A running Postfix; its log is in ``lines``."""

    def __init__(
        self,
        host: Host,
        directory: Path,
        services: Mapping[str, Smtpd],
        settings: Mapping[str, str] | None = None,
        before_start: str = "",
    ) -> None:
        """Write the configuration into *directory* and start Postfix.

        *before_start* is a script of our documents, for /var/spool/postfix.
        """
        find_program("postfix")
        self.services = services
        self.mail = directory / "mail"
        self.public = directory / "queue" / "public"
        _make_directories(directory)
        config = directory / "etc"
        (config / "main.cf").write_text(_main_cf(directory, settings or {}))
        # A Postfix program that finds a brand-new main.cf waits until the file is older.
        os.utime(config / "main.cf", (0, 0))
        lines = [service.line() for service in services.values()]
        (config / "master.cf").write_text("".join(lines) + PARTS)
        if before_start:
            _run_script(before_start, directory / "queue")
        master = [str(DAEMONS / "master"), "-c", str(config), "-s"]
        super().__init__(f"postfix in {directory}", host, master, directory=directory)
        try:
            self.lines.wait_for("daemon started")
        except BaseException:
            self.stop()
            raise

    def stored(self, queue_id: str) -> str:
        """Wait until the mail with that queue id is in the Maildir; return it."""
        self.lines.wait_for(rf": {queue_id}: .*status=sent \(delivered to maildir\)")
        for path in (self.mail / "inbox" / "new").iterdir():
            text = path.read_text("utf-8", "replace")
            if re.search(rf"\bid {queue_id}\b", text):
                return text
        raise AssertionError(f"no mail with the queue id {queue_id} in the Maildir")

    def client_of(self, queue_id: str) -> str:
        """Return the client that Postfix logged for that mail: name[address]:port."""
        return self.lines.wait_for(rf"smtpd\[\d+\]: {queue_id}: client=([^,\s]+)")[1]


def queue_id_of(reply: str) -> str:
    """Return the queue id from the reply to a final dot."""
    match = re.search(r"queued as (\w+)", reply)
    assert match is not None, f"the mail was not accepted: {reply!r}"
    return match[1]


def _main_cf(directory: Path, settings: Mapping[str, str]) -> str:
    places = {
        "queue_directory": str(directory / "queue"),
        "data_directory": str(directory / "data"),
        "maillog_file_prefixes": f"/dev/stdout, {directory}",
        "virtual_mailbox_base": str(directory / "mail"),
    }
    merged = {**SETTINGS, **places, **settings}
    return "".join(f"{name} = {value}\n" for name, value in merged.items())


def _make_directories(directory: Path) -> None:
    """Make the directories that "postfix check" would make, and check nothing else."""
    owner = pwd.getpwnam("postfix")
    queue = directory / "queue"
    (directory / "etc").mkdir(parents=True)
    _make(queue, "root", "root", 0o755)
    _make(queue / "pid", "root", "root", 0o755)
    for name in QUEUES.split():
        _make(queue / name, owner.pw_name, "root", 0o700)
    _make(queue / "public", owner.pw_name, "postdrop", 0o710)
    _make(queue / "maildrop", owner.pw_name, "postdrop", 0o730)
    _make(directory / "data", owner.pw_name, "root", 0o700)
    _make(directory / "mail", "nobody", "nogroup", 0o755)


def _run_script(script: str, queue: Path) -> None:
    """Run a documented *script* with this queue, and with a group of the lab's."""
    script = script.replace("/var/spool/postfix", str(queue))
    script = script.replace("-g proxyshim", "-g 64099")
    subprocess.run(["sh", "-ec", script], check=True, timeout=30)


def _make(path: Path, owner: str, group: str, mode: int) -> None:
    path.mkdir()
    shutil.chown(path, owner, group)
    os.chmod(path, mode)
