"""Five mail servers, each with its proxyshim, behind one HAProxy: as the how-to has it."""

import shutil
import smtplib
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.docs import marked
from tests.integration.lab.clients import LabSmtp
from tests.integration.lab.haproxy import HAProxy, Listen
from tests.integration.lab.needs import need_root
from tests.integration.lab.netns import Host, hosts
from tests.integration.lab.postfix import Postfix, front_door
from tests.integration.lab.programs import DEADLINE_S
from tests.integration.lab.shim import Listener, Shim

CLIENT, PROXY = "198.51.100.11", "203.0.113.10"
SERVERS = {f"smtp{number}": f"192.0.2.{20 + number}" for number in range(1, 6)}


class DocumentedListen(Listen):
    """A listen section of a document."""

    def text(self) -> str:
        return self.bind


class DocumentedListener(Listener):
    """A [[listener]] table of a document."""

    def toml(self) -> str:
        return marked("proxyshim.toml: five servers").replace("= true", "= false")


@dataclass
class Fleet:
    """The five, and what clients were told."""

    directory: Path
    client: Host
    mail: dict[str, Host]
    haproxy: HAProxy
    postfixes: dict[str, Postfix]
    maildirs: dict[str, list[Path]] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)

    def start_postfix(self, name: str) -> None:
        """Start the mail server of that host, with a new Maildir."""
        place = self.directory / f"postfix-{name}-{len(self.maildirs[name])}"
        services = {"mx": front_door("127.0.0.1:10725")}
        self.postfixes[name] = Postfix(self.mail[name], place, services)
        self.maildirs[name].append(self.postfixes[name].mail / "inbox" / "new")

    def stop_postfix(self, name: str) -> None:
        """Stop the mail server of that host."""
        self.postfixes[name].stop()

    def send(self) -> int:
        """Send a message as a new client; return the last code."""
        message_id = f"<{uuid.uuid4()}@client.example>"
        try:
            with LabSmtp(self.client, (PROXY, 25), CLIENT) as smtp:
                smtp.sendmail(
                    "a@client.example",
                    "user@example.test",
                    f"Message-ID: {message_id}\r\n\r\nhello\r\n",
                )
        except smtplib.SMTPConnectError as refused:
            return int(refused.smtp_code)
        self.accepted.append(message_id)
        return 250

    def connections(self) -> Counter[str]:
        """Return how many clients HAProxy has sent to each server."""
        states = {name: self.haproxy.server_state("smtp", name) for name in SERVERS}
        return Counter({name: int(state["stot"]) for name, state in states.items()})

    def stored(self) -> list[str]:
        """Return the ids of all stored messages."""
        found = []
        for folders in self.maildirs.values():
            for path in (path for folder in folders for path in folder.glob("*")):
                lines = path.read_text().splitlines()
                found += [
                    line.split(": ")[1]
                    for line in lines
                    if line.startswith("Message-ID")
                ]
        return found


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    need_root()
    with ExitStack() as cleanup:
        # Short, because Postfix has a socket below it.
        place = Path(tempfile.mkdtemp(prefix="proxyshim-five-"))
        cleanup.callback(shutil.rmtree, place, ignore_errors=True)
        place.chmod(0o755)
        addresses = {name: [address] for name, address in SERVERS.items()}
        made = cleanup.enter_context(hosts(client=[CLIENT], proxy=[PROXY], **addresses))
        section = marked("haproxy: five servers").replace("inter 2s", "inter 500ms")
        listens = [DocumentedListen("smtp", section, "")]
        mail = {name: made[name] for name in SERVERS}
        maildirs: dict[str, list[Path]] = {name: [] for name in SERVERS}
        postfixes: dict[str, Postfix] = {}
        haproxy = HAProxy(made["proxy"], place / "haproxy", listens)
        fleet = Fleet(place, made["client"], mail, haproxy, postfixes, maildirs)
        cleanup.callback(haproxy.stop)
        for name in SERVERS:
            fleet.start_postfix(name)
            cleanup.callback(fleet.stop_postfix, name)
            shim = Shim(
                mail[name],
                place / f"shim-{name}",
                [DocumentedListener(name, [], "")],
                haproxy_hosts=marked("haproxy_hosts: five servers").split(),
            )
            cleanup.callback(shim.stop_cleanly, ["backend_failed"])
        yield fleet


def test_one_server_fails_and_comes_back_and_nothing_is_lost(fleet: Fleet) -> None:
    log = fleet.haproxy.lines
    # HAProxy was there first, so each server was down and came up by its check.
    for name in SERVERS:
        log.wait_for(f"Server smtp/{name} is UP")
    before = fleet.connections()
    assert [fleet.send() for _ in range(10)] == [250] * 10
    assert fleet.connections() - before == dict.fromkeys(SERVERS, 2)

    mark = log.mark()
    fleet.stop_postfix("smtp3")
    codes = []
    while fleet.haproxy.server_state("smtp", "smtp3")["status"] != "DOWN":
        codes.append(fleet.send())
    assert set(codes) <= {250, 421}
    log.wait_for("Server smtp/smtp3 is DOWN", since=mark)

    before = fleet.connections()
    assert [fleet.send() for _ in range(8)] == [250] * 8
    others = [name for name in SERVERS if name != "smtp3"]
    assert fleet.connections() - before == dict.fromkeys(others, 2)

    fleet.start_postfix("smtp3")
    log.wait_for("Server smtp/smtp3 is UP", since=mark)
    before = fleet.connections()
    assert [fleet.send() for _ in range(10)] == [250] * 10
    assert fleet.connections()["smtp3"] > before["smtp3"]

    fleet.haproxy.tell("set server smtp/smtp3 state drain")
    before = fleet.connections()
    assert [fleet.send() for _ in range(8)] == [250] * 8
    assert fleet.connections()["smtp3"] == before["smtp3"]

    # A message is stored a moment after it was accepted.
    wait_until(lambda: len(fleet.stored()) >= len(fleet.accepted))
    assert sorted(fleet.stored()) == sorted(fleet.accepted)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
