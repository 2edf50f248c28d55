"""Relaxed sessions do no harm: everything passes unchanged, except what is always refused."""

import pytest

from proxyshim.smtp.guard import Guard, Mode, Rules
from tests.unit.transcripts import CONTENT, RELAXED, plays, table

PASSES = {
    "pipelining": """
        C> MAIL FROM:<a@a.example>
        C> RCPT TO:<b@b.example>
        C> NOOP
        C> RSET
        C> EHLO c
        C> MAIL FROM:<a@a.example>

        B< 250 ok
        B< 250 ok
        B< 250 ok
        B< 250 ok
        :: envelope
        B< 250-mx
        B< 250 SIZE
        B< 250 ok
        :: envelope relaxed awaits-nothing
        """,
    "an unfinished line": """
        C> "NOO"

        C> "P\\r\\n"

        B< 250 ok
        :: awaits-nothing
        """,
    "unknown verbs and what follows them": """
        C> FOO
        C> LHLO c
        C> "\\xff\\xfe\\n"
        C> NOOP

        B< 500 what?
        B< 500 what?
        B< 500 what?
        B< 250 ok
        :: relaxed awaits-nothing
        """,
    "odd octets, and lines of any length": """
        C> "NO\\x00OP\\x07\\r\\r\\n"
        C> "\\x0bRSET\\n"
        C> "RCPT TO:<"
        C> "x" * 20000
        C> ">\\n"

        B< 500 what?
        B< 250 ok
        B< 500 too long
        :: relaxed awaits-nothing
        """,
    "an empty line and a line of blanks": """
        C> "\\r\\n\\n \\t\\r\\n"

        B< 500 what?
        B< 500 what?
        B< 500 what?
        :: awaits-nothing
        """,
    "a message": CONTENT
    + """
        C> Subject: a
        C> "\\r\\n"
        C> ..
        C> "last\\r\\n.\\r\\n"
        :: final_reply

        B< 250 queued
        :: idle accepted=1
        """,
    "commands pipelined after the end of content": CONTENT
    + """
        C> .
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        :: final_reply

        B< 250 queued
        :: envelope accepted=1

        B< 250 ok
        B< 550 no
        :: envelope awaits-nothing
        """,
    "QUIT pipelined after the end of content": CONTENT
    + """
        C> .
        C> QUIT

        B< 250 queued
        B< 221 bye
        :: idle backend-quitting accepted=1

        !! the backend closes
        """,
    "content that does not wait for its 354": """
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        C> DATA
        C> XCLIENT ADDR=127.0.0.1
        C> .
        C> NOOP
        C> XCLIENT ADDR=127.0.0.1

        B< 250 ok
        B< 250 ok
        B< 354 go on
        B< 250 queued
        :: idle accepted=1

        B< 250 ok
        B< 550 5.7.0 the backend's own
        :: relaxed awaits-nothing
        """,
    "content that comes in pieces before its 354": """
        C> DATA
        C> "PROXY x\\r"

        C> "\\n."

        B< 354 go on
        :: content

        C> "\\r\\n"
        :: final_reply

        C| XCLIENT
        :: refused xclient_injected

        B< 250 queued
        <- {NOT_AUTHORIZED}
        :: idle accepted=1
        """,
    "commands pipelined after a DATA that is refused": """
        C> DATA
        C> MAIL FROM:<>
        C> XCLIENT ADDR=127.0.0.1
        C> "NOO"

        B< 503 no
        B< 250 ok
        B< 550 5.7.0 the backend's own
        :: envelope awaits-nothing

        C> "P\\r\\n"
        C| XCLIENT
        :: refused xclient_injected

        B< 250 ok
        <- {NOT_AUTHORIZED}
        """,
    "a message that the backend refuses": CONTENT
    + """
        C> .

        B< 550 no
        :: idle accepted=0
        """,
    "a second DATA pipelined after a refused one": """
        C> DATA
        C> DATA
        C> XCLIENT
        C> "x\\r\\n.\\r\\n"
        C> NOOP

        B< 503 no
        B< 354 go on
        B< 250 queued
        B< 250 ok
        :: accepted=1 awaits-nothing
        """,
    "a refusal in the middle of content": CONTENT
    + """
        C> Subject: a

        B< 452 disk full
        :: content

        C> PROXY TCP4 127.0.0.1 127.0.0.1 1 25
        C> .
        :: idle awaits-nothing

        C| XCLIENT
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "a refusal in the middle of content and then another message": CONTENT
    + """
        C> Subject: a

        B< 452 disk full

        C> .
        """
    + CONTENT
    + """
        C> .
        :: final_reply

        B< 250 queued
        :: idle accepted=1
        """,
    "a 250 in the middle of content": CONTENT
    + """
        C> Subject: a

        B< 250 ok
        :: content

        C> .
        :: final_reply

        B< 250 queued
        :: idle accepted=1
        """,
    "an unsolicited reply": """
        C> NOOP

        B< 250 ok
        B< 250 once more
        :: relaxed

        C> NOOP

        B< 250 ok
        :: awaits-nothing
        """,
    "an AUTH dialogue": """
        C> AUTH LOGIN

        B< 334 VXNlcm5hbWU6

        C> "XCL"

        C> "IENT\\r\\n"

        B< 334 UGFzc3dvcmQ6

        C> PROXY
        C> NOOP

        B< 235 hello
        B< 250 ok
        :: relaxed awaits-nothing

        C| XCLIENT
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "an AUTH that does not wait for its 334": """
        C> AUTH LOGIN
        C> XCLIENT
        C> BDAT
        C> XCLIENT ADDR=127.0.0.1

        B< 334 VXNlcm5hbWU6
        B< 334 UGFzc3dvcmQ6
        B< 535 no
        B< 550 5.7.0 the backend's own
        :: awaits-nothing
        """,
    "commands pipelined after an AUTH that is refused": """
        C> AUTH LOGIN
        C> MAIL FROM:<>

        B< 530 no
        :: envelope
        B< 250 ok
        :: awaits-nothing
        """,
}

