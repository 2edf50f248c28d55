"""The agent check of a real HAProxy while a real Postfix has no process left."""

import time
from contextlib import ExitStack
from dataclasses import replace

from tests.integration.lab.clients import Conversation
from tests.integration.lab.postfix import Postfix, front_door
from tests.integration.lab.site import CLIENT, MAIL, PROXY, Site
from tests.integration.test_agent_check import (
    BACKEND,
    DOWN,
    PORT,
    a_haproxy,
    a_shim,
    ask,
    status,
)

PROCESSES = 3


def test_idle_clients_that_hold_every_process_do_not_take_the_server_out(
    site: Site,
) -> None:
    service = replace(front_door(BACKEND), processes=str(PROCESSES))
    postfix = Postfix(site.mail, site.new_place("postfix"), {"few": service})
    try:
        with a_shim(site), a_haproxy(site) as haproxy, ExitStack() as cleanup:
            mark = haproxy.lines.mark()
            talks = [
                cleanup.enter_context(
                    Conversation.open(site.client, (MAIL, PORT), CLIENT)
                )
                for _ in range(PROCESSES)
            ]
            for talk in talks:
                assert talk.reply().code == 220
            late = cleanup.enter_context(
                Conversation.open(site.client, (MAIL, PORT), CLIENT)
            )
            # An answer comes from a check that began up to 1 s before, and takes 1.5 s.
            until = time.monotonic() + 4
            while time.monotonic() < until:
                assert ask(site.proxy, MAIL, PROXY) in (b"up\n", b"up ready\n")
            assert status(haproxy) == "UP"
            for talk in talks:
                assert talk.ask("QUIT").code == 221
            assert late.reply().code == 220
            assert not any(DOWN in line for line in haproxy.lines.since(mark))
    finally:
        postfix.stop()
