"""Health checks that proxyshim answers itself."""

import pytest

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.checking import CheckAnswers
from proxyshim.smtp.verbs import Refusal

REFUSAL = Refusal(replies.NO_CLIENT_ADDRESS, Reason.NO_CLIENT_ADDRESS, ends=True)
CHECK = b"EHLO lb.example\r\nNOOP\r\nRSET\r\nHELO x\r\nQUIT\r\nNOOP\r\n"
ANSWERS = b"250 mx.example\r\n%b%b250 mx.example\r\n%b" % (
    replies.CHECK_OK,
    replies.CHECK_OK,
    replies.CHECK_CLOSING,
)


@pytest.mark.parametrize("size", [1, 7, len(CHECK)])
def test_the_five_commands_are_answered_in_any_split(size: int) -> None:
    answers = CheckAnswers(REFUSAL, "mx.example")
    pieces = [CHECK[at : at + size] for at in range(0, len(CHECK), size)]
    assert b"".join(answers.read(piece) for piece in pieces) == ANSWERS
    assert answers.is_finished
    assert answers.end_reason is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"MAIL FROM:<a@a.example>\r\n", Reason.NO_CLIENT_ADDRESS),
        (b"STARTTLS\r\n", Reason.NO_CLIENT_ADDRESS),
        (b"XCLIENT ADDR=127.0.0.1\r\n", Reason.XCLIENT_INJECTED),
        (b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", Reason.PROXY_INJECTED),
        (b"x" * 20_000, Reason.COMMAND_TOO_LONG),
    ],
)
def test_any_other_command_ends_the_check(line: bytes, reason: Reason) -> None:
    answers = CheckAnswers(REFUSAL, "mx.example")
    reply = answers.read(line)
    assert reply.count(b"\r\n") == 1
    assert reply[:1] in b"45"
    assert answers.end_reason is reason
