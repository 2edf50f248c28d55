"""Strict: never more permissive than any server, and when it is over."""

import pytest

from proxyshim.smtp.guard import Rules
from tests.unit.transcripts import CONTENT, RELAXED, STRICT, plays, table

# What ends strictness: the backend's own reply to the client's own EHLO.

PROOF = {
    "an EHLO reply without XCLIENT proves that the right is gone": RELAXED,
    "an EHLO reply with XCLIENT leaves it strict": STRICT,
    "a keyword in any case and spelling counts": """
        C> EHLO c

        B< 250-mx
        B| 250-xClient=ADDR
        B< 250 SIZE
        :: strict
        """,
    "the last line counts": """
        C> EHLO c

        B| 250-mx
        B| 250 XCLIENT ADDR
        <- 250 mx
        :: strict
        """,
    "the first line is no keyword": """
        C> EHLO c

        B< 250-XCLIENT ADDR
        B< 250 SIZE
        :: relaxed
        """,
    "one line proves nothing": """
        C> EHLO c

        B< 250 mx, at your service
        :: strict
        """,
    "an empty second line proves nothing": """
        C> EHLO c

        B< 250-mx
        B< "250 \\r\\n"
        :: strict
        """,
    "another code proves nothing": """
        C> EHLO c

        B< 550-mx
        B< 550 SIZE
        :: strict
        """,
    "a HELO's reply proves nothing": """
        C> HELO c

        B< 250-mx
        B< 250 SIZE
        :: strict
        """,
    "another command's reply proves nothing": """
        C> EXPN list
        C> NOOP
        C> RSET
        C> MAIL FROM:<a@a.example>

        B< 250-A <a@a.example>
        B< 250 SIZE <b@b.example>
        B< 250-ok
        B< 250 SIZE
        B< 250-ok
        B< 250 SIZE
        B< 250-ok
        B< 250 SIZE
        :: strict
        """,
    "nothing is proved by half a reply": """
        C> EHLO c

        B| 250-mx
        B| 250-SIZE
        :: strict

        B| "250 "
        :: strict

        B| "HELP\\r\\n"
        <- 250-mx
        <- 250-SIZE
        <- 250 HELP
        :: relaxed
        """,
    "each EHLO decides anew": """
        C> EHLO c

        B< 250-mx
        B| 250-XCLIENT ADDR
        B< 250 SIZE
        :: strict

        C> EHLO c

        B< 250-mx
        B< 250 SIZE
        :: relaxed

        C> EHLO c

        B< 250-mx
        B| 250-XCLIENT ADDR
        B< 250 SIZE
        :: strict

        C| STARTTLS
        <- {TLS_UNAVAILABLE}
        :: refused starttls_withheld

        C> EHLO c

        B< 250-mx
        B< 250 SIZE
        :: strict
        """,
    "a right that comes back ends a session that is ahead of it": RELAXED
    + """
        C> EHLO c
        C> NOOP

        B< 250-mx
        B| 250-XCLIENT ADDR
        B< 250 SIZE
        :: strict ending

        B< 250 ok
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "so does one that comes back in the middle of a line": RELAXED
    + """
        C> EHLO c
        C> "NOO"

        B< 250-mx
        B| 250-XCLIENT ADDR
        B< 250 SIZE
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "what waits for the proof is read relaxed": """
        C> EHLO c
        C| STARTTLS

        B< 250-mx
        B< 250 STARTTLS
        -> STARTTLS
        :: relaxed

        B< 220 go on
        :: opaque
        """,
    "what waits without a proof is read strict": """
        C> EHLO c
        C| STARTTLS
        C| NOOP

        B< 250-mx
        B| 250-XCLIENT ADDR
        B| 250-STARTTLS
        B< 250 SIZE
        <- {TLS_UNAVAILABLE}
        -> NOOP
        :: strict
        :: refused starttls_withheld

        B< 250 ok
        """,
}

# A guard that can't count replies any more takes none for a proof.

