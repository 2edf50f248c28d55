"""The first greeting on a connection that the backend takes for the client's."""

import pytest

from proxyshim.conveyance.contract import ClientRefused
from proxyshim.conveyance.judgement import judge_first_greeting
from proxyshim.errors import BackendError, Reason
from proxyshim.smtp.replies import Reply, ReplyParser


def reply(text: str) -> Reply:
    parser = ReplyParser()
    parser.feed(text.encode() + b"\r\n")
    found = parser.next()
    assert found is not None
    return found


@pytest.mark.parametrize(
    "text",
    [
        "554 5.7.1 Client host rejected",
        "550 5.7.25 Client host rejected: cannot find your hostname",
        "450 4.7.25 Client host rejected",
        "421 4.7.0 too many connections from 203.0.113.50",
    ],
)
def test_a_refusal_of_the_client_is_the_backends_judgement(text: str) -> None:
    with pytest.raises(ClientRefused) as raised:
        judge_first_greeting(reply(text))
    assert raised.value.reply.raw == text.encode() + b"\r\n"


@pytest.mark.parametrize(
    "text",
    [
        "421 4.3.0 mail.example Server local error",
        "421 Service not available",
        "550 5.7.14 You are not from trusted IP",
        "500 what",
        "250 hello",
    ],
)
def test_any_other_greeting_is_a_failure_of_the_backend(text: str) -> None:
    with pytest.raises(BackendError) as raised:
        judge_first_greeting(reply(text))
    assert raised.value.reason is Reason.BACKEND_GREETING
    assert not isinstance(raised.value, ClientRefused)


def test_a_220_is_a_greeting() -> None:
    judge_first_greeting(reply("220 mail.example ESMTP"))
