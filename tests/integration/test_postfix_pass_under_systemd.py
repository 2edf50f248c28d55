"""``convey = "postfix-pass"`` as a service: DynamicUser, the group postdrop, a real Postfix."""

from collections.abc import Callable, Iterator

import pytest

from tests.docs import marked
from tests.integration.lab.clients import Conversation
from tests.integration.lab.machine import SHARED
from tests.integration.lab.pass_site import Pass
from tests.integration.lab.postfix import Postfix
from tests.integration.lab.service import CONFIG, Service
from tests.integration.test_postfix_pass import Own
from tests.integration.test_service_under_systemd import (
    CLIENT,
    SMTP,
    World,
    example,
    install,
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