UNCOUNTED = {
    "an unknown verb": "FOO",
    "a known one behind blanks": '" NOOP\\r\\n"',
    "a known one before a TAB": '"NOOP\\tx\\r\\n"',
    "a verb and more": "NOOP: x",
    "blanks alone": '"  \\r\\n"',
    "a dot": ".",
}


@pytest.mark.parametrize("line", UNCOUNTED.values(), ids=UNCOUNTED.keys())
def test_behind_a_line_that_servers_answer_differently_nothing_is_proved(
    line: str,
) -> None:
    plays(
        f"""
        C> {line}

        B< 500 what?

        C> EHLO c

        B< 250-mx
        B| 250-STARTTLS
        B< 250 SIZE
        :: strict
        """
    )


COUNTED = {
    "an empty line": '"\\r\\n"',
    "a bare LF": '"\\n"',
    "any case": "nOOp",
    "an argument": "HELP me",
    "a colon further on": "MAIL FROM:<>",
    "ended by LF": '"NOOP\\n"',
    "a blank at the end": '"NOOP \\r\\n"',
}


@pytest.mark.parametrize("line", COUNTED.values(), ids=COUNTED.keys())
def test_behind_a_line_that_every_server_answers_once_the_proof_counts(
    line: str,
) -> None:
    plays(
        f"""
        C> {line}

        B< 500 what?

        C> EHLO c

        B< 250-mx
        B< 250 STARTTLS
        :: relaxed
        """
    )


# What waits.

WAITING = {
    "EHLO": "EHLO c",
    "HELO": "HELO c",
    "DATA": "DATA",
    "AUTH": "AUTH PLAIN",
    "an unknown verb": "FOO",
    "a known one behind blanks": '" NOOP\\r\\n"',
    "a known one before a TAB": '"NOOP\\tx\\r\\n"',
}


@pytest.mark.parametrize("command", WAITING.values(), ids=WAITING.keys())
def test_nothing_passes_behind_what_changes_the_framing(command: str) -> None:
    plays(
        f"""
        C> {command}
        C| NOOP
        C| XCLIENT ADDR=127.0.0.1
        C| RSET

        B< 500 what?
        -> NOOP
        -> RSET
        :: refused xclient_injected

        B< 250 ok
        <- {{NOT_AUTHORIZED}}
        B< 250 ok
        """
    )


WAITS = {
    "an EHLO waits until no reply is owed": """
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        C| EHLO c
        C| NOOP

        B< 250 ok

        B< 250 ok
        -> EHLO c

        B< 250 mx
        -> NOOP
        """,
    "so does a HELO": """
        C> NOOP
        C| HELO c

        B< 250 ok
        -> HELO c
        """,
    "an EHLO waits for a reply of ours too": """
        C> NOOP
        C| XCLIENT ADDR=127.0.0.1
        C| EHLO c
        :: refused xclient_injected

        B< 250 ok
        <- {NOT_AUTHORIZED}
        -> EHLO c
        """,
    "nothing passes behind the end of content": CONTENT
    + """
        C> .
        C| NOOP
        :: final_reply

        B< 250 queued
        -> NOOP
        :: idle accepted=1
        """,
    "pipelined commands pass at once": """
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        C> RCPT TO:<c@b.example>
        C> DATA
        C| "x\\r\\n.\\r\\n"
        C| QUIT

        B< 250 ok
        B< 250 ok
        B< 550 no
        B< 354 go on
        -> x
        -> .

        B< 250 queued
        -> QUIT

        B< 221 bye
        :: backend-quitting
        """,
    "behind a refused DATA stand commands": """
        C> DATA
        C| XCLIENT ADDR=127.0.0.1
        C| RSET

        B< 503 no
        <- {NOT_AUTHORIZED}
        -> RSET
        :: refused xclient_injected

        B< 250 ok
        """,
    "an unfinished line waits for its end": """
        C| "NOO"

        C| "P\\n"
        -> "NOOP\\n"
        """,
    "an unfinished line never passes": """
        C| "NOOP"

        !! the client closes
        :: drained
        """,
}