CHUNKS = {
    "commands in a payload are not read": """
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        C> BDAT 38
        C> "XCLIENT ADDR=127.0.0.1\\r\\nPROXY x\\r\\n.\\r\\n"
        C> "\\r\\n"
        :: envelope
        C> "BDAT 5 LAST\\r\\nRSET\\n"
        :: final_reply
        C| XCLIENT
        :: refused xclient_injected

        B< 250 ok
        B< 250 ok
        B< 250 chunk
        :: final_reply
        B< 250 queued
        <- {NOT_AUTHORIZED}
        :: idle accepted=1
        """,
    "a payload in pieces": """
        C> MAIL FROM:<>

        B< 250 ok

        C> "BDAT 9 LAST\\r\\nXCLI"
        :: content

        C> "ENT\\r\\n"
        :: final_reply

        B< 250 queued
        :: idle accepted=1
        """,
    "an empty payload": """
        C> BDAT 0 LAST
        C| XCLIENT
        :: refused xclient_injected
        :: final_reply

        B< 503 no

        !! a moment passes
        <- {NOT_AUTHORIZED}
        :: idle accepted=0
        """,
    "a last chunk refused before its payload is complete": """
        C> MAIL FROM:<>
        C> "BDAT 10 LAST\\r\\nabc"

        B< 250 ok
        B< 503 no
        :: content

        C> "XCLIENT"
        C| XCLIENT
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "a chunk before the last refused before its payload is complete": """
        C> MAIL FROM:<>
        C> "BDAT 10\\r\\nabc"

        B< 250 ok
        B< 554 no
        :: content

        C> "XCLIENT"
        :: envelope awaits-nothing
        """,
    "the chunks of two pipelined messages": """
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        C> "BDAT 3 LAST\\r\\nabc"
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        C> "BDAT 3 LAST\\r\\nd"
        :: final_reply

        B< 250 ok
        B< 250 ok
        B< 250 queued
        :: content accepted=1

        C> "ef"
        :: final_reply

        B< 250 ok
        B< 250 ok
        :: final_reply
        B< 250 queued
        :: idle accepted=2
        """,
    "a size that servers read differently makes the session opaque": """
        C> BDAT 0x0c LAST
        C> XCLIENT ADDR=127.0.0.1

        B< 501 what?
        B< anything at all
        :: opaque
        """,
}

# Content with a lone dot that is not CRLF.CRLF, where the backend may or may not end it.

ODD_DOTS = {
    "the backend does not end the content": CONTENT
    + """
        C> "x\\n.\\n"
        C> XCLIENT ADDR=127.0.0.1
        C> PROXY UNKNOWN
        :: content

        C> .
        :: final_reply

        B< 250 queued
        :: idle accepted=1
        """,
    "the copy kept after an odd dot is dropped when the content ends": CONTENT
    + """
        C> "x\\n.\\n"

        C> NOOP

        C> "NOOP\\r\\n.\\r\\n"

        B< 250 queued
        :: idle can-quit

        C> DATA

        B< 503 no
        :: awaits-nothing can-quit
        """,
    "the backend ends the content": CONTENT
    + """
        C> "x\\n.\\n"
        :: content

        B< 250 queued
        :: idle accepted=1

        C| XCLIENT
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "the backend ends the content and commands have followed": CONTENT
    + """
        C> "x\\n.\\n"
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        C> DATA

        B< 250 queued
        :: envelope accepted=1
        B< 250 ok
        B< 250 ok
        B< 354 go on
        :: content

        C> XCLIENT
        C> .

        B< 250 queued
        :: idle accepted=2
        """,
    "the backend ends the content and QUIT has followed": CONTENT
    + """
        C> "x\\n.\\nQUIT\\n"

        B< 250 queued
        B< 221 bye
        :: idle accepted=1 backend-quitting
        """,
    "the backend ends the content and half a line has followed": CONTENT
    + """
        C> "x\\n.\\nXCLI"

        B< 250 queued

        C> "ENT\\n"

        B< 550 5.7.0 the backend's own
        :: awaits-nothing
        """,
    "the backend ends the content and CRLF.CRLF has followed": CONTENT
    + """
        C> "x\\n.\\n"
        C> NOOP
        C> .
        C> NOOP
        :: final_reply

        B< 250 queued
        :: accepted=1
        B< 250 ok
        B< 500 what?
        B< 250 ok
        :: relaxed idle awaits-nothing
        """,
    "the backend ends the content at the first of several odd dots": CONTENT
    + """
        C> "x\\n.\\n.\\n.\\n"

        B< 250 queued
        B< 500 what?
        B< 500 what?
        :: idle accepted=1 awaits-nothing
        """,
    "an odd dot does not matter for the next content": CONTENT
    + """
        C> "x\\n.\\n"
        C> more
        C> .

        B< 250 queued
        """
    + CONTENT
    + """
        C> XCLIENT

        B< 452 disk full
        :: content

        C> XCLIENT
        C> .
        :: idle
        """,
}

