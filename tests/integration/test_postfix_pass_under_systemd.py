"""``convey = "postfix-pass"`` as a service: DynamicUser, the group postdrop, a real Postfix."""

import dataclasses
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.docs import marked
from tests.integration.lab.clients import Conversation
from tests.integration.lab.load import (
    BEHIND_PROXY,
    LARGE,
    QUICK,
    SLOW,
    Kind,
    Load,
    digest_of,
)
from tests.integration.lab.machine import SHARED
from tests.integration.lab.pass_site import Pass
from tests.integration.lab.postfix import Postfix
from tests.integration.lab.programs import DEADLINE_S
from tests.integration.lab.service import CONFIG, Service
from tests.integration.test_postfix_pass import Own
from tests.integration.test_service_under_systemd import (
    CLIENT,
    MAIL,
    PROXY,
    SMTP,
    World,
    example,
    install,
    upgraded,
    wait_for_end_of,
    world,
)

__all__ = ["install", "world"]  # the fixtures

QUEUE = f"{SHARED}/pf/queue"


@pytest.fixture(scope="module")
def postfix(world: World) -> Iterator[Postfix]:
    """Return a Postfix outside of the machine, whose queue the machine sees."""
    services = {"proxied": Pass("proxied"), "own": Own("shim/proxied")}
    running = Postfix(
        world.machine.host,
        world.machine.shared / "pf",  # short, because of the sockets below it
        services,
        settings={"virtual_mailbox_domains": "example.test mx.test"},
        before_start=marked("sh: postfix-pass, own directory"),
    )
    yield running
    running.stop()


def config(path: str) -> str:
    table = CONFIG.replace("127.0.0.1:10725", f"unix:{path}")
    return table + 'convey = "postfix-pass"\nfamilies = ["ipv4"]\n'


PUBLIC = config(f"{QUEUE}/public/proxied")


def deliver(client: Conversation) -> None:
    for command, code in (
        ("EHLO client.example", 250),
        ("MAIL FROM:<a@client.example>", 250),
        ("RCPT TO:<user@example.test>", 250),
        ("DATA", 354),
        ("Subject: hello\r\n\r\nhello\r\n.", 250),
        ("QUIT", 221),
    ):
        assert client.ask(command).code == code


def test_the_drop_in_lets_the_service_hand_over_and_a_restart_cuts_nobody(
    install: Callable[..., Service], world: World, postfix: Postfix
) -> None:
    service = install(PUBLIC, passing=example("postfix-pass"))
    service.start()
    mark = postfix.lines.mark()
    with Conversation.open(world.client, SMTP, CLIENT) as client:
        assert client.reply().code == 220
        postfix.lines.wait_for(rf"connect from unknown\[{CLIENT}\]", since=mark)
        service.systemctl("restart", "proxyshim.service")
        deliver(client)
    done = service.journal.wait_event("session_closed", outcome="handed_over")
    assert done["client"].startswith(f"{CLIENT}:")


def test_a_directory_of_its_own_needs_no_group_of_postfixs(
    install: Callable[..., Service], world: World, postfix: Postfix
) -> None:
    drop_in = marked("drop-in: postfix-pass, own directory")
    drop_in = drop_in.replace("/var/spool/postfix", QUEUE).replace(
        "=proxyshim\n", "=64099\n"
    )
    world.machine.run("groupadd", "--force", "--gid", "64099", "shimgroup")
    service = install(config("/run/proxyshim-postfix/proxied"), passing=drop_in)
    service.start()
    with Conversation.open(world.client, SMTP, CLIENT) as client:
        assert client.reply().code == 220
        deliver(client)


def test_without_the_drop_in_the_service_may_not(
    install: Callable[..., Service], world: World, postfix: Postfix
) -> None:
    service = install(PUBLIC)
    service.start()
    with Conversation.open(world.client, SMTP, CLIENT) as client:
        assert client.reply().octets.startswith(b"421 4.3.2 ")
    failed = service.journal.wait_event("backend_failed")
    assert failed["reason"] == "pass_refused"
    assert "EACCES" in failed["detail"]


# 50 sessions, and clients that come all the time, while the process is replaced.

