"""When the clock ends a relay: the rules of the final reply, of silence and of a drain."""

import pytest

from proxyshim.errors import Reason
from proxyshim.session.timing import (
    FINAL_REPLY_S,
    POSSIBLE_REPLY_S,
    QUIT_GRACE_S,
    RelayClock,
    RelayLimits,
    TimedEnd,
)
from proxyshim.smtp import replies
from proxyshim.smtp.final_replies import FinalReply
from proxyshim.smtp.guard import Guard, Rules

START = 1_000.0
LIMITS = RelayLimits(
    idle_timeout_s=5.0, drain_timeout_s=60.0, drain_opaque_timeout_s=20.0
)
ENVELOPE = b"MAIL FROM:<a@a.example>\r\n", b"RCPT TO:<b@b.example>\r\n", b"DATA\r\n"
SHUTDOWN = TimedEnd(Reason.SHUTDOWN, replies.SHUTTING_DOWN)


class Relayed:
    """A guard with its clock, fed as the relay feeds them."""

    def __init__(self, *, relaxed: bool = True) -> None:
        self.guard = Guard(Rules())
        self.clock = RelayClock(LIMITS, START)
        self.client(START, b"EHLO c\r\n")
        right = b"" if relaxed else b"250-XCLIENT ADDR\r\n"
        self.backend(START, b"250-mx\r\n" + right + b"250 CHUNKING\r\n")

    def client(self, at: float, *lines: bytes) -> None:
        self.clock.client_at, self.clock.client_spoke_last = at, True
        for line in lines:
            self.guard.from_client(line)

    def backend(self, at: float, *lines: bytes) -> None:
        self.clock.backend_at, self.clock.client_spoke_last = at, False
        for line in lines:
            was_opaque = self.guard.is_opaque
            self.guard.from_backend(line)
            if self.guard.is_opaque and not (was_opaque or self.guard.finals.is_ahead):
                self.clock.forget_client()

    def begin_content(self) -> None:
        self.client(START, *ENVELOPE)
        self.backend(START, b"250 a\r\n", b"250 b\r\n", b"354 c\r\n")

    def begin_tls(self) -> None:
        self.client(START, b"STARTTLS\r\n")
        self.backend(START, b"220 go\r\n")

    def ends_at(self) -> tuple[float, TimedEnd]:
        """Return when the clock ends the relay, and how, if nothing more happens."""
        now = START
        while (end := self.clock.decide(self.guard, now)) is None:
            then = self.clock.next_check(self.guard, now)
            assert then > now
            now = then
        return now - START, end


def test_silence_ends_a_session() -> None:
    after_s, end = Relayed().ends_at()
    assert after_s == 5.0
    assert end == TimedEnd(Reason.CLIENT_IDLE, replies.CLIENT_TOO_SLOW)


def test_a_certain_final_reply_has_ten_minutes() -> None:
    relay = Relayed()
    relay.begin_content()
    relay.client(START, b"hello\r\n.\r\n")
    assert relay.guard.finals.owed is FinalReply.CERTAIN
    after_s, end = relay.ends_at()
    assert after_s == FINAL_REPLY_S
    assert end == TimedEnd(Reason.BACKEND_TIMEOUT, replies.BACKEND_LOST)