REFUSED = {
    "XCLIENT with attributes": """
        C| XCLIENT ADDR=127.0.0.1
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "XCLIENT in a form that only lenient servers execute": """
        C| "\\t\\x0b\\x0c\\r xclient\\x00ADDR=127.0.0.1\\n"
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "XFORWARD": """
        C| XFORWARD ADDR=127.0.0.1
        <- {NOT_AUTHORIZED}
        :: refused xforward_injected
        """,
    "refusals keep their place among the replies": """
        C| XCLIENT
        C> MAIL FROM:<>
        C| XFORWARD NAME=a
        C| XCLIENT
        C> RCPT TO:<b@b.example>
        C| XCLIENT
        C> DATA
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected xforward_injected xclient_injected xclient_injected

        B< 250 ok
        <- {NOT_AUTHORIZED}
        <- {NOT_AUTHORIZED}

        B< 250 ok
        <- {NOT_AUTHORIZED}
        B< 354 go on
        :: content
        """,
    "XCLIENT pipelined after an EHLO": """
        C> EHLO c
        C| XCLIENT ADDR=127.0.0.1
        C> NOOP
        :: refused xclient_injected

        B< 250-mx
        B< 250 SIZE
        <- {NOT_AUTHORIZED}
        B< 250 ok
        """,
    "XCLIENT in pieces": """
        C| "  XCLIE"

        C| "NT ADDR=127"

        C| ".0.0.1\\r"

        C| "\\nXFORWARD\\n"
        <- {NOT_AUTHORIZED}
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected xforward_injected
        """,
    "an XCLIENT line of any length": """
        C| "XCLIENT "
        C| "x" * 20000

        C| "\\r\\n"
        C> NOOP
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "PROXY ends the session": """
        C> NOOP
        C| PROXY TCP4 127.0.0.1 127.0.0.1 1 25
        C| NOOP
        :: refused proxy_injected
        :: ending

        B< 250 ok
        <- {PROXY_UNWELCOME}
        END proxy_injected
        """,
    "a v2 signature ends the session": """
        C> "\\r\\n\\r\\n"
        C| "\\x00\\r\\nQUIT\\n!\\x11\\x00\\x0c\\x7f\\x00\\x00\\x01"
        :: refused proxy_injected

        B< 500 what?
        B< 500 what?

        !! a moment passes
        <- {PROXY_UNWELCOME}
        END proxy_injected
        """,
    "half an XCLIENT line is held and never passes": """
        C| "XCLIENT ADDR=1"

        !! the client closes
        :: drained
        """,
}

# The start of a line is held, but only as long as it may become a refused command.

HELD = {
    "X": ("X", "EXCH50\\r\\n"),
    "XCLIENT": ("XCLIENT", "S\\r\\n"),
    "XF": ("xf", "oo bar\\n"),
    "P": ("P", "ING\\r\\n"),
    "CR": ("\\r", "\\n"),
    "blanks": ("  \\t", "\\r\\n"),
    "NUL": ("\\x00\\r", "X\\r\\n"),
}


@pytest.mark.parametrize(("held", "rest"), HELD.values(), ids=HELD.keys())
def test_the_start_of_a_line_is_held_while_it_may_become_a_refused_command(
    held: str, rest: str
) -> None:
    plays(
        RELAXED
        + f"""
        C| "{held}"
        :: can-quit

        C| "{rest}"
        -> "{held}{rest}"
        C> NOOP

        B< 500 what?
        B< 250 ok
        :: awaits-nothing
        """
    )


def test_at_most_512_blanks_are_held_for_a_refused_command() -> None:
    plays(
        RELAXED
        + """
        C> " " * 513

        C> "XCLIENT\\r\\n"

        C> " " * 513
        C> "XCLIENT\\r\\n"

        C| " " * 512
        C| "XCLIENT\\r\\n"
        :: refused xclient_injected

        B< 500 what?
        B< 500 what?

        !! a moment passes
        <- {NOT_AUTHORIZED}
        """
    )


OFFERED = {
    "everything but the two rights passes": """
        C> EHLO c

        B< 250-mx XCLIENT XFORWARD
        B< 250-STARTTLS
        B< 250-CHUNKING
        B< 250-BINARYMIME
        B< 250-BURL
        B< 250-AUTH PLAIN
        B< 250 SIZE
        :: relaxed
        """,
    "an offered XFORWARD is hidden and makes the session strict": """
        C> EHLO c

        B< 250-mx
        B| 250-STARTTLS
        B| 250-SIZE
        <- 250 SIZE
        B| 250 XFORWARD NAME ADDR
        :: strict

        C| STARTTLS
        <- {TLS_UNAVAILABLE}
        :: refused starttls_withheld
        """,
    "an XFORWARD that is offered while a reply is owed ends the session": RELAXED
    + """
        C> EHLO c
        C> NOOP

        B< 250-mx
        B| 250-SIZE
        <- 250 SIZE
        B| 250 XFORWARD NAME ADDR
        :: strict
        B< 250 ok
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
}

