"""How sessions end: which reply is the last, what is still delivered, and what is bounded."""

from collections.abc import Callable

import pytest

from proxyshim.errors import BackendError, Reason
from proxyshim.smtp import replies
from proxyshim.smtp.dialogue import MAX_OWED
from proxyshim.smtp.guard import MAX_HELD_OCTETS, Guard, Mode, Rules, Transaction
from proxyshim.smtp.relaxed import MAX_KEPT_OCTETS
from tests.unit.transcripts import CONTENT, RELAXED, STRICT, plays, table

DRAIN = {
    "a drain between commands ends the session at once": """
        !! drain
        <- {SHUTTING_DOWN}
        :: can-quit
        END shutdown
        """,
    "a drain waits for the replies that are owed": """
        C> NOOP
        C> RSET

        !! drain
        :: ending stops-reading cannot-quit

        B< 250 ok

        B< 250 ok
        <- {SHUTTING_DOWN}
        :: can-quit
        END shutdown
        """,
    "after a drain began the client is not read any more": """
        C> NOOP

        !! drain

        C| QUIT

        B< 250 ok
        <- {SHUTTING_DOWN}
        END shutdown

        C| QUIT
        END shutdown

        B| 221 bye
        END shutdown
        """,
    "after a drain began what was held never passes": """
        C> NOOP
        C| EHLO c

        !! drain

        !! the client closes
        :: drained

        B< 250 ok
        <- {SHUTTING_DOWN}
        END shutdown
        """,
    "a drain waits for the reply to a final dot": CONTENT
    + """
        C> .

        !! drain
        :: ending final_reply

        B< 250 queued
        <- {SHUTTING_DOWN}
        :: idle accepted=1 can-quit
        END shutdown
        """,
    "a drain waits for our own reply": """
        C> NOOP
        C| XCLIENT
        :: refused xclient_injected

        !! drain

        B< 250 ok
        <- {NOT_AUTHORIZED}
        <- {SHUTTING_DOWN}
        END shutdown
        """,
    "a drain in content ends the session without QUIT": CONTENT
    + """
        C> Subject: a

        !! drain
        <- {SHUTTING_DOWN}
        :: cannot-quit
        END shutdown
        """,
    "the second of two drains changes nothing": """
        !! drain
        <- {SHUTTING_DOWN}
        END shutdown

        !! drain
        END shutdown
        """,
    "a drain ends when the backend closes while a reply is owed": """
        C> NOOP
        C> RSET

        !! drain
        :: ending

        B< 250 ok

        !! the backend closes
        <- {SHUTTING_DOWN}
        END shutdown
        """,
}

BACKEND_CLOSES = {
    "without any reply": """
        !! the backend closes
        <- {BACKEND_LOST}
        END backend_closed
        """,
    "one reply of our own replaces all that are owed": """
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        C| XCLIENT
        :: refused xclient_injected

        B< 250 ok

        !! the backend closes
        <- {BACKEND_LOST}
        END backend_closed
        """,
    "half a reply is not delivered": """
        C> NOOP

        B| 250-o

        !! the backend closes
        <- {BACKEND_LOST}
        END backend_closed
        """,
    "in the middle of content": CONTENT
    + """
        C> Subject: a

        !! the backend closes
        <- {BACKEND_LOST}
        :: cannot-quit
        END backend_closed
        """,
    "before the reply to a final dot": CONTENT
    + """
        C> .

        !! the backend closes
        <- {BACKEND_LOST}
        :: accepted=0
        END backend_closed
        """,
    "after the client closed": """
        C> NOOP

        !! the client closes

        B< 250 ok

        !! the backend closes
        """,
    "after the client closed but a reply is owed": """
        C> NOOP

        !! the client closes

        !! the backend closes
        <- {BACKEND_LOST}
        END backend_closed
        """,
    "after a 221": """
        C> QUIT

        B< 221 bye

        !! the backend closes
        """,
    "after a 421": """
        C> MAIL FROM:<>

        B< 421 too many connections

        !! the backend closes
        END client_refused
        """,
}

TIMEOUT = {
    "no reply comes": """
        C> NOOP
        :: awaits-backend

        !! timeout
        <- {BACKEND_LOST}
        END backend_timeout
        """,
    "no reply comes after we decided to end the session": """
        C> NOOP
        C| PROXY UNKNOWN
        :: refused proxy_injected
        :: ending

        !! timeout
        <- {PROXY_UNWELCOME}
        END proxy_injected
        """,
}

CLIENT_CLOSES = {
    "everything that it sent was forwarded": """
        C> QUIT

        !! the client closes
        :: drained awaits-backend

        B< 221 bye
        """,
    "held lines are still forwarded": """
        C> EHLO c
        C| NOOP
        C| "RSE"

        !! the client closes
        :: not-drained

        B< 250 mx
        -> NOOP
        :: drained

        B< 250 ok
        :: can-quit
        """,
    "unfinished content is never completed": CONTENT
    + """
        C> "Subject: a\\r\\n.\\r"

        !! the client closes
        :: drained content cannot-quit
        """,
}

