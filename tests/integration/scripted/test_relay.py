"""The relay neither loses nor changes a byte, and handles half-closes and time limits."""

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import pytest

from proxyshim.session.timing import FINAL_REPLY_S
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import EXTENSIONS, GREETING, OFFER, Mta
from tests.integration.scripted.shim import Rig
from tests.integration.scripted.wire import LIMIT_S, Wire

LOST = b"421 4.3.0 Connection to the mail server lost\r\n"
TIMEOUT = b"421 4.4.2 Timeout exceeded\r\n"
QUEUED = b"250 2.0.0 queued as 4711\r\n"
ENVELOPE = b"MAIL FROM:<a@client.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n"
MEGABYTE = 1_000_000


def content(seed: int, octets: int) -> bytes:
    """Return random content with all byte values, stuffed dots and the final dot."""
    dice = random.Random(seed)
    lines = []
    while octets > 0:
        line = dice.randbytes(dice.choice((0, 1, 2, 30, 70, 998, 20_000)))
        line = line.replace(b"\n", b"x").replace(b"\r", b"y")
        lines.append(b"." + line if line.startswith(b".") else line)
        octets -= len(line) + 2
    return b"\r\n".join([*lines, b".", b""])


def pieces(seed: int, octets: bytes) -> Iterable[bytes]:
    """Split *octets* at random."""
    dice = random.Random(seed)
    start = 0
    while start < len(octets):
        end = start + dice.choice((1, 2, 3, 100, 1460, 9_000, 100_000, 500_000))
        yield octets[start:end]
        start = end


@contextmanager
def sending(wire: Wire, chunks: Iterable[bytes]) -> Iterator[None]:
    """Send *chunks* on a thread while the block runs."""
    failures: list[OSError] = []

    def work() -> None:
        try:
            for chunk in chunks:
                wire.send(chunk)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert failures == []


def begin_content(client: Wire, mta: Mta) -> None:
    """Begin a message, one command at a time, up to the 354."""
    for line in ENVELOPE.splitlines(keepends=True):
        client.send(line)
        mta.expect(line)
        reply = b"354 go ahead\r\n" if line == b"DATA\r\n" else b"250 2.1.0 ok\r\n"
        mta.send(reply)
        client.expect(reply)


def strict_pair(rig: Rig) -> tuple[Wire, Mta]:
    """Open a session in which the mail server still offers XCLIENT."""
    client, mta = rig.pair(v1())
    client.send(b"EHLO client.test\r\n")
    mta.expect(b"EHLO client.test\r\n")
    mta.send(OFFER)
    client.expect(b"250-mx.test\r\n250 PIPELINING\r\n")
    return client, mta


def relaxed_pair(rig: Rig) -> tuple[Wire, Mta]:
    return rig.relaxed_pair(v1())