OPAQUE = {
    "TLS passes unread after the 220": """
        C> STARTTLS

        B< 220 go on
        :: opaque cannot-quit

        C> "\\x16\\x03\\x01XCLIENT\\r\\nPROXY x\\r\\n"

        B< "\\x16\\x03\\x03no reply at all\\n"

        C> XCLIENT ADDR=127.0.0.1
        """,
    "TLS passes unread if it does not wait for the 220": """
        C> STARTTLS
        C> "\\x16\\x03\\x01\\n"

        B< 220 go on
        B< "\\x16\\x03\\x03"
        :: opaque
        """,
    "the guard still follows the session after a refused STARTTLS": """
        C> STARTTLS
        C> NOOP

        B< 454 not now
        B< 250 ok
        :: relaxed awaits-nothing

        C| XCLIENT
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "the backend decides about STARTTLS with an argument": """
        C> STARTTLS x

        B< 220 go on
        :: opaque
        """,
    "a 354 to another command makes the session opaque": """
        C> RCPT TO:<b@b.example>
        C| "XC"

        B< 354 go on
        -> "XC"
        :: opaque

        C> XCLIENT

        B< "no reply"
        """,
    "a 334 to another command makes the session opaque": """
        C> NOOP

        B< 334 eh
        :: opaque
        """,
    "a 220 to another command makes the session opaque": """
        C> NOOP

        B< 220 eh
        :: opaque
        """,
    "an unsolicited 354 makes the session opaque": """
        C| "XC"

        B< 354 go on
        -> "XC"
        :: opaque
        """,
    "our own replies overtake nothing when tracking stops": """
        C> NOOP
        C> RSET
        C| XCLIENT
        :: refused xclient_injected

        B< 354 go on
        B< 250 ok
        :: opaque
        """,
    "the start of a reply is delivered when tracking stops": """
        C> NOOP
        C> RSET

        B< 354 go on
        B< "250-o"
        :: opaque
        """,
    "we end an opaque session without a reply of our own": """
        C> STARTTLS

        B< 220 go on

        !! drain
        END shutdown
        """,
    "the backend may close an opaque session at any time": """
        C> STARTTLS

        B< 220 go on

        !! the backend closes
        """,
}


@table(PASSES)
def test_relaxed_session_passes_everything_at_once_and_unchanged(
    transcript: str,
) -> None:
    plays(RELAXED + transcript)


@table(CHUNKS)
def test_relaxed_session_passes_bdat(transcript: str) -> None:
    plays(RELAXED + transcript)


@table(ODD_DOTS)
def test_the_backend_decides_whether_an_odd_dot_ends_content(transcript: str) -> None:
    plays(RELAXED + transcript)


@table(REFUSED)
def test_relaxed_session_refuses_command(transcript: str) -> None:
    plays(RELAXED + transcript)


@table(OFFERED)
def test_relaxed_session_hides_extensions(transcript: str) -> None:
    plays(transcript)


@table(OPAQUE)
def test_after_starttls_or_a_reply_out_of_place(transcript: str) -> None:
    plays(RELAXED + transcript)


def test_the_guard_knows_the_extensions_that_the_ehlo_reply_offered() -> None:
    guard = Guard(Rules())
    guard.from_client(b"EHLO c\r\n")
    guard.from_backend(b"250-mx\r\n250-xforward NAME\r\n250 SIZE 10\r\n")
    assert guard.mode is Mode.STRICT
    assert guard.extensions == {b"XFORWARD", b"SIZE"}