# What is refused, and what ends a session.

REFUSED = {
    "XCLIENT": """
        C| XCLIENT ADDR=127.0.0.1
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "XCLIENT without attributes": """
        C| XCLIENT
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "XCLIENT in any case, with a bare LF": """
        C| "xClIeNt ADDR=127.0.0.1\\n"
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "XCLIENT behind blanks": """
        C| "  \\t XCLIENT ADDR=127.0.0.1\\r\\n"
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "XCLIENT before a TAB": """
        C| "XCLIENT\\tADDR=127.0.0.1\\r\\n"
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "XFORWARD": """
        C| XFORWARD ADDR=127.0.0.1
        <- {NOT_AUTHORIZED}
        :: refused xforward_injected
        """,
    "PROXY ends it": """
        C| PROXY TCP4 127.0.0.1 127.0.0.1 1 25
        C| NOOP
        <- {PROXY_UNWELCOME}
        :: refused proxy_injected
        END proxy_injected
        """,
    "so does PROXY in any form": """
        C| "\\t proxy\\n"
        <- {PROXY_UNWELCOME}
        :: refused proxy_injected
        END proxy_injected
        """,
    "a v2 signature is a PROXY header and control octets": """
        C> "\\r\\n\\r\\n"
        C| "\\x00\\r\\nQUIT\\n!\\x11\\x00\\x0c\\x7f\\x00\\x00\\x01"
        :: refused proxy_injected
        :: ending

        B< 500 what?
        B< 500 what?
        <- {CONTROL_OCTET}
        END control_octet
        """,
    "STARTTLS": """
        C| STARTTLS
        C> NOOP
        <- {TLS_UNAVAILABLE}
        :: refused starttls_withheld
        """,
    "BDAT and the session with it": """
        C| "BDAT 27 LAST\\r\\nXCLIENT ADDR=198.51.100.1\\r\\n"
        <- {CHUNKING_UNAVAILABLE}
        :: refused bdat_refused
        END bdat_refused
        """,
    "BDAT in odd forms": """
        C| "\\tbdat\\t0x0c\\nNOOP\\n"
        <- {CHUNKING_UNAVAILABLE}
        :: refused bdat_refused
        END bdat_refused
        """,
    "in their place among the replies": """
        C| XFORWARD NAME=a
        C> MAIL FROM:<>
        C| XCLIENT ADDR=127.0.0.1
        C| STARTTLS
        C> RCPT TO:<b@b.example>
        C| XCLIENT ADDR=127.0.0.1
        <- {NOT_AUTHORIZED}
        :: refused xforward_injected xclient_injected starttls_withheld xclient_injected

        B< 250 sender ok
        <- {NOT_AUTHORIZED}
        <- {TLS_UNAVAILABLE}

        B< 250 recipient ok
        <- {NOT_AUTHORIZED}
        """,
    "our last word never overtakes an owed reply": """
        C> MAIL FROM:<>
        C> RCPT TO:<b@b.example>
        C| PROXY UNKNOWN
        C| RCPT TO:<c@b.example>
        :: refused proxy_injected

        B< 250 sender ok
        :: ending

        B< 250 recipient ok
        <- {PROXY_UNWELCOME}
        END proxy_injected
        """,
    "nothing comes behind our last word": """
        C> NOOP
        C| PROXY UNKNOWN
        :: refused proxy_injected

        B< 250 ok
        <- {PROXY_UNWELCOME}
        B| 250 once more
        END proxy_injected
        """,
}

# Lines that servers read differently.

ODD_LINES = {
    "a VT before the verb": '"\\x0bXCLIENT ADDR=127.0.0.1\\r\\n"',
    "a FF before the verb": '"\\x0cXCLIENT ADDR=127.0.0.1\\r\\n"',
    "a CR before the verb": '"\\rXCLIENT ADDR=127.0.0.1\\r\\n"',
    "a VT behind the verb": '"XCLIENT\\x0bADDR=127.0.0.1\\r\\n"',
    "a FF behind the verb": '"XCLIENT\\x0cADDR=127.0.0.1\\r\\n"',
    "a CR behind the verb": '"XCLIENT\\rADDR=127.0.0.1\\r\\n"',
    "a NUL behind the address": '"XCLIENT ADDR=127.0.0.1\\x00junk\\r\\n"',
    "a NUL behind the verb": '"XCLIENT\\x00 x\\r\\n"',
}


@pytest.mark.parametrize("line", ODD_LINES.values(), ids=ODD_LINES.keys())
def test_control_octets_around_an_xclient_end_the_session(line: str) -> None:
    plays(
        f"""
        C> NOOP
        C| {line}
        C| NOOP
        :: refused xclient_injected

        B< 250 ok
        <- {{CONTROL_OCTET}}
        END control_octet
        """
    )


@pytest.mark.parametrize(
    "octet", [octet for octet in (*range(32), 127) if octet not in (9, 10)]
)
def test_every_control_octet_in_a_command_ends_the_session(octet: int) -> None:
    plays(
        f"""
        C| "NO\\x{octet:02x}OP\\r\\n"
        <- {{CONTROL_OCTET}}
        END control_octet
        """
    )


LONG = {
    "the longest line passes": """
        C> "NOOP "
        C> "x" * 12281
        C> "\\r\\n"
        """,
    "a longer one ends the session": """
        C| "NOOP "
        C| "x" * 12283
        C| "XCLIENT ADDR=127.0.0.1\\r\\n"
        <- {LINE_TOO_LONG}
        END command_too_long
        """,
    "an endless one too": """
        C| "x" * 12287

        C| "x"
        <- {LINE_TOO_LONG}
        END command_too_long
        """,
    "endless blanks too": """
        C| " " * 20000
        <- {LINE_TOO_LONG}
        END command_too_long
        """,
    "an endless AUTH answer too": STRICT
    + """
        C> AUTH LOGIN

        B< 334 VXNlcm5hbWU6

        C| "x" * 12288
        <- {LINE_TOO_LONG}
        END command_too_long
        """,
    "in content a line may be of any length": CONTENT
    + """
        C> "x" * 30000

        C> "\\r\\n"
        C> .
        :: final_reply
        """,
}

# AUTH.

AUTH = {
    "its answers pass": STRICT
    + """
        C> AUTH LOGIN
        C| dXNlcg==
        C| cGFzcw==
        C| NOOP

        B< 334 VXNlcm5hbWU6
        -> dXNlcg==

        B< 334 UGFzc3dvcmQ6
        -> cGFzcw==

        B< 235 hello
        -> NOOP
        """,
    "an initial response needs none": STRICT
    + """
        C> AUTH PLAIN AHVzZXIAcGFzcw==
        C| MAIL FROM:<>

        B< 235 hello
        -> MAIL FROM:<>
        """,
    "an empty answer and a star pass": STRICT
    + """
        C> AUTH PLAIN

        B< "334 \\r\\n"

        C> "\\r\\n"

        B< "334 \\r\\n"

        C> *
        C| NOOP

        B< 501 as you like
        -> NOOP
        """,
    "behind a refused AUTH stand commands": STRICT
    + """
        C> AUTH LOGIN
        C| XCLIENT ADDR=127.0.0.1
        C| NOOP

        B< 535 no
        <- {NOT_AUTHORIZED}
        -> NOOP
        :: refused xclient_injected
        """,
    "an answer counts as one command": STRICT
    + """
        C> AUTH LOGIN

        B< 334 VXNlcm5hbWU6

        C> EHLO c
        C| EHLO c

        B< 250-mx
        B< 250 SIZE
        -> EHLO c
        :: strict
        """,
    "an answer with a NUL ends it": STRICT
    + """
        C> AUTH LOGIN

        B< 334 VXNlcm5hbWU6

        C| "\\x00user\\x00pass\\r\\n"
        <- {CONTROL_OCTET}
        END control_octet
        """,
}
VERBS_IN_AUTH = (
    "XCLIENT ADDR=127.0.0.1",
    "xclient",
    '"\\t XFORWARD ADDR=127.0.0.1\\n"',
    "PROXY TCP4 127.0.0.1 127.0.0.1 1 25",
    "BDAT 27 LAST",
    "STARTTLS",
)


@pytest.mark.parametrize("answer", VERBS_IN_AUTH)
def test_a_forbidden_verb_for_an_auth_answer_ends_the_session(answer: str) -> None:
    plays(
        STRICT
        + f"""
        C> AUTH LOGIN

        B< 334 VXNlcm5hbWU6

        C> dXNlcg==

        B< 334 UGFzc3dvcmQ6

        C| {answer}
        <- {{COMMAND_OUT_OF_PLACE}}
        :: refused verb_in_auth
        END verb_in_auth
        """
    )


# AUTH where STARTTLS is withheld.

# A backend that keeps the right, and offers STARTTLS.
STARTTLS_OFFERED = """
C> EHLO c

B< 250-mx
B| 250-XCLIENT ADDR
B| 250-STARTTLS
B| 250-AUTH PLAIN
B| 250-AUTH=PLAIN
B< 250 SIZE

"""
WITHHELD_AUTH = {
    "AUTH is hidden and refused with STARTTLS": STARTTLS_OFFERED
    + """
        C| AUTH PLAIN AHVzZXIAcGFzcw==
        C> NOOP
        <- {AUTH_UNAVAILABLE}
        :: refused auth_withheld
        """,
    "each EHLO says anew whether STARTTLS is offered": STARTTLS_OFFERED
    + """
        C> EHLO c

        B< 250-mx
        B| 250-XCLIENT ADDR
        B< 250 AUTH PLAIN

        C> AUTH PLAIN AHVzZXIAcGFzcw==
        """,
    "an EHLO reply of one line says nothing": STARTTLS_OFFERED
    + """
        C> EHLO c

        B< 250 mx

        C| AUTH PLAIN
        <- {AUTH_UNAVAILABLE}
        :: refused auth_withheld
        """,
}


def test_auth_is_withheld_before_any_ehlo_where_our_own_was_offered_starttls() -> None:
    plays(
        """
        C> HELO c

        B< 250 mx

        C| AUTH PLAIN
        <- {AUTH_UNAVAILABLE}
        :: refused auth_withheld
        """,
        Rules(starttls_offered=True),
    )


def test_a_setting_lets_auth_pass_in_plaintext() -> None:
    plays(
        """
        C> EHLO c

        B< 250-mx
        B| 250-XCLIENT ADDR
        B| 250-STARTTLS
        B< 250 AUTH PLAIN

        C> AUTH PLAIN AHVzZXIAcGFzcw==
        C| NOOP

        B< 235 hello
        -> NOOP
        """,
        Rules(allow_plaintext_auth=True, starttls_offered=True),
    )


# The EHLO reply.

HIDDEN = {
    "extensions that a strict session can't have": """
        C> EHLO c

        B< 250-mx
        B| 250-XCLIENT ADDR
        B| 250-XFORWARD NAME
        B| 250-CHUNKING
        B| 250-BINARYMIME
        B| 250-burl imap
        B| 250-STARTTLS
        B< 250 SIZE
        """,
    "the last lines": """
        C> EHLO c

        B< 250-mx
        B| 250-SIZE
        <- 250 SIZE
        B| 250-CHUNKING
        B| 250 XCLIENT ADDR
        """,
    "but nothing of another reply": """
        C> HELP
        C> NOOP

        B< 214-XCLIENT
        B< 214 STARTTLS
        B< 250-mx
        B< 250 XCLIENT ADDR
        """,
}

# Replies.

REPLIES = {
    "one that nobody asked for is delivered, and the last": """
        C> NOOP

        B< 250 ok
        B< 250 once more
        <- {OUT_OF_STEP}
        B| 250 and again
        END reply_unasked
        """,
    "one in content too": CONTENT
    + """
        C> Subject: a

        B< 452 disk full
        <- {OUT_OF_STEP}
        END reply_unasked
        """,
    "a backend that says 421 has said all": """
        B< 421 4.4.2 timeout
        :: backend-quitting
        END reply_unasked
        """,
    "a 354 to another command": """
        C> RCPT TO:<b@b.example>

        B< 354 go on
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "a 334 to another command": """
        C> NOOP
        C> RSET

        B< 334 eh
        :: ending

        B< 250 ok
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "a 220, for that is what an XCLIENT is answered with": """
        C> NOOP

        B< 220 mx
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "a 354 to an AUTH answer": STRICT
    + """
        C> AUTH LOGIN

        B< 334 VXNlcm5hbWU6

        C> DATA

        B< 354 go on
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "a 354 to DATA while others are owed is no other's": """
        C> MAIL FROM:<>
        C> DATA

        B< 354 go on
        :: ending

        B< 354 go on
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "are delivered whole": """
        C> NOOP
        C> NOOP

        B< "250-a\\r\\n250-b\\n250 c\\n"
        B| "25"

        B| "0-d\\r\\n"

        B| 250 e
        <- 250-d
        <- 250 e
        """,
}


