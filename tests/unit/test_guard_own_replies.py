"""Our own replies: in their place, never after the backend's last one, and not without end."""

from collections.abc import Callable

import pytest

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.dialogue import MAX_REFUSALS
from proxyshim.smtp.guard import Guard, Rules
from tests.unit.transcripts import STRICT, plays, table

PLACE = {
    "no own reply follows a 221": """
        C> QUIT
        C| XCLIENT
        :: refused xclient_injected

        B< 221 bye

        !! the backend closes
        :: awaits-nothing
        """,
    "no own reply follows a 221 later": """
        C> QUIT

        B< 221 bye

        C| XCLIENT
        :: refused xclient_injected

        !! a moment passes

        !! drain
        END shutdown
        """,
    "no own reply follows a 421": """
        C> NOOP
        C| XCLIENT
        C| PROXY UNKNOWN
        :: refused xclient_injected proxy_injected

        B< 421 4.7.0 too many errors
        END proxy_injected
        """,
    "no own reply follows a 5xx after which the backend hangs up": """
        C> MAIL FROM:<>
        C| XCLIENT
        :: refused xclient_injected

        B< 554 5.5.0 Error: SMTP protocol synchronization

        !! the backend closes
        END client_refused
        """,
    "no own reply follows a 5xx in place of several replies": """
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>

        B< 554 5.5.0 Error: SMTP protocol synchronization

        !! the backend closes
        END client_refused
        """,
    "no own reply follows a 5xx that nobody asked for": """
        B< 521 5.7.1 go away
        END client_refused
        """,
    "a session that was ending ends without our own reply after such a 5xx": """
        C> MAIL FROM:<>

        !! drain
        :: ending

        B< 521 no

        !! the backend closes
        END shutdown
        """,
    "our own reply follows a 5xx if the backend does not hang up": """
        C> MAIL FROM:<>
        C| XCLIENT
        :: refused xclient_injected

        B< 554 no

        !! a moment passes
        <- {NOT_AUTHORIZED}
        """,
    "our own reply goes before the backend's next one": """
        C> MAIL FROM:<>
        C| XCLIENT
        C> RSET
        :: refused xclient_injected

        B< 554 no
        <- {NOT_AUTHORIZED}
        B< 250 ok
        """,
    "a command waits no longer than our own reply": """
        C> MAIL FROM:<>
        C| XCLIENT
        C| EHLO c
        :: refused xclient_injected

        B< 554 no

        !! a moment passes
        <- {NOT_AUTHORIZED}
        -> EHLO c
        """,
    "a command after a 5xx makes the backend's end a failure": """
        C> MAIL FROM:<>

        B< 554 no

        C> RSET

        !! the backend closes
        <- {BACKEND_LOST}
        END backend_closed
        """,
    "a refusal overtakes nothing when the session is given up": """
        C> NOOP
        C| BDAT 5
        :: refused bdat_refused
        :: ending

        !! timeout
        <- {BACKEND_LOST}
        END bdat_refused
        """,
    "a refusal overtakes nothing when the backend is lost": """
        C> NOOP
        C| XCLIENT
        :: refused xclient_injected

        !! the backend closes
        <- {BACKEND_LOST}
        END backend_closed
        """,
}


@table(PLACE)
def test_our_own_replies_keep_their_place(transcript: str) -> None:
    plays(STRICT + transcript)


def fed(mode: str) -> Guard:
    guard = Guard(Rules())
    guard.from_client(b"EHLO c\r\n")
    keyword = b"XCLIENT" if mode == "strict" else b"SIZE"
    guard.from_backend(b"250-mx\r\n250-%b\r\n250 DSN\r\n" % keyword)
    guard.to_client.clear()
    return guard


def whole(guard: Guard, octets: bytes) -> None:
    guard.from_client(octets)


def line_by_line(guard: Guard, octets: bytes) -> None:
    for line in octets.splitlines(keepends=True):
        guard.from_client(line)


@pytest.mark.parametrize("feed", [whole, line_by_line])
@pytest.mark.parametrize("mode", ["strict", "relaxed"])
def test_a_client_is_refused_twenty_times_and_then_disconnected(
    mode: str, feed: Callable[[Guard, bytes], None]
) -> None:
    guard = fed(mode)
    feed(guard, b"XCLIENT a=b\r\n" * 10 + b"XFORWARD a=b\r\n" * 5_000)
    assert guard.finished
    assert guard.end_reason is Reason.TOO_MANY_REFUSALS
    assert b"".join(guard.to_client) == (
        replies.NOT_AUTHORIZED * MAX_REFUSALS + replies.TOO_MANY_REFUSALS
    )
    assert MAX_REFUSALS == 20
    assert len(guard.refused) == MAX_REFUSALS + 1


def test_refusals_count_whatever_is_refused() -> None:
    guard = Guard(Rules(starttls_offered=True))
    guard.from_client(b"STARTTLS\r\nAUTH PLAIN\r\nXCLIENT\r\n" * 7)
    assert guard.end_reason is Reason.TOO_MANY_REFUSALS


def test_twenty_refusals_end_nothing() -> None:
    guard = fed("relaxed")
    guard.from_client(b"XCLIENT\r\nNOOP\r\n" * MAX_REFUSALS)
    guard.from_backend(b"250 ok\r\n" * MAX_REFUSALS)
    assert guard.end_reason is None