CAN_QUIT = {
    "after the reply to EHLO": STRICT + ":: can-quit",
    "not while a reply is owed": "C> NOOP\n:: cannot-quit",
    "not in content": CONTENT + ":: cannot-quit",
    "in an envelope": "C> MAIL FROM:<>\n\nB< 250 ok\n:: envelope can-quit",
    "not where an AUTH answer is expected": STRICT
    + """
        C> AUTH LOGIN

        B< 334 VXNlcm5hbWU6
        :: cannot-quit idle

        !! drain
        <- {SHUTTING_DOWN}
        :: cannot-quit
        END shutdown
        """,
    "not in a line that was forwarded in part": RELAXED + 'C> "NOO"\n:: cannot-quit',
    "not in a chunk": RELAXED + 'C> "BDAT 3\\r\\na"\n\nB< 503 no\n:: cannot-quit',
    "not after a reply out of place": """
        C> RCPT TO:<b@b.example>

        B< 354 go on
        <- {OUT_OF_STEP}
        :: cannot-quit
        END reply_out_of_place
        """,
}

TRANSACTION = {
    "MAIL begins a transaction": """
        C> MAIL FROM:<>
        :: envelope

        B< 250 ok
        :: envelope
        """,
    "a refused MAIL begins none": """
        C> MAIL FROM:<>

        B< 550 no
        :: idle
        """,
    "a second MAIL that is refused changes nothing": """
        C> MAIL FROM:<>
        C> MAIL FROM:<>

        B< 250 ok
        B< 503 nested
        :: envelope
        """,
    "a refused MAIL before another MAIL": """
        C> MAIL FROM:<>
        C> MAIL FROM:<>

        B< 550 no
        :: envelope
        B< 250 ok
        :: envelope
        """,
    "RSET ends a transaction": """
        C> MAIL FROM:<>
        C> RSET

        B< 250 ok
        :: envelope

        B< 250 ok
        :: idle
        """,
    "RSET before another MAIL": """
        C> MAIL FROM:<>
        C> RSET
        C> MAIL FROM:<>

        B< 250 ok
        B< 250 ok
        :: envelope

        B< 550 no
        :: idle
        """,
    "EHLO ends a transaction": """
        C> MAIL FROM:<>

        B< 250 ok

        C> EHLO c
        :: envelope

        B< 250 mx
        :: idle
        """,
    "a refused DATA does not end a transaction": """
        C> MAIL FROM:<>
        C> DATA

        B< 250 ok
        B< 554 no valid recipients
        :: envelope
        """,
    "a whole transaction": CONTENT
    + """
        C> Subject: a
        :: content accepted=0

        C> .
        :: final_reply

        B< 250 queued
        :: idle accepted=1
        """,
    "two transactions": CONTENT
    + """
        C> .

        B< 451 later
        :: idle accepted=0
        """
    + CONTENT
    + """
        C> .

        B< 250 queued
        :: idle accepted=1
        """,
}


@table(DRAIN)
def test_the_reply_that_ends_a_session_overtakes_nothing(transcript: str) -> None:
    plays(transcript)
    if "EHLO" not in transcript:
        plays(RELAXED + transcript)


@table(BACKEND_CLOSES)
def test_the_backend_closes_the_connection(transcript: str) -> None:
    plays(transcript)
    plays(RELAXED + transcript)


@table(TIMEOUT)
def test_one_reply_replaces_those_that_will_not_come(transcript: str) -> None:
    plays(transcript)
    plays(RELAXED + transcript)


@table(CLIENT_CLOSES)
def test_the_client_closes_the_connection(transcript: str) -> None:
    plays(transcript)


@table(CAN_QUIT)
def test_can_quit_is_true_only_where_the_backend_expects_a_command(
    transcript: str,
) -> None:
    plays(transcript)


@table(TRANSACTION)
def test_guard_follows_the_transaction(transcript: str) -> None:
    plays(transcript)
    plays(RELAXED + transcript)


# Bounds.


def relaxed() -> Guard:
    guard = Guard(Rules())
    guard.from_client(b"EHLO c\r\n")
    guard.from_backend(b"250-mx\r\n250 CHUNKING\r\n")
    assert guard.mode is Mode.RELAXED
    return emptied(guard)


def strict() -> Guard:
    return Guard(Rules())


def emptied(guard: Guard) -> Guard:
    guard.to_backend.clear()
    guard.to_client.clear()
    return guard


def sent(guard: Guard) -> bytes:
    octets = b"".join(guard.to_backend)
    guard.to_backend.clear()
    return octets