@table(PROOF)
def test_only_the_reply_to_the_clients_own_ehlo_proves_that_the_right_is_gone(
    transcript: str,
) -> None:
    plays(transcript)


@table(WAITS)
def test_what_a_reply_decides_waits_for_it(transcript: str) -> None:
    plays(transcript)


@table(REFUSED)
def test_commands_that_are_refused(transcript: str) -> None:
    plays(transcript)


@table(LONG)
def test_lines_have_a_longest(transcript: str) -> None:
    plays(transcript)


@table(AUTH)
def test_an_auth_dialogue(transcript: str) -> None:
    plays(transcript)


@table(WITHHELD_AUTH)
def test_a_login_that_the_backend_would_misjudge_is_withheld(transcript: str) -> None:
    plays(transcript)


@table(HIDDEN)
def test_extensions_are_hidden(transcript: str) -> None:
    plays(transcript)


@table(REPLIES)
def test_replies_are_counted(transcript: str) -> None:
    plays(transcript)


# Content.

# Behind the end of the last line of content, or at its start.
ODD_DOTS = {
    "LF.LF": '"x\\n.\\n"',
    "LF.CRLF": '"x\\n.\\r\\n"',
    "CRLF.LF": '"x\\r\\n.\\n"',
    "CRLF.CRCRLF": '"x\\r\\n.\\r\\r\\n"',
    "CRLF.NUL CRLF": '"x\\r\\n.\\x00\\r\\n"',
    "CRLF.SP CRLF": '"x\\r\\n. \\r\\n"',
    "CRLF.TAB LF": '"x\\r\\n.\\t\\n"',
    "the first line with LF": '".\\n"',
}
NO_DOTS = {
    "CR.CR": '"x\\r.\\r\\n"',
    "CRLF.CR x": '"x\\r\\n.\\rx\\r\\n"',
    "CRLF..CRLF": '"x\\r\\n..\\r\\n"',
    "a dot and text": '"x\\r\\n.x\\r\\n"',
    "a NUL": '"x\\x00.\\r\\n"',
}
FORBIDDEN_IN_CONTENT = (
    '"XCLIENT ADDR=127.0.0.1\\n"',
    '"\\v\\f\\r xclient\\x00\\r\\n"',
    "XFORWARD NAME=a",
    "PROXY TCP4 127.0.0.1 127.0.0.1 1 25",
    "BDAT 27",
    "STARTTLS",
)


