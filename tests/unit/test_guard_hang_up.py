"""A backend that hangs up: it has judged the client, or it has failed."""

import pytest

from proxyshim.errors import Reason
from proxyshim.smtp.guard import Guard, Rules
from proxyshim.smtp.hang_up import read_farewell
from proxyshim.smtp.replies import Reply
from tests.unit.transcripts import CONTENT, RELAXED, STRICT, plays, table

JUDGED = {
    "a 5xx to the last command": """
        C> MAIL FROM:<>

        B< 521 5.7.1 go away

        !! the backend closes
        END client_refused
        """,
    "a 5xx of many lines": """
        C> MAIL FROM:<>

        B< 554-5.7.1 you are listed
        B< 554 5.7.1 see there

        !! the backend closes
        END client_refused
        """,
    "a 5xx to the first of several commands": """
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        C> NOOP

        B< 554 5.5.0 pipelining

        !! the backend closes
        END client_refused
        """,
    "a 5xx to which the client answers with QUIT": """
        C> MAIL FROM:<>

        B< 550 5.7.1 no

        C> QUIT

        !! the backend closes
        END client_refused
        """,
    "a 5xx to a message": CONTENT
    + """
        C> .

        B< 554 5.7.1 spam

        !! the backend closes
        END client_refused
        """,
    "a 5xx and a reset with a command unread": """
        C> MAIL FROM:<>

        B< 521 5.7.1 go away

        C> RSET

        !! the backend resets
        END client_refused
        """,
    "a 421 about the client": """
        C> NOOP

        B< 421 4.7.0 too many errors

        !! the backend closes
        END client_refused
        """,
    "a 421 and commands that were on their way": """
        C> NOOP

        B< 421 4.7.0 too many errors

        C> RSET
        C> MAIL FROM:<>

        !! the backend closes
        END client_refused
        """,
    "a 421 without an enhanced code after a command": """
        C> NOOP

        B< 421 enough

        !! the backend closes
        END client_refused
        """,
    "a 421 before our own reply is due": """
        C> NOOP
        C| XFORWARD NAME=a
        :: refused xforward_injected

        B< 421 4.7.0 too many errors

        !! the backend closes
        END client_refused
        """,
    "a 421 and a command that we refuse": """
        C> NOOP

        B< 421 4.7.0 too many errors

        C| XFORWARD NAME=a
        :: refused xforward_injected

        !! the backend closes
        END client_refused
        """,
}

FAILED = {
    "a 421 about the backend": """
        C> NOOP

        B< 421 4.3.2 shutting down

        !! the backend closes
        END backend_closed
        """,
    "a 421 of many lines about the backend": """
        C> NOOP

        B< 421-4.3.0 no space
        B< 421 4.3.0 try later

        !! the backend closes
        END backend_closed
        """,
    "a command after a 5xx is not answered": """
        C> RCPT TO:<b@b.example>

        B< 550 5.1.1 unknown

        C> MAIL FROM:<>

        !! the backend closes
        <- {BACKEND_LOST}
        END backend_closed
        """,
    "a message after a 5xx is not answered": """
        C> MAIL FROM:<>
        C> RCPT TO:<a@b.example>
        C> RCPT TO:<b@b.example>

        B< 250 ok
        B< 550 5.1.1 unknown
        B< 250 ok

        C> DATA

        B< 354 go on

        C> "a\\r\\n.\\r\\n"

        !! the backend closes
        <- {BACKEND_LOST}
        END backend_closed
        """,
    "another 4xx": """
        C> MAIL FROM:<>

        B< 451 4.7.1 greylisted

        !! the backend closes
        <- {BACKEND_LOST}
        END backend_closed
        """,
    "a reset after a 250": """
        C> NOOP

        B< 250 ok

        C> NOOP

        !! the backend resets
        <- {BACKEND_LOST}
        END backend_closed
        """,
    "a 5xx that another reply has followed": """
        C> RCPT TO:<b@b.example>
        C> RSET

        B< 550 5.1.1 unknown
        B< 250 ok

        !! the backend closes
        <- {BACKEND_LOST}
        END backend_closed
        """,
}

BEFORE_THE_CLIENT = {
    "a 421 without an enhanced code": """
        B< 421 too busy

        !! the backend closes
        END backend_closed
        """,
    "a 421 about the backend": """
        B< 421 4.3.2 too busy

        !! the backend closes
        END backend_closed
        """,
    "a 421 about the client": """
        B< 421 4.4.2 timeout

        !! the backend closes
        END client_refused
        """,
    "a 5xx that nobody asked for": """
        B< 554 5.5.0 you talked too early

        !! the backend closes
        END client_refused
        """,
}

OTHERWISE = {
    "the client left after a 5xx": """
        C> MAIL FROM:<>

        B< 550 5.7.1 no

        !! the client closes

        !! the backend closes
        """,
    "a drain that waits for a reply gets a 421": """
        C> NOOP

        !! drain
        :: ending

        B< 421 4.7.0 too many errors
        END shutdown

        !! the backend closes
        END shutdown
        """,
}


@table(JUDGED)
@pytest.mark.parametrize("start", [RELAXED, STRICT], ids=["relaxed", "strict"])
def test_a_hang_up_after_a_refusal_is_a_judgement(start: str, transcript: str) -> None:
    plays(start + transcript)


@table(FAILED)
@pytest.mark.parametrize("start", [RELAXED, STRICT], ids=["relaxed", "strict"])
def test_any_other_hang_up_is_a_failure(start: str, transcript: str) -> None:
    plays(start + transcript)


@table(BEFORE_THE_CLIENT)
def test_a_hang_up_before_the_client_has_spoken(transcript: str) -> None:
    # In a strict session such a reply ends the session without waiting for the hang-up.
    steps = transcript.replace("\n\n        !! the backend closes", "")
    plays(steps)


@table(OTHERWISE)
def test_a_hang_up_that_changes_nothing(transcript: str) -> None:
    plays(RELAXED + transcript)


def test_a_421_is_kept_for_the_log() -> None:
    guard = Guard(Rules())
    guard.from_backend(b"421 4.3.2 mx.test shutting down\r\n")
    assert guard.farewell == "closed with: 421 4.3.2 mx.test shutting down"


@pytest.mark.parametrize(
    ("text", "spoken", "reason"),
    [
        ("421 4.3.0 x", True, Reason.BACKEND_CLOSED),
        ("421 4.3.2", False, Reason.BACKEND_CLOSED),
        ("421-4.3.2 x", False, Reason.BACKEND_CLOSED),
        ("421 4.30.2 x", False, Reason.CLIENT_REFUSED),
        ("421 4.7.0 x", False, Reason.CLIENT_REFUSED),
        ("421 5.7.1 x", False, Reason.CLIENT_REFUSED),
        ("421 4.7 x", False, Reason.BACKEND_CLOSED),
        ("421 4.7.0x", False, Reason.BACKEND_CLOSED),
        ("421 x 4.3.2", True, Reason.CLIENT_REFUSED),
        ("421", False, Reason.BACKEND_CLOSED),
        ("421", True, Reason.CLIENT_REFUSED),
    ],
)
def test_what_a_421_means(text: str, spoken: bool, reason: Reason) -> None:
    reply = Reply(421, text.encode() + b"\r\n")
    assert read_farewell(reply, client_has_spoken=spoken).reason is reason