@pytest.mark.parametrize("relaxed", [True, False])
@pytest.mark.parametrize("dot", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r\n.\0\r\n"])
def test_a_possible_final_reply_has_ten_minutes_and_is_not_replaced_by_ours(
    dot: bytes, relaxed: bool
) -> None:
    relay = Relayed(relaxed=relaxed)
    relay.begin_content()
    relay.client(START, b"hello" + dot)
    assert relay.guard.finals.owed is FinalReply.POSSIBLE
    assert relay.ends_at() == (FINAL_REPLY_S, TimedEnd(Reason.CLIENT_IDLE, b""))


def test_after_the_final_reply_the_ordinary_limit_counts_again() -> None:
    relay = Relayed()
    relay.begin_content()
    relay.client(START, b"hello\n.\n")
    assert relay.clock.next_check(relay.guard, START) <= START + 5.0
    relay.backend(START + 1, b"250 queued\r\n")
    assert relay.ends_at()[0] == 6.0


def test_our_own_reply_waits_a_minute_for_one_that_is_possible() -> None:
    relay = Relayed(relaxed=False)
    relay.begin_content()
    relay.client(START, b"hello\n.\nXCLIENT ADDR=1.2.3.4\r\n")
    assert not relay.guard.finished
    assert relay.clock.note_ending(relay.guard, START)
    assert relay.ends_at() == (
        POSSIBLE_REPLY_S,
        TimedEnd(Reason.VERB_IN_CONTENT, b""),
    )


# Inside TLS.


def test_in_tls_a_final_reply_is_possible_while_the_client_spoke_last() -> None:
    relay = Relayed()
    relay.begin_tls()
    relay.client(START, b"a record")
    assert relay.ends_at()[0] == FINAL_REPLY_S


def test_in_tls_a_final_reply_is_possible_for_a_minute_after_the_clients_last_octet() -> (
    None
):
    relay = Relayed()
    relay.begin_tls()
    relay.client(START, b"a record")
    relay.backend(START + 1, b"one of two replies")
    assert relay.ends_at()[0] == POSSIBLE_REPLY_S


def test_right_after_starttls_nothing_is_owed() -> None:
    relay = Relayed()
    relay.begin_tls()
    assert relay.ends_at()[0] == 5.0


def test_a_message_before_lost_track_is_not_forgotten() -> None:
    """The backend answers RCPT with a 220, while it owes the reply to an earlier message."""
    relay = Relayed()
    relay.client(START, b"NOOP\r\nBDAT 1 LAST\r\nx")
    relay.backend(START, b"220 what?\r\n")
    assert relay.guard.is_opaque
    assert relay.ends_at()[0] == POSSIBLE_REPLY_S


# A drain.


def test_a_drain_waits_ten_minutes_after_its_deadline_for_a_certain_reply() -> None:
    relay = Relayed()
    relay.begin_content()
    relay.client(START + 50, b"hello\r\n.\r\n")
    relay.clock.start_drain(START)
    assert relay.ends_at()[0] <= 50 + FINAL_REPLY_S
    relay.client(START + 70, b"")
    assert relay.ends_at()[0] == 60 + FINAL_REPLY_S


def test_a_drain_waits_for_a_possible_reply_as_long_as_configured() -> None:
    relay = Relayed()
    relay.begin_content()
    relay.client(START, b"hello\n.\n")
    relay.clock.start_drain(START)
    assert relay.ends_at() == (80.0, TimedEnd(Reason.SHUTDOWN, b"", "content"))


def test_a_drain_in_tls_ends_with_the_configured_time_at_the_latest() -> None:
    relay = Relayed()
    relay.begin_tls()
    relay.client(START + 59, b"a record")
    relay.backend(START + 59.5, b"a record")
    relay.clock.start_drain(START)
    assert relay.ends_at() == (80.0, TimedEnd(Reason.SHUTDOWN, b"", "opaque"))


def test_a_drain_in_tls_ends_when_no_reply_is_possible_any_more() -> None:
    relay = Relayed()
    relay.begin_tls()
    relay.client(START - 20, b"a record")
    relay.backend(START, b"a record")
    relay.clock.start_drain(START)
    after_s, _ = relay.ends_at()
    assert 40.0 <= after_s <= 43.0


def test_a_drain_right_after_starttls_is_short() -> None:
    relay = Relayed()
    relay.begin_tls()
    relay.clock.start_drain(START)
    after_s, end = relay.ends_at()
    assert after_s <= 3.0
    assert end == SHUTDOWN


# A backend that has sent its 221.


def test_a_backend_that_does_not_close_after_its_221_is_left() -> None:
    relay = Relayed()
    relay.client(START, b"QUIT\r\n")
    relay.backend(START, b"221 bye\r\n")
    relay.clock.note_quit(START)
    assert relay.ends_at() == (QUIT_GRACE_S, TimedEnd(None, b""))