@pytest.mark.parametrize("dot", ODD_DOTS.values(), ids=ODD_DOTS.keys())
@pytest.mark.parametrize("line", FORBIDDEN_IN_CONTENT)
def test_behind_an_odd_dot_a_forbidden_verb_ends_the_session(
    dot: str, line: str
) -> None:
    plays(
        CONTENT
        + f"""
        C> {dot}
        C> MAIL FROM:<c@c.example>
        C| {line}
        C| .
        <- {{COMMAND_OUT_OF_PLACE}}
        :: refused verb_in_content
        END verb_in_content
        """
    )


@pytest.mark.parametrize("dot", ODD_DOTS.values(), ids=ODD_DOTS.keys())
def test_an_odd_dot_is_content_until_the_backend_says_otherwise(dot: str) -> None:
    plays(
        CONTENT
        + f"""
        C> {dot}
        C> more
        C| "unfinished"
        :: content

        C| "\\r\\n"
        -> unfinished
        C> .
        C| NOOP
        :: final_reply

        B< 250 queued
        -> NOOP
        :: idle accepted=1
        """
    )


@pytest.mark.parametrize("dot", ODD_DOTS.values(), ids=ODD_DOTS.keys())
def test_behind_an_odd_dot_that_ended_content_stand_commands(dot: str) -> None:
    plays(
        CONTENT
        + f"""
        C> {dot}

        B< 250 queued
        :: idle accepted=1

        C| XCLIENT ADDR=127.0.0.1
        <- {{NOT_AUTHORIZED}}
        C> NOOP
        :: refused xclient_injected

        B< 250 ok

        C> EHLO c

        B< 250-mx
        B| 250-STARTTLS
        B< 250 SIZE
        :: strict
        """
    )