@pytest.mark.parametrize("start", [strict, relaxed])
def test_no_more_commands_are_forwarded_than_replies_may_be_owed(
    start: Callable[[], Guard],
) -> None:
    guard = start()
    guard.from_client(b"NOOP\r\n" * (MAX_OWED + 500) + b"XCLI")
    assert sent(guard) == b"NOOP\r\n" * MAX_OWED
    assert not guard.wants_client
    guard.from_backend(b"250 ok\r\n")
    assert sent(guard) == b"NOOP\r\n"
    assert not guard.wants_client
    guard.from_backend(b"250 ok\r\n" * 600)
    assert sent(guard) == b"NOOP\r\n" * 499
    assert guard.wants_client
    guard.from_client(b"ENT\r\n")
    assert sent(guard) == b""
    guard.from_backend(b"250 ok\r\n" * 899)
    assert not guard.awaits_backend
    delivered = b"".join(guard.to_client)
    assert delivered == b"250 ok\r\n" * 1500 + replies.NOT_AUTHORIZED


@pytest.mark.parametrize("start", [strict, relaxed])
def test_our_own_replies_count_among_those_owed(start: Callable[[], Guard]) -> None:
    guard = start()
    guard.from_client(b"NOOP\r\n" * (MAX_OWED - 1))
    assert guard.wants_client
    guard.from_client(b"XCLIENT\r\n")
    assert not guard.wants_client
    guard.from_backend(b"250 ok\r\n" * (MAX_OWED - 1))
    assert guard.wants_client
    assert b"".join(guard.to_client).count(replies.NOT_AUTHORIZED) == 1


def test_the_client_is_not_read_while_too_many_commands_are_held() -> None:
    guard = strict()
    guard.from_client(b"EHLO c\r\n")
    for _ in range(6):
        guard.from_client(b"NOOP " + b"x" * 9993 + b"\r\n")
        assert guard.wants_client
    guard.from_client(b"NOOP " + b"x" * 9993 + b"\r\n")
    assert not guard.wants_client
    assert sent(guard) == b"EHLO c\r\n"
    guard.from_backend(b"250 mx\r\n")
    assert guard.wants_client
    assert MAX_HELD_OCTETS <= len(sent(guard)) < MAX_HELD_OCTETS + 10_000


def test_only_the_start_of_an_endless_xclient_line_is_held() -> None:
    guard = relaxed()
    guard.from_client(b"XCLIENT ")
    for _ in range(10):
        guard.from_client(b"x" * 10_000)
        assert guard.wants_client
    guard.from_client(b"\r\nNOOP\r\n")
    assert sent(guard) == b"NOOP\r\n"
    assert b"".join(guard.to_client) == replies.NOT_AUTHORIZED


def test_tracking_stops_when_too_much_follows_data_before_its_reply() -> None:
    guard = relaxed()
    guard.from_client(b"DATA\r\n" + b"x" * MAX_KEPT_OCTETS)
    assert guard.mode is Mode.RELAXED
    guard.from_client(b"y")
    assert guard.is_opaque
    assert sent(guard) == b"DATA\r\n" + b"x" * MAX_KEPT_OCTETS + b"y"


def test_tracking_stops_when_too_many_commands_follow_a_refused_data() -> None:
    guard = relaxed()
    commands = b"NOOP\r\n" * (MAX_OWED + 1)
    guard.from_client(b"DATA\r\n" + commands)
    guard.from_backend(b"503 no\r\n250 o")
    assert guard.mode is Mode.OPAQUE
    assert sent(guard) == b"DATA\r\n" + commands
    assert b"".join(guard.to_client) == b"503 no\r\n250 o"


def test_what_follows_an_odd_dot_is_content_once_it_exceeds_the_kept_copy() -> None:
    guard = relaxed()
    guard.from_client(b"DATA\r\n")
    guard.from_backend(b"354 go on\r\n")
    guard.from_client(b".\n")
    for _ in range(MAX_KEPT_OCTETS // 1000 + 1):
        guard.from_client(b"XCLIENT" + b"x" * 991 + b"\r\n")
    assert guard.transaction is Transaction.CONTENT
    guard.from_client(b".\r\n")
    guard.from_backend(b"250 queued\r\n")
    assert guard.messages_accepted == 1


# A backend that does not speak SMTP.


def test_bytes_that_are_not_a_reply_are_a_backend_failure_and_end_with_421() -> None:
    guard = strict()
    guard.from_client(b"NOOP\r\nRSET\r\n")
    with pytest.raises(BackendError) as caught:
        guard.from_backend(b"250 ok\r\nhello\r\n")
    assert caught.value.reason is Reason.BACKEND_BAD_REPLY
    guard.abandon(caught.value.reason, replies.BACKEND_LOST)
    assert guard.finished
    assert b"".join(guard.to_client) == b"250 ok\r\n" + replies.BACKEND_LOST
    assert guard.end_reason is Reason.BACKEND_BAD_REPLY


def test_last_code_includes_our_own_replies() -> None:
    guard = strict()
    assert guard.last_code == 0
    guard.from_client(b"NOOP\r\nXCLIENT\r\n")
    guard.from_backend(b"250-o")
    assert guard.last_code == 0
    guard.from_backend(b"k\r\n250 ok\r\n")
    assert guard.last_code == 550
