"""The mail server hangs up: its judgement of the client is no failure, and no own reply follows.

A spammer that gets a 521 must not page anybody at night, and must not fill the log.
"""

import pytest

from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import EXTENSIONS, Mta
from tests.integration.scripted.shim import Rig
from tests.integration.scripted.wire import LIMIT_S, Wire

LOST = b"421 4.3.0 Connection to the mail server lost\r\n"

JUDGEMENTS = {
    "521": b"521 5.7.1 mx.test we do not talk to you\r\n",
    "554": b"554 5.7.1 Client host rejected\r\n",
    "550": b"550-5.7.1 no\r\n550 5.7.1 and goodbye\r\n",
    "421-too-many-errors": b"421 4.7.0 mx.test Error: too many errors\r\n",
    "421-without-a-code": b"421 enough\r\n",
}
FAILURES = {
    "shutting-down": b"421 4.3.2 mx.test shutting down\r\n",
    "no-space": b"421-4.3.0 no space\r\n421 4.3.0 try later\r\n",
}


def ask(client: Wire, mta: Mta, command: bytes = b"MAIL FROM:<>\r\n") -> None:
    client.send(command)
    mta.expect(command)


def open_session(rig: Rig, *, relaxed: bool) -> tuple[Wire, Mta]:
    client, mta = rig.pair(v1())
    hello = b"EHLO client.test\r\n" if relaxed else b"HELO client.test\r\n"
    reply = EXTENSIONS if relaxed else b"250 mx.test\r\n"
    ask(client, mta, hello)
    mta.send(reply)
    client.expect(reply)
    return client, mta


def nothing_to_fix(rig: Rig) -> None:
    """Check that the session is the MTA's refusal of the client, and that nobody is alerted."""
    story = rig.story()
    assert (story["outcome"], story["reason"]) == ("client_refused", "client_refused")
    assert story["level"] == "info"
    assert rig.events.at_least("warning", "error") == []
    assert rig.events.find("backend_recovered") == []
    assert rig.shim.server.metrics.backend_failures == {}
    assert rig.shim.server.metrics.refusals == {}


@pytest.mark.parametrize("relaxed", [True, False], ids=["relaxed", "strict"])
@pytest.mark.parametrize("reply", JUDGEMENTS.values(), ids=JUDGEMENTS)
def test_a_judgement_of_the_client_is_delivered_and_is_no_failure(
    rig: Rig, reply: bytes, relaxed: bool
) -> None:
    client, mta = open_session(rig, relaxed=relaxed)
    ask(client, mta)
    mta.send(reply)
    mta.close()
    assert client.last_words() == reply
    nothing_to_fix(rig)


@pytest.mark.parametrize("reply", JUDGEMENTS.values(), ids=JUDGEMENTS)
def test_commands_that_the_mail_server_never_reads_change_nothing(
    rig: Rig, reply: bytes
) -> None:
    client, mta = open_session(rig, relaxed=True)
    commands = b"MAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nRCPT TO:<c@b.test>\r\n"
    ask(client, mta, commands)
    mta.send(reply)
    client.expect(reply)
    client.send(b"RSET\r\n")
    assert not mta.is_silent(LIMIT_S)
    mta.close()  # with unread input, so that this is a reset
    assert client.last_words() == b""
    nothing_to_fix(rig)


def test_a_quit_after_the_judgement_changes_nothing(rig: Rig) -> None:
    client, mta = open_session(rig, relaxed=True)
    ask(client, mta)
    mta.send(JUDGEMENTS["521"])
    client.expect(JUDGEMENTS["521"])
    ask(client, mta, b"QUIT\r\n")
    mta.close()
    assert client.last_words() == b""
    nothing_to_fix(rig)


def test_a_refusal_before_the_client_has_spoken_is_delivered_alone(rig: Rig) -> None:
    client, mta = rig.pair(v1())
    mta.send(JUDGEMENTS["554"])
    mta.close()
    assert client.last_words() == JUDGEMENTS["554"]
    nothing_to_fix(rig)


def test_many_refused_clients_write_one_line_each(rig: Rig) -> None:
    for number in range(1, 11):
        client, mta = open_session(rig, relaxed=True)
        ask(client, mta)
        mta.send(JUDGEMENTS["521"])
        mta.close()
        client.last_words()
        rig.story(number)
    lines = [e for e in rig.events.find("session_closed") if e["level"] == "info"]
    assert len(lines) == 10
    nothing_to_fix(rig)


# The mail server's own failures.


def is_a_failure(rig: Rig, text: str, count: int = 1) -> None:
    story = rig.story(count)
    assert (story["outcome"], story["reason"]) == ("backend_failed", "backend_closed")
    [failed] = rig.events.find("backend_failed")
    assert (failed["reason"], failed["level"]) == ("backend_closed", "error")
    assert text in failed["detail"]
    assert rig.shim.server.metrics.backend_failures == {"backend_closed": count}


@pytest.mark.parametrize("relaxed", [True, False], ids=["relaxed", "strict"])
@pytest.mark.parametrize("reply", FAILURES.values(), ids=FAILURES)
def test_a_421_about_the_mail_server_is_a_failure(
    rig: Rig, reply: bytes, relaxed: bool
) -> None:
    client, mta = open_session(rig, relaxed=relaxed)
    ask(client, mta)
    mta.send(reply)
    mta.close()
    assert client.last_words() == reply
    is_a_failure(rig, "closed with: 421")


@pytest.mark.parametrize("reply", [b"421 too busy\r\n", FAILURES["shutting-down"]])
def test_a_421_before_the_client_has_spoken_is_a_failure(
    rig: Rig, reply: bytes
) -> None:
    client, mta = rig.pair(v1())
    mta.send(reply)
    mta.close()
    assert client.last_words() == reply
    is_a_failure(rig, "closed with: 421")


def test_failures_of_the_mail_server_are_logged_once_a_minute(rig: Rig) -> None:
    for number in range(1, 6):
        client, mta = open_session(rig, relaxed=True)
        ask(client, mta)
        mta.send(FAILURES["shutting-down"])
        mta.close()
        client.last_words()
        is_a_failure(rig, "shutting down", number)


def test_a_command_without_a_reply_after_a_refusal_is_a_failure(rig: Rig) -> None:
    client, mta = open_session(rig, relaxed=True)
    ask(client, mta, b"RCPT TO:<a@b.test>\r\n")
    mta.send(b"550 5.1.1 unknown\r\n")
    client.expect(b"550 5.1.1 unknown\r\n")
    ask(client, mta)
    mta.close()
    assert client.last_words() == LOST
    is_a_failure(rig, "closed in the middle of a session")