@pytest.mark.parametrize("dot", NO_DOTS.values(), ids=NO_DOTS.keys())
def test_content_passes_unread_while_no_odd_dot_passed(dot: str) -> None:
    plays(
        CONTENT
        + f"""
        C> {dot}
        C> XCLIENT ADDR=127.0.0.1
        C> PROXY TCP4 127.0.0.1 127.0.0.1 1 25
        C> "BDAT 3\\n\\x00\\x01"
        C> "\\r\\n"
        C> .
        C| QUIT
        :: final_reply

        B< 250 queued
        -> QUIT
        :: idle accepted=1
        """
    )


SCREENED = {
    "from an unknown verb on content is read": """
        C> FOO

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
    "from a known verb in an odd form on": """
        C> " RSET\\r\\n"

        B< 250 ok
        """
    + CONTENT
    + """
        C| PROXY UNKNOWN
        <- {COMMAND_OUT_OF_PLACE}
        :: refused verb_in_content
        END verb_in_content
        """,
    "from an odd dot on the next content too": CONTENT
    + """
        C> "x\\n.\\n"
        C> .

        B< 250 queued
        """
    + CONTENT
    + """
        C> "XCLIENTS and others\\r\\n"
        C| XCLIENT
        <- {COMMAND_OUT_OF_PLACE}
        :: refused verb_in_content
        END verb_in_content
        """,
    "an ordinary message passes": """
        C> FOO

        B< 500 what?
        """
    + CONTENT
    + """
        C> Subject: xclient
        C> "\\r\\n"
        C> "\\x00\\x01\\x02\\rXCLIENT\\n"
        C> ..
        C> .

        B< 250 queued
        :: accepted=1
        """,
    "a line has a longest there": """
        C> FOO

        B< 500 what?
        """
    + CONTENT
    + """
        C> "x" * 12286
        C> "\\r\\n"

        C| "x" * 12288
        <- {LINE_TOO_LONG}
        END command_too_long
        """,
    "behind an odd dot a backend may close": CONTENT
    + """
        C> "x\\n.\\n"

        B< 421 4.7.0 no bare LF here

        !! the backend closes
        """,
    "a backend that ran what followed the dot is behind the count": CONTENT
    + """
        C> "x\\n.\\nNOOP\\n"

        B< 250 queued
        B< 250 ok
        <- {OUT_OF_STEP}
        END reply_unasked
        """,
    "a 354 behind an odd dot is out of place": CONTENT
    + """
        C> "x\\n.\\n"

        B< 354 go on
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
}


@table(SCREENED)
def test_content_is_screened_once_the_count_is_not_sure(transcript: str) -> None:
    plays(transcript)