MODES: dict[str, Callable[[Rig], tuple[Wire, Mta]]] = {
    "strict": strict_pair,
    "relaxed": relaxed_pair,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", MODES)
def test_content_arrives_as_it_was_sent(rig: Rig, mode: str, seed: int) -> None:
    client, mta = MODES[mode](rig)
    begin_content(client, mta)
    message = content(seed, MEGABYTE)
    with sending(client, pieces(seed, message)):
        mta.expect(message)
    mta.send(QUEUED)
    client.expect(QUEUED)
    mta.close()
    client.end()
    story = rig.story()
    assert story["messages"] == 1
    assert story["mode"] == mode


def test_content_may_arrive_byte_by_byte(rig: Rig) -> None:
    client, mta = relaxed_pair(rig)
    begin_content(client, mta)
    message = content(7, 2_000)
    client.send_each_octet(message)
    mta.expect(message)


@pytest.mark.parametrize("seed", range(2))
def test_replies_arrive_as_they_were_sent(rig: Rig, seed: int) -> None:
    client, mta = relaxed_pair(rig)
    dice = random.Random(seed)
    texts = [
        dice.randbytes(dice.choice((0, 5, 70, 500))).translate(None, b"\r\n")
        for _ in range(900)
    ]
    replies = b"".join(
        b"250%c%s\r\n" % (b"- "[number % 3 == 2], text)
        for number, text in enumerate(texts)
    )
    client.send(b"NOOP\r\n" * 300)
    mta.expect(b"NOOP\r\n" * 300)
    with sending(mta, pieces(seed, replies)):
        client.expect(replies)


def test_after_starttls_both_directions_flow_at_the_same_time(rig: Rig) -> None:
    client, mta = relaxed_pair(rig)
    client.send(b"STARTTLS\r\n")
    mta.expect(b"STARTTLS\r\n")
    mta.send(b"220 2.0.0 go ahead\r\n")
    client.expect(b"220 2.0.0 go ahead\r\n")
    up, down = (
        random.Random(1).randbytes(5 * MEGABYTE),
        random.Random(2).randbytes(5 * MEGABYTE),
    )
    received = []
    reader = threading.Thread(target=lambda: received.append(client.rest()))
    reader.start()
    with sending(client, pieces(1, up)), sending(mta, pieces(2, down)):
        mta.expect(up)
    mta.finish()
    reader.join(LIMIT_S)
    assert received == [down]
    mta.close()
    client.close()
    assert rig.story()["mode"] == "opaque"


def test_a_pipelining_client_is_not_held_up(rig: Rig) -> None:
    client, mta = relaxed_pair(rig)
    client.send(ENVELOPE + b"hello\r\n.\r\nQUIT\r\n")
    mta.expect(ENVELOPE + b"hello\r\n.\r\nQUIT\r\n")
    replies = b"250 a\r\n250 b\r\n354 c\r\n" + QUEUED + b"221 bye\r\n"
    mta.send(replies)
    mta.close()
    assert client.last_words() == replies
    story = rig.story()
    assert (story["outcome"], story["messages"]) == ("completed", 1)
    assert "reason" not in story


# The client disconnects.


def test_a_client_that_has_ended_its_input_still_gets_the_replies(rig: Rig) -> None:
    client, mta = relaxed_pair(rig)
    client.send(ENVELOPE)
    client.finish()
    assert mta.rest() == ENVELOPE  # followed by the end of file
    mta.send(b"250 a\r\n250 b\r\n354 c\r\n")
    client.expect(b"250 a\r\n250 b\r\n354 c\r\n")
    mta.close()
    assert client.last_words() == b""
    assert rig.story()["outcome"] == "completed"
    assert rig.events.at_least("warning", "error") == []


@pytest.mark.parametrize("leave", [Wire.close, Wire.finish, Wire.reset])
def test_a_client_that_leaves_without_quit_causes_no_warning(
    rig: Rig, leave: Callable[[Wire], None]
) -> None:
    client, mta = relaxed_pair(rig)
    leave(client)
    mta.end()
    client.close()
    assert rig.story()["outcome"] in ("completed", "client_lost")
    assert rig.events.at_least("warning", "error") == []


def test_a_backend_that_closes_before_answering_a_half_closed_client_has_failed(
    rig: Rig,
) -> None:
    client, mta = relaxed_pair(rig)
    client.send(b"NOOP\r\n")
    client.finish()
    assert mta.rest() == b"NOOP\r\n"
    mta.close()
    assert client.last_words() == LOST
    assert rig.story()["outcome"] == "backend_failed"


def test_a_client_may_send_its_whole_session_at_once(rig: Rig) -> None:
    """As ``printf | nc`` does: all commands, and then the end of file."""
    said = b"EHLO client.test\r\n" + ENVELOPE + b"hello\r\n.\r\nQUIT\r\n"
    client = rig.connect()
    client.send(said)
    client.finish()
    mta = rig.accept()
    mta.introduce()
    mta.expect(b"EHLO client.test\r\n")
    mta.send(EXTENSIONS)
    assert mta.rest() == said.removeprefix(b"EHLO client.test\r\n")
    replies = b"250 a\r\n250 b\r\n354 c\r\n" + QUEUED + b"221 bye\r\n"
    mta.send(replies)
    mta.close()
    assert client.last_words() == GREETING + EXTENSIONS + replies


@pytest.mark.parametrize("vanish", [Wire.close, Wire.reset])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("last", [b"half a line", b"\r\n.", b"\r\n.\r", b"\r\n"])
def test_a_client_that_vanishes_completes_no_message(
    rig: Rig, mode: str, vanish: Callable[[Wire], None], last: bytes
) -> None:
    client, mta = MODES[mode](rig)
    begin_content(client, mta)
    client.send(b"hello\r\n" + last)
    mta.expect(b"hello\r\n")
    vanish(client)
    said = mta.rest()
    assert (b"\r\n" + last).startswith(b"\r\n" + said)
    mta.close()
    assert rig.story()["messages"] == 0


@pytest.mark.parametrize("octets", [6, 600_000])
def test_input_before_a_reset_is_read_and_the_reset_is_noticed(
    rig: Rig, octets: int
) -> None:
    client, mta = relaxed_pair(rig)
    begin_content(client, mta)
    said = b"text\r\n" * (octets // 6)
    with rig.shim.held():
        with suppress(TimeoutError):  # if there is no room for all of it
            client.sock.settimeout(0.1)
            client.send(said)
        client.reset()
    assert said.startswith(mta.end())
    assert rig.story()["outcome"] == "client_lost"


@pytest.mark.parametrize("octets", [8, 600_000])
def test_a_backends_reset_is_noticed_after_its_last_reply(
    rig: Rig, octets: int
) -> None:
    client, mta = relaxed_pair(rig)
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    with rig.shim.held():
        mta.send(b"250 ok\r\n")
        with suppress(TimeoutError):
            mta.sock.settimeout(0.1)
            mta.send(b"250 unasked\r\n" * (octets // 13))
        mta.reset()
    assert client.last_words().endswith(b"\r\n" + LOST)
    assert rig.story()["outcome"] == "backend_failed"


@pytest.mark.parametrize("mode", MODES)
def test_half_a_command_is_never_completed(rig: Rig, mode: str) -> None:
    client, mta = MODES[mode](rig)
    client.send(b"RSET\r\nMAIL FROM:<a@client.te")
    mta.expect(b"RSET\r\n")
    client.close()
    assert mta.rest() in (b"", b"MAIL FROM:<a@client.te")


def test_the_backend_gets_a_quit_if_the_client_vanishes_between_messages(
    rig: Rig,
) -> None:
    client, mta = relaxed_pair(rig)
    client.reset()
    mta.expect(b"QUIT\r\n")
    mta.send(b"221 2.0.0 bye\r\n")
    assert mta.rest() == b""
    mta.close()
    story = rig.story()
    assert story["outcome"] == "client_lost"
    assert rig.events.at_least("warning", "error") == []


# The backend disconnects.


@pytest.mark.parametrize("vanish", [Wire.close, Wire.reset])
@pytest.mark.parametrize("partial", [b"", b"250-mx", b"250-mx.test\r\n250 OK"])
@pytest.mark.parametrize("mode", MODES)
def test_a_backend_that_vanishes_means_421_at_a_reply_boundary(
    rig: Rig, mode: str, partial: bytes, vanish: Callable[[Wire], None]
) -> None:
    client, mta = MODES[mode](rig)
    client.send(b"MAIL FROM:<>\r\n")
    mta.expect(b"MAIL FROM:<>\r\n")
    mta.send(partial)
    vanish(mta)
    assert client.last_words() == LOST
    story = rig.story()
    assert (story["phase"], story["outcome"]) == ("relay", "backend_failed")
    assert story["reason"] == "backend_closed"
    (error,) = rig.events.at_least("error")
    assert error["event"] == "backend_failed"


@pytest.mark.parametrize("vanish", [Wire.close, Wire.reset])
def test_a_backend_that_vanishes_within_content_means_421(
    rig: Rig, vanish: Callable[[Wire], None]
) -> None:
    client, mta = relaxed_pair(rig)
    begin_content(client, mta)
    client.send(b"hello\r\n")
    mta.expect(b"hello\r\n")
    vanish(mta)
    with suppress(ConnectionError):
        client.send(b"more\r\n" * 1000)
    assert client.last_words() == LOST


def test_after_starttls_a_lost_backend_closes_the_session_without_421(rig: Rig) -> None:
    client, mta = relaxed_pair(rig)
    client.send(b"STARTTLS\r\n")
    mta.expect(b"STARTTLS\r\n")
    mta.send(b"220 2.0.0 go ahead\r\n")
    client.expect(b"220 2.0.0 go ahead\r\n")
    mta.send(b"half a record")
    mta.close()
    assert client.last_words() == b"half a record"


def test_the_backends_goodbye_is_relayed(rig: Rig) -> None:
    farewell = b"221 2.0.0 bye\r\n"
    client, mta = relaxed_pair(rig)
    client.send(b"QUIT\r\n")
    mta.expect(b"QUIT\r\n")
    mta.send(farewell)
    mta.close()
    assert client.last_words() == farewell
    story = rig.story()
    assert story["outcome"] == "completed"
    assert rig.events.at_least("warning", "error") == []


def test_replies_sent_before_the_backend_vanishes_are_delivered(rig: Rig) -> None:
    client, mta = relaxed_pair(rig)
    client.send(b"HELP\r\n" * 200)
    mta.expect(b"HELP\r\n" * 200)
    answers = (b"214-" + b"x" * 900 + b"\r\n214 end\r\n") * 200
    with sending(mta, [answers]):
        client.expect(answers)
    mta.reset()
    assert client.last_words() == LOST


def test_garbage_in_mid_session_means_421(rig: Rig) -> None:
    client, mta = relaxed_pair(rig)
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    mta.send(b"what is this?\r\n")
    assert client.last_words() == LOST
    mta.end()
    assert rig.story()["reason"] == "backend_bad_reply"


def test_an_endless_reply_in_mid_session_means_421(rig: Rig) -> None:
    client, mta = relaxed_pair(rig)
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    with suppress(ConnectionError):
        mta.send(b"250 " + b"x" * 5_000_000)
    assert client.last_words() == LOST
    mta.end()
    assert rig.story()["reason"] == "backend_bad_reply"


# Time limits.


def test_an_idle_client_gets_a_421(rig_with: OpenRig) -> None:
    rig = rig_with(idle_timeout_s=0.2)
    client, mta = relaxed_pair(rig)
    assert client.last_words() == TIMEOUT
    assert mta.rest() == b"QUIT\r\n"
    mta.close()
    story = rig.story()
    assert (story["outcome"], story["reason"]) == ("idle", "client_idle")
    assert rig.events.at_least("warning", "error") == []


def test_a_backend_that_owes_a_reply_for_too_long_is_reported(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(idle_timeout_s=0.2)
    client, mta = relaxed_pair(rig)
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    assert client.last_words() == LOST
    assert rig.story()["reason"] == "backend_timeout"


def test_activity_on_either_side_keeps_a_session_open(rig_with: OpenRig) -> None:
    rig = rig_with(idle_timeout_s=0.3)
    client, mta = relaxed_pair(rig)
    begin_content(client, mta)
    for _ in range(8):
        client.send(b"line\r\n")
        mta.expect(b"line\r\n")
        assert client.is_silent(0.1)
    client.send(b".\r\n")
    mta.expect(b".\r\n")
    mta.send(QUEUED)
    client.expect(QUEUED)


def test_the_answer_to_a_message_has_its_own_limit(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.session.timing.FINAL_REPLY_S", LIMIT_S)
    rig = rig_with(idle_timeout_s=0.1)
    client, mta = relaxed_pair(rig)
    begin_content(client, mta)
    client.send(b"hello\r\n.\r\n")
    mta.expect(b"hello\r\n.\r\n")
    assert client.is_silent(0.4)
    mta.send(QUEUED)
    client.expect(QUEUED)


def test_the_wait_for_the_answer_to_a_message_is_limited(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.session.timing.FINAL_REPLY_S", 0.3)
    rig = rig_with(idle_timeout_s=0.1)
    client, mta = relaxed_pair(rig)
    begin_content(client, mta)
    client.send(b"hello\r\n.\r\n")
    mta.expect(b"hello\r\n.\r\n")
    assert client.last_words() == LOST
    assert rig.story()["reason"] == "backend_timeout"


def test_the_limit_for_the_answer_to_a_message_is_ten_minutes() -> None:
    assert FINAL_REPLY_S >= 600
