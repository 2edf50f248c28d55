"""proxyshim as systemd runs it on a machine of the lab, with this source tree's units."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from tests.integration.lab.clients import Conversation
from tests.integration.lab.journal import Journal
from tests.integration.lab.machine import Machine
from tests.integration.lab.netns import Host

UNITS: Final = Path(__file__).parents[3] / "systemd"
_INSTALLED: Final = "/usr/local/lib/systemd/system"
_DROP_INS: Final = "/etc/systemd/system/proxyshim.service.d"

CONFIG: Final = """\
[metrics]
bind = "127.0.0.1:9125"

[[listener]]
name          = "mx"
bind          = "systemd:smtp"
haproxy_hosts = "haproxy_hosts"
backend       = "127.0.0.1:10725"
resolve       = false
"""


class Service:
    """The service: installed, configured, not yet started; removed after the block."""

    def __init__(
        self, machine: Machine, proxies: str, config: str = CONFIG, **drop_ins: str
    ) -> None:
        """Write the units and the configuration.  *drop_ins* are texts by name."""
        self.machine = machine
        for unit in ("proxyshim.socket", "proxyshim.service"):
            machine.write(f"{_INSTALLED}/{unit}", (UNITS / unit).read_text())
        for name, text in drop_ins.items():
            machine.write(f"{_DROP_INS}/test-{name}.conf", text)
        self.configure(config)
        self.list_proxies(proxies)
        self._cleanup = ExitStack()
        self._cleanup.callback(self._remove)
        self.systemctl("daemon-reload")
        self.journal = Journal(machine, "proxyshim.service")
        self._cleanup.callback(self.journal.stop)

    def __enter__(self) -> Self:
        """Return the service."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop and remove the service, whatever state it is in."""
        self._cleanup.close()

    def _remove(self) -> None:
        for unit in ("proxyshim.socket", "proxyshim.service"):
            self.machine.ask("systemctl", "stop", "--no-block", unit)
        self.machine.ask("systemctl", "kill", "--signal=KILL", "proxyshim.service")
        self.systemctl("stop", "proxyshim.socket", "proxyshim.service")
        self.machine.ask("systemctl", "reset-failed")
        self.machine.run("sh", "-c", f"rm -f {_DROP_INS}/test-*")

    def configure(self, config: str) -> None:
        """Replace proxyshim.toml."""
        self.machine.write("/etc/proxyshim/proxyshim.toml", config)

    def list_proxies(self, proxies: str) -> None:
        """Replace the list of proxies."""
        self.machine.write("/etc/proxyshim/haproxy_hosts", proxies)

    def systemctl(self, *words: str) -> str:
        """Run systemctl, which must succeed; return its output."""
        try:
            return self.machine.run("systemctl", *words)
        except AssertionError as problem:
            said = self.machine.run("journalctl", "--lines=20", "--output=cat")
            problem.add_note(said)
            raise

    def start(self) -> None:
        """Start both units."""
        self.systemctl("start", "proxyshim.socket", "proxyshim.service")

    def state(self, *properties: str) -> Mapping[str, str]:
        """Return these properties of the service."""
        return self.machine.show("proxyshim.service", *properties)

    @property
    def pid(self) -> int:
        """Return the id of the main process inside the machine."""
        return int(self.state("MainPID")["MainPID"])

    def signal(self, pid: int, name: str) -> None:
        """Send a signal to one process."""
        self.machine.run("kill", f"-{name}", str(pid))

    def metrics(self) -> str:
        """Return the metrics page."""
        with self.machine.host.connect(("127.0.0.1", 9125), "127.0.0.1") as sock:
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with sock.makefile("rb") as answer:
                return answer.read().decode()


class Client(Conversation):
    """A client that has been greeted, and can send a message without awaiting its reply."""

    @classmethod
    def greeted(cls, host: Host, to: tuple[str, int], source: str) -> Self:
        """Connect from *source*, and wait for the greeting."""
        client = cls.open(host, to, source)
        reply = client.reply()
        assert reply.code == 220, reply
        client.ask("EHLO client.example")
        return client

    def send_message(self, message_id: str, header: str = "") -> None:
        """Send a message with its final dot; do not wait for the reply to the dot."""
        for command, code in (
            ("MAIL FROM:<a@client.example>", 250),
            ("RCPT TO:<b@mx.test>", 250),
            ("DATA", 354),
        ):
            assert self.ask(command).code == code
        self.send(f"Message-ID: {message_id}\r\n{header}\r\nHello.\r\n.\r\n".encode())
