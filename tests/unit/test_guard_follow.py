"""Sessions in which the backend judges the client by the client's own address."""

import pytest

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.guard import Rules
from proxyshim.smtp.verbs import Refusal
from tests.unit.transcripts import plays, table

FOLLOWS = Rules(follows_only=True)
UNPROVEN = Rules(follows_only=True, unproven=True)
CHECK = Refusal(replies.CLAIM_NOT_BELIEVED, Reason.CLAIM_NOT_BELIEVED, ends=True)
UNPROVEN_CHECK = Rules(check_only=CHECK, follows_only=True, unproven=True)

ONLY_FOLLOWS = {
    "nothing is hidden or refused": """
        C> EHLO c

        B< 250-mx
        B< 250-XCLIENT ADDR
        B< 250-XFORWARD ADDR
        B< 250-CHUNKING
        B< 250 STARTTLS
        :: relaxed
        C> XCLIENT ADDR=127.0.0.1
        C> XFORWARD ADDR=127.0.0.1

        B< 550 5.7.0 not you
        B< 550 5.7.0 not you
        :: relaxed awaits-nothing
        """,
    "starttls without an ehlo passes": """
        C> STARTTLS

        B< 220 go
        C> "\\x16\\x03\\x01"
        :: opaque
        """,
    "a second header ends the session": """
        C> EHLO c

        B< 250 mx
        C| PROXY TCP4 127.0.0.1 127.0.0.1 1 25
        <- {PROXY_UNWELCOME}
        :: refused proxy_injected
        END proxy_injected
        """,
    "a second header of v2 ends the session": """
        C> NOOP
        C> "\\r\\n"

        B< 250 ok
        B< 500 what?
        C| "\\0\\r\\nQUIT\\n"
        <- {PROXY_UNWELCOME}
        :: refused proxy_injected
        END proxy_injected
        """,
}


@table(ONLY_FOLLOWS)
def test_a_session_that_is_only_followed(transcript: str) -> None:
    plays(transcript, FOLLOWS)


NOT_YET_PROVEN = {
    "the first ehlo proves it": """
        C> EHLO c

        B< 250-mx
        B< 250 XCLIENT ADDR
        :: relaxed
        C> MAIL FROM:<a@a.example>
        """,
    "nothing passes after the first helo": """
        C> HELO c
        C| MAIL FROM:<a@a.example>
        C| RCPT TO:<b@b.example>
        :: unproven idle

        B< 250 mx
        -> MAIL FROM:<a@a.example>
        -> RCPT TO:<b@b.example>
        :: relaxed envelope
        """,
    "a noop comes before any other command": """
        C| MAIL FROM:<a@a.example>
        C| XCLIENT ADDR=127.0.0.1
        -> NOOP
        :: unproven

        B| 250 ok
        -> MAIL FROM:<a@a.example>
        -> XCLIENT ADDR=127.0.0.1
        :: relaxed
        """,
    "a second header is not forwarded": """
        C| PROXY TCP4 127.0.0.1 127.0.0.1 1 25
        -> NOOP

        B| 250 ok
        <- {PROXY_UNWELCOME}
        :: refused proxy_injected
        END proxy_injected
        """,
    "500 to ehlo is the answer to the header": """
        C> EHLO c
        C| MAIL FROM:<a@a.example>

        B| 500 5.5.2 what?
        <- {BACKEND_UNAVAILABLE}
        END header_not_understood
        """,
    "502 to helo is the answer to the header": """
        C> HELO c

        B| 502 unimplemented
        <- {BACKEND_UNAVAILABLE}
        END header_not_understood
        """,
    "503 to a noop is the answer to the header": """
        C| RSET
        -> NOOP

        B| 503 PROXY needed
        <- {BACKEND_UNAVAILABLE}
        END header_not_understood
        """,
    "any failure of a noop shows the same": """
        C| RSET
        -> NOOP

        B| 554 no
        <- {BACKEND_UNAVAILABLE}
        END header_not_understood
        """,
    "an answer before any command": """
        B| 500 5.5.2 what?
        <- {BACKEND_UNAVAILABLE}
        END header_not_understood
        """,
    "a verdict on the client's name proves nothing": """
        C> EHLO bad

        B< 550 bad name
        :: unproven
        C> HELO good

        B< 250 mx
        :: relaxed
        """,
    "a farewell is the backend's own": """
        C> EHLO c

        B< 421 4.7.0 too many
        :: backend-quitting

        !! the backend closes
        END client_refused
        """,
    "a drain before the proof": """
        C> EHLO c

        !! drain

        B< 250 mx
        <- {SHUTTING_DOWN}
        END shutdown
        """,
    "an end of file after the first line": """
        C> EHLO c
        C| QUIT

        !! the client closes
        :: not-drained

        B< 250 mx
        -> QUIT
        :: drained
        """,
}


@table(NOT_YET_PROVEN)
def test_a_session_after_a_header(transcript: str) -> None:
    plays(transcript, UNPROVEN)


@pytest.mark.parametrize("first", ["EHLO c", "HELO c"])
def test_a_check_after_a_header_is_strict(first: str) -> None:
    plays(
        f"""
        C> {first}

        B< 250 mx
        :: strict
        C| MAIL FROM:<a@a.example>
        <- {{CLAIM_NOT_BELIEVED}}
        :: refused claim_not_believed
        END claim_not_believed
        """,
        UNPROVEN_CHECK,
    )
