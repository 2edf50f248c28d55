"""What the guard still believes after a line that a server might answer more than once."""

import pytest

from proxyshim.smtp.guard import Guard, Rules
from tests.unit.transcripts import CONTENT, RELAXED, plays, table

# A firewall that does not understand ESMTP masks the client's EHLO as "XXXX".  Mail through it
# must pass as it would on a direct connection.

ORDINARY_CONTENT = """
        C> Proxy settings: none
        C> starttls and bdat are verbs
        C> "x" * 20000
        C> "\\r\\n"
        C> .

        B< 250 queued
        :: accepted=1
        """

HELLO = {
    "HELO": """
        C> HELO h

        B< 250 mx
        :: strict
        """,
    "EHLO": RELAXED,
}
UNKNOWN = {
    "answered with 500": """
        C> XXXX h

        B< 500 what?
        """,
    "answered with 502": """
        C> XXXX h

        B< 502 5.5.2 Error: command not recognized
        """,
    "sent twice": """
        C> XXXX h

        B< 500 what?

        C> XXXX

        B< 500 what?
        """,
    "pipelined with another": """
        C> XXXX
        C| YYYY

        B< 500 what?
        -> YYYY

        B< 500 what?
        """,
    "with other characters": """
        C> X-FOO: bar

        B< 500 what?
        """,
}


@pytest.mark.parametrize("hello", HELLO.values(), ids=HELLO.keys())
@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_an_unknown_verb_that_is_answered_once_harms_no_mail(
    unknown: str, hello: str
) -> None:
    plays(unknown + hello + CONTENT + ORDINARY_CONTENT)


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_starttls_passes_after_an_unknown_verb_that_is_answered_once(
    unknown: str,
) -> None:
    plays(unknown + RELAXED + "C> STARTTLS\n\nB< 220 go on\n:: opaque")


UNANSWERED = {
    "an unknown verb answered with 550": "C> FOO\n\nB< 550 no\n",
    "an unknown verb answered with 250": "C> FOO\n\nB< 250 fine\n",
    "an unknown verb while a reply is owed": (
        "C> NOOP\nC> FOO\n\nB< 250 ok\nB< 500 what?\n"
    ),
    "a known verb in an odd form": 'C> " RSET\\r\\n"\n\nB< 500 what?\n',
    "another 500 after the one for an unknown verb": (
        "C> FOO\n\nB< 500 what?\n\nC> NOOP\n\nB< 500 what?\n"
    ),
    "an unknown verb after another doubt": (
        'C> " RSET\\r\\n"\n\nB< 500 what?\n\nC> FOO\n\nB< 500 what?\n'
    ),
}


@pytest.mark.parametrize("lines", UNANSWERED.values(), ids=UNANSWERED.keys())
def test_no_reply_is_a_proof_where_the_count_may_be_wrong(lines: str) -> None:
    plays(lines + "\nC> EHLO c\n\nB< 250-mx\nB| 250-STARTTLS\nB< 250 SIZE\n:: strict")


@pytest.mark.parametrize("lines", UNANSWERED.values(), ids=UNANSWERED.keys())
def test_content_passes_unchecked_where_only_the_count_may_be_wrong(lines: str) -> None:
    plays(lines + CONTENT + ORDINARY_CONTENT)


DOUBT = {
    "the next command is sent alone": """
        C> FOO

        B< 500 what?

        C> NOOP
        C| NOOP

        B< 250 ok
        -> NOOP

        B< 250 ok
        """,
    "a second reply to the unknown verb ends the session": """
        C> FOO

        B< 500 what?

        B< 500 what?
        END reply_unasked
        """,
    "a dot sent as a command may have ended content, so the next content is checked": """
        C> " RSET\\r\\n"

        B< 500 what?

        C> .

        B< 500 what?
        """
    + CONTENT
    + """
        C> Subject: a
        C| XCLIENT ADDR=127.0.0.1
        <- {COMMAND_OUT_OF_PLACE}
        :: refused verb_in_content
        END verb_in_content
        """,
    "a dot sent as an answer, too": """
        C> " RSET\\r\\n"

        B< 500 what?

        C> AUTH LOGIN

        B< 334 who?

        C> .

        B< 535 no
        """
    + CONTENT
    + """
        C| XCLIENT ADDR=127.0.0.1
        <- {COMMAND_OUT_OF_PLACE}
        :: refused verb_in_content
        END verb_in_content
        """,
}


@table(DOUBT)
def test_doubt(transcript: str) -> None:
    plays(transcript)


def test_the_shortcut_is_not_used_while_in_doubt() -> None:
    guard = Guard(Rules())
    guard.from_client(b"FOO\r\n")
    assert not guard.pass_reply(b"500 what?\r\n")
    guard.from_backend(b"500 what?\r\n")
    assert not guard.pass_command(b"NOOP\r\n")
    guard.from_client(b"NOOP\r\n")
    assert not guard.pass_reply(b"250 ok\r\n")
    guard.from_backend(b"250 ok\r\n")
    assert guard.pass_command(b"NOOP\r\n")
    assert guard.pass_reply(b"250 ok\r\n")
