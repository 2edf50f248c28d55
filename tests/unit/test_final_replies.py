"""Which final replies are owed, and what a drain's deadline leaves of a session."""

import pytest

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.final_replies import FinalReply
from proxyshim.smtp.guard import Guard, Rules

ENVELOPE = b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\nDATA\r\n"
MESSAGE = b"hello\r\n.\r\n"
CHUNK = b"BDAT 5 LAST\r\nhello"


def relaxed() -> Guard:
    guard = Guard(Rules())
    guard.from_client(b"EHLO c\r\n")
    guard.from_backend(b"250-mx\r\n250 CHUNKING\r\n")
    return guard


def in_content() -> Guard:
    guard = relaxed()
    guard.from_client(ENVELOPE)
    guard.from_backend(b"250 a\r\n250 b\r\n354 c\r\n")
    guard.to_client.clear()
    return guard


def stop(guard: Guard, unsent: int = 0) -> str | None:
    return guard.finals.stop_client(unsent, Reason.SHUTDOWN, replies.SHUTTING_DOWN)


def delivered(guard: Guard) -> bytes:
    octets = b"".join(guard.to_client)
    guard.to_client.clear()
    return octets


def test_a_message_whose_last_octet_was_not_sent_is_owed_nothing() -> None:
    guard = in_content()
    guard.from_client(MESSAGE)
    assert stop(guard, unsent=1) == "content"
    assert guard.finished
    assert delivered(guard) == replies.SHUTTING_DOWN


def test_a_message_that_was_sent_is_waited_for_and_nothing_after_it() -> None:
    guard = in_content()
    guard.from_client(MESSAGE + ENVELOPE)
    assert stop(guard, unsent=len(ENVELOPE)) == "envelope"
    assert not guard.finished
    guard.from_backend(b"250 queued\r\n250 a\r\n")
    assert guard.finished
    assert delivered(guard) == b"250 queued\r\n" + replies.SHUTTING_DOWN
    assert guard.messages_accepted == 1


@pytest.mark.parametrize("sent", range(len(CHUNK) * 3 + 1))
def test_of_pipelined_chunks_the_complete_ones_are_waited_for(sent: int) -> None:
    guard = relaxed()
    guard.from_client(CHUNK * 3)
    stop(guard, unsent=len(CHUNK) * 3 - sent)
    complete = sent // len(CHUNK)
    guard.from_backend(b"250 ok\r\n" * complete)
    assert guard.finished
    assert delivered(guard).count(b"250 ok\r\n") == complete
    assert guard.messages_accepted == complete


def test_an_empty_last_chunk_counts_from_its_line_on() -> None:
    guard = relaxed()
    guard.from_client(b"NOOP\r\nBDAT 0 LAST\r\nNOOP\r\n")
    stop(guard, unsent=len(b"NOOP\r\n"))
    assert guard.finals.owed is FinalReply.CERTAIN


@pytest.mark.parametrize(
    ("content", "owed"),
    [
        (MESSAGE, FinalReply.CERTAIN),
        (b".\r\n", FinalReply.CERTAIN),
        (b"hello\n.\n", FinalReply.POSSIBLE),
        (b"hello\r\n", FinalReply.NONE),
    ],
)
def test_content_sent_before_the_354_may_hold_a_message(
    content: bytes, owed: FinalReply
) -> None:
    guard = relaxed()
    guard.from_client(ENVELOPE + content)
    assert guard.finals.owed is owed
    assert stop(guard) == (None if owed is not FinalReply.NONE else "envelope")


def test_a_message_sent_before_the_354_is_followed_to_its_end() -> None:
    guard = relaxed()
    guard.from_client(ENVELOPE + MESSAGE)
    assert stop(guard) is None
    guard.from_backend(b"250 a\r\n250 b\r\n354 c\r\n")
    assert stop(guard) is None
    assert not guard.finished
    delivered(guard)
    guard.from_backend(b"250 queued\r\n")
    assert guard.finished
    assert delivered(guard) == b"250 queued\r\n" + replies.SHUTTING_DOWN


@pytest.mark.parametrize("strict", [True, False])
def test_at_the_deadline_our_reply_waits_for_one_to_an_odd_dot(strict: bool) -> None:
    guard = Guard(Rules()) if strict else relaxed()
    for line in ENVELOPE.splitlines(keepends=True):
        guard.from_client(line)
        guard.from_backend(b"354 c\r\n" if line == b"DATA\r\n" else b"250 a\r\n")
    delivered(guard)
    guard.from_client(b"hello\n.\n")
    stop(guard)
    assert not guard.finished
    assert guard.finals.owed is FinalReply.POSSIBLE
    guard.from_backend(b"250 queued\r\n")
    assert guard.finished
    assert delivered(guard) == b"250 queued\r\n" + replies.SHUTTING_DOWN


def test_an_odd_dot_that_was_not_sent_is_waited_for_by_nobody() -> None:
    guard = in_content()
    guard.from_client(b"hello\n.\n")
    stop(guard, unsent=1)
    assert guard.finished
    assert delivered(guard) == replies.SHUTTING_DOWN


def test_the_position_of_a_final_reply_is_news() -> None:
    guard = in_content()
    guard.from_client(MESSAGE + b"NOOP\r\n")
    guard.finals.take_news()
    guard.from_backend(b"250 queued\r\n250 ok\r\n")
    assert b"".join(guard.to_client[: guard.finals.take_news()]) == b"250 queued\r\n"
    assert not guard.finals.has_news