SESSIONS: Final = 50
KINDS: Final = (QUICK, BEHIND_PROXY, SLOW, dataclasses.replace(LARGE, octets=300_000))
COMMANDS: Final = (
    ("EHLO client.example", 250),
    ("MAIL FROM:<a@client.example>", 250),
    ("RCPT TO:<b@mx.test>", 250),
    ("DATA", 354),
)
BODY: Final = "".join(f"{number} {'x' * 60}\r\n" for number in range(100))


def source_of(kind: Kind) -> str:
    return PROXY if kind.proxy_header else CLIENT


class Held:
    """A session of one message, which stops somewhere on the way."""

    def __init__(self, talk: Conversation, number: int) -> None:
        """Begin it.  *number* decides whose it is, and where it stops.

        It stops after the greeting or one of COMMANDS, or in the middle of the content.
        """
        self.message_id = f"<held-{uuid.uuid4()}@load>"
        self._talk = talk
        self._content = f"Message-ID: {self.message_id}\r\n\r\n{BODY}.\r\n".encode()
        self._done = number % (len(COMMANDS) + 1)
        self._sent = 0
        talk.send(f"PROXY TCP4 203.0.113.{number} {MAIL} 4321 25\r\n".encode())
        assert talk.reply().code == 220
        for command, code in COMMANDS[: self._done]:
            assert talk.ask(command).code == code
        if self._done == len(COMMANDS):
            self._sent = len(self._content) // 2
            talk.send(self._content[: self._sent])

    @property
    def digest(self) -> str:
        """Return the digest of the message."""
        return digest_of(self._content)

    def finish(self) -> None:
        """Go on to the end."""
        for command, code in COMMANDS[self._done :]:
            assert self._talk.ask(command).code == code
        self._talk.send(self._content[self._sent :])
        assert self._talk.reply().code == 250
        assert self._talk.ask("QUIT").code == 221


def kill(service: Service) -> None:
    service.signal(service.pid, "KILL")


def upgrade_twice(service: Service) -> None:
    for _ in range(2):
        before = service.pid
        upgraded(service)
        wait_for_end_of(service, before)


def restart(service: Service) -> None:
    service.systemctl("restart", "proxyshim.service")


@pytest.mark.parametrize("replace", [kill, upgrade_twice, restart])
def test_no_session_is_lost_doubled_or_cut(
    replace: Callable[[Service], None],
    install: Callable[..., Service],
    world: World,
    postfix: Postfix,
) -> None:
    service = install(PUBLIC, passing=example("postfix-pass"))
    service.start()
    before = service.pid
    with ExitStack() as cleanup:
        held = []
        for number in range(SESSIONS):
            talk = Conversation.open(world.client, SMTP, PROXY)
            held.append(Held(cleanup.enter_context(talk), number))
        with Load(world.client, SMTP, source_of, KINDS) as load:
            load.wait_for_more()
            replace(service)
            load.wait_for_more()
            for each in held:
                each.finish()
    assert service.pid not in (0, before)
    assert load.tally.cut == []
    # A client that has been accepted and not yet handed over is reset if the process is
    # killed, and gets a 421 if it is stopped.  An upgrade serves it.
    assert replace is kill or load.tally.faults == []
    assert replace is not upgrade_twice or load.tally.turned_away == 0
    sent = load.tally.digests | {each.message_id: each.digest for each in held}
    wait_until_delivered(postfix)
    found = stored(postfix)
    assert Counter(name for name, _ in found if name in sent) == Counter(sent.keys())
    assert dict(found).items() >= sent.items()


def wait_until_delivered(postfix: Postfix) -> None:
    """Wait until Postfix's queue is empty."""
    queue = postfix.public.parent
    deadline = time.monotonic() + DEADLINE_S
    while any(is_queued(queue / name) for name in ("incoming", "active", "deferred")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_queued(directory: Path) -> bool:
    return any(path.is_file() for path in directory.rglob("*"))


def stored(postfix: Postfix) -> list[tuple[str, str]]:
    """Return each stored message's id, and its digest as the client computed it."""
    found = []
    for path in (postfix.mail / "inbox" / "new").iterdir():
        head, _, body = path.read_text().partition("\n\n")
        for name in re.findall("(?m)^Message-ID: (.+@load>)$", head):
            content = f"Message-ID: {name}\n\n{body}.\n".replace("\n", "\r\n")
            found.append((name, digest_of(content.encode())))
    return found
