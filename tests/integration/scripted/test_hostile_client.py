"""What a hostile or clumsy client gets: its place among the replies, and no more than its share."""

import pytest

from tests.integration.scripted.shim import Rig
from tests.integration.scripted.wire import Wire

REFUSED = b"550 5.7.0 Error: insufficient authorization\r\n"
ENOUGH = b"421 4.7.0 Too many refused commands, closing\r\n"
EARLY = b"554 5.5.0 Error: SMTP protocol synchronization\r\n"


def test_a_client_that_floods_us_with_xclient_is_disconnected(rig: Rig) -> None:
    client, mta = rig.relaxed_pair()
    client.send(b"XCLIENT ADDR=127.0.0.1\r\n" * 2_000)
    assert client.last_words() == REFUSED * 20 + ENOUGH
    mta.expect(b"QUIT\r\n")
    mta.close()
    story = rig.story()
    assert (story["outcome"], story["reason"]) == ("refused", "too_many_refusals")


@pytest.mark.parametrize("reply", [EARLY, b"521 5.7.1 go away\r\n", b"550 no\r\n"])
def test_nothing_of_ours_follows_the_reply_with_which_the_server_hangs_up(
    rig: Rig, reply: bytes
) -> None:
    client, mta = rig.pair()
    client.send(
        b"HELO c\r\nMAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\nXCLIENT\r\n"
    )
    mta.expect(b"HELO c\r\n")
    mta.send(b"250 mx\r\n")
    mta.expect(b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\n")
    mta.send(reply)
    mta.close()
    assert client.last_words() == b"250 mx\r\n" + reply
    assert rig.story()["outcome"] == "client_refused"
    assert rig.events.at_least("error") == []


def test_our_own_reply_follows_a_5xx_of_a_server_that_does_not_hang_up(
    rig: Rig,
) -> None:
    client, mta = rig.relaxed_pair()
    client.send(b"MAIL FROM:<a@a.example>\r\nXCLIENT\r\n")
    mta.expect(b"MAIL FROM:<a@a.example>\r\n")
    mta.send(b"550 no\r\n")
    client.expect(b"550 no\r\n" + REFUSED)
    client.send(b"RSET\r\n")
    mta.expect(b"RSET\r\n")
    mta.close()
    client.last_words()


def test_nothing_of_ours_follows_the_servers_221(rig: Rig) -> None:
    client, mta = rig.relaxed_pair()
    client.send(b"QUIT\r\nXCLIENT ADDR=127.0.0.1\r\n")
    mta.expect(b"QUIT\r\n")
    mta.send(b"221 2.0.0 bye\r\n")
    client.expect(b"221 2.0.0 bye\r\n")
    client.send(b"XCLIENT ADDR=127.0.0.1\r\n")
    mta.close()
    assert client.last_words() == b""


def say(client: Wire, mta: Wire, line: bytes, reply: bytes) -> None:
    client.send(line)
    mta.expect(line)
    mta.send(reply)
    client.expect(reply)


@pytest.mark.parametrize("hello", [b"HELO h\r\n", b"EHLO h\r\n"])
def test_a_message_passes_after_an_unknown_command(rig: Rig, hello: bytes) -> None:
    client, mta = rig.pair()
    say(client, mta, b"XXXX h\r\n", b"502 5.5.2 Error: command not recognized\r\n")
    offer = b"250-mx\r\n250 STARTTLS\r\n" if hello[:1] == b"E" else b"250 mx\r\n"
    say(client, mta, hello, offer)
    say(client, mta, b"MAIL FROM:<a@a.example>\r\n", b"250 ok\r\n")
    say(client, mta, b"RCPT TO:<b@b.example>\r\n", b"250 ok\r\n")
    say(client, mta, b"DATA\r\n", b"354 go on\r\n")
    message = b"Proxy settings: none\r\nSTARTTLS is a verb\r\n" + b"x" * 30_000
    say(client, mta, message + b"\r\n.\r\n", b"250 queued\r\n")
    client.close()
    mta.close()
    assert rig.story()["messages"] == 1
