"""Strict sessions: never more permissive than any server, until the proof is there."""

import pytest

from proxyshim.smtp.guard import Rules
from tests.unit.transcripts import CONTENT, RELAXED, STRICT, plays, table

# What makes a session relaxed: the backend's reply to the client's own EHLO, and nothing else.

PROOF = {
    "an EHLO reply without XCLIENT makes the session relaxed": RELAXED,
    "an EHLO reply with XCLIENT leaves the session strict": STRICT,
    "the XCLIENT keyword counts in any case and spelling": """
        C> EHLO c

        B< 250-mx
        B| 250-xClient=ADDR
        B< 250 SIZE
        :: strict
        """,
    "an XCLIENT keyword in the last line counts": """
        C> EHLO c

        B| 250-mx
        B| 250 XCLIENT ADDR
        <- 250 mx
        :: strict
        """,
    "XCLIENT in the first line is not a keyword": """
        C> EHLO c

        B< 250-XCLIENT ADDR
        B< 250 SIZE
        :: relaxed
        """,
    "an EHLO reply of one line proves nothing": """
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
    "a reply with another code than 250 proves nothing": """
        C> EHLO c

        B< 550-mx
        B< 550 SIZE
        :: strict
        """,
    "the reply to a HELO proves nothing": """
        C> HELO c

        B< 250-mx
        B< 250 SIZE
        :: strict
        """,
    "replies to other commands prove nothing": """
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
    "half a reply proves nothing": """
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
    "each EHLO decides again": """
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
    "a right that comes back ends the session if a reply is owed": RELAXED
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
    "a right that comes back ends the session in the middle of a line": RELAXED
    + """
        C> EHLO c
        C> "NOO"

        B< 250-mx
        B| 250-XCLIENT ADDR
        B< 250 SIZE
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "after the proof, held commands are read as relaxed": """
        C> EHLO c
        C| STARTTLS

        B< 250-mx
        B< 250 STARTTLS
        -> STARTTLS
        :: relaxed

        B< 220 go on
        :: opaque
        """,
    "without a proof, held commands are read as strict": """
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

# After a line that servers may not answer exactly once, no reply counts as the proof.

UNCOUNTED = {
    "an unknown verb before a TAB": '"FOO\\tx\\r\\n"',
    "an unknown verb with an octet above ASCII": '"F\\xa0O\\r\\n"',
    "a known verb after blanks": '" NOOP\\r\\n"',
    "a known verb before a TAB": '"NOOP\\tx\\r\\n"',
    "only blanks": '"  \\r\\n"',
}


@pytest.mark.parametrize("line", UNCOUNTED.values(), ids=UNCOUNTED.keys())
def test_no_reply_is_a_proof_after_a_line_that_servers_answer_differently(
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
    "a colon in the argument": "MAIL FROM:<>",
    "a verb before a bare LF": '"NOOP\\n"',
    "a blank at the end": '"NOOP \\r\\n"',
    "an unknown verb": "FOO",
    "an unknown verb and an argument": "XXXX h",
    "an unknown verb with other characters": "X-FOO2",
    "a verb with a colon": "NOOP: x",
    "a dot": ".",
}


@pytest.mark.parametrize("line", COUNTED.values(), ids=COUNTED.keys())
def test_a_proof_counts_after_a_line_that_every_server_answers_once(
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


# What must wait for a reply.

WAITING = {
    "EHLO": "EHLO c",
    "HELO": "HELO c",
    "DATA": "DATA",
    "AUTH": "AUTH PLAIN",
    "an unknown verb": "FOO",
    "a known verb after blanks": '" NOOP\\r\\n"',
    "a known verb before a TAB": '"NOOP\\tx\\r\\n"',
}


@pytest.mark.parametrize("command", WAITING.values(), ids=WAITING.keys())
def test_nothing_passes_after_a_command_that_may_change_the_framing(
    command: str,
) -> None:
    plays(
        f"""
        C> {command}
        C| NOOP
        C| XCLIENT ADDR=127.0.0.1
        C| RSET

        B< 550 no
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
    "a HELO waits until no reply is owed": """
        C> NOOP
        C| HELO c

        B< 250 ok
        -> HELO c
        """,
    "an EHLO also waits for our own reply": """
        C> NOOP
        C| XCLIENT ADDR=127.0.0.1
        C| EHLO c
        :: refused xclient_injected

        B< 250 ok
        <- {NOT_AUTHORIZED}
        -> EHLO c
        """,
    "nothing passes after the end of content until the reply": CONTENT
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
    "commands follow a refused DATA": """
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

# Which commands are refused, and which of them end the session.

REFUSED = {
    "XCLIENT with attributes": """
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
    "XCLIENT after blanks": """
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
    "PROXY ends the session": """
        C| PROXY TCP4 127.0.0.1 127.0.0.1 1 25
        C| NOOP
        <- {PROXY_UNWELCOME}
        :: refused proxy_injected
        END proxy_injected
        """,
    "PROXY after a TAB and in lower case ends the session": """
        C| "\\t proxy\\n"
        <- {PROXY_UNWELCOME}
        :: refused proxy_injected
        END proxy_injected
        """,
    "a v2 signature is reported as PROXY and ends the session": """
        C> "\\r\\n\\r\\n"
        C| "\\x00\\r\\nQUIT\\n!\\x11\\x00\\x0c\\x7f\\x00\\x00\\x01"
        :: refused proxy_injected
        :: ending

        B< 500 what?
        B< 500 what?

        !! a moment passes
        <- {CONTROL_OCTET}
        END control_octet
        """,
    "STARTTLS": """
        C| STARTTLS
        C> NOOP
        <- {TLS_UNAVAILABLE}
        :: refused starttls_withheld
        """,
    "BDAT ends the session": """
        C| "BDAT 27 LAST\\r\\nXCLIENT ADDR=198.51.100.1\\r\\n"
        <- {CHUNKING_UNAVAILABLE}
        :: refused bdat_refused
        END bdat_refused
        """,
    "BDAT in odd forms ends the session": """
        C| "\\tbdat\\t0x0c\\nNOOP\\n"
        <- {CHUNKING_UNAVAILABLE}
        :: refused bdat_refused
        END bdat_refused
        """,
    "refusals keep their place among the replies": """
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
    "our last reply never overtakes an owed reply": """
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
    "nothing is delivered after our last reply": """
        C> NOOP
        C| PROXY UNKNOWN
        :: refused proxy_injected

        B< 250 ok
        <- {PROXY_UNWELCOME}
        B| 250 once more
        END proxy_injected
        """,
}

# Lines in which servers may find different verbs.

ODD_LINES = {
    "a VT before the verb": '"\\x0bXCLIENT ADDR=127.0.0.1\\r\\n"',
    "a FF before the verb": '"\\x0cXCLIENT ADDR=127.0.0.1\\r\\n"',
    "a CR before the verb": '"\\rXCLIENT ADDR=127.0.0.1\\r\\n"',
    "a VT after the verb": '"XCLIENT\\x0bADDR=127.0.0.1\\r\\n"',
    "a FF after the verb": '"XCLIENT\\x0cADDR=127.0.0.1\\r\\n"',
    "a CR after the verb": '"XCLIENT\\rADDR=127.0.0.1\\r\\n"',
    "a NUL after the address": '"XCLIENT ADDR=127.0.0.1\\x00junk\\r\\n"',
    "a NUL after the verb": '"XCLIENT\\x00 x\\r\\n"',
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
    "a longer line ends the session": """
        C| "NOOP "
        C| "x" * 12283
        C| "XCLIENT ADDR=127.0.0.1\\r\\n"
        <- {LINE_TOO_LONG}
        END command_too_long
        """,
    "an endless line ends the session": """
        C| "x" * 12287

        C| "x"
        <- {LINE_TOO_LONG}
        END command_too_long
        """,
    "endless blanks end the session": """
        C| " " * 20000
        <- {LINE_TOO_LONG}
        END command_too_long
        """,
    "an endless AUTH answer ends the session": STRICT
    + """
        C> AUTH LOGIN

        B< 334 VXNlcm5hbWU6

        C| "x" * 12288
        <- {LINE_TOO_LONG}
        END command_too_long
        """,
    "a line of content may have any length": CONTENT
    + """
        C> "x" * 30000

        C> "\\r\\n"
        C> .
        :: final_reply
        """,
}

# AUTH.

AUTH = {
    "answers pass one by one after each 334": STRICT
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
    "an initial response needs no further answer": STRICT
    + """
        C> AUTH PLAIN AHVzZXIAcGFzcw==
        C| MAIL FROM:<>

        B< 235 hello
        -> MAIL FROM:<>
        """,
    "an empty answer and an asterisk pass": STRICT
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
    "commands follow a refused AUTH": STRICT
    + """
        C> AUTH LOGIN
        C| XCLIENT ADDR=127.0.0.1
        C| NOOP

        B< 535 no
        <- {NOT_AUTHORIZED}
        -> NOOP
        :: refused xclient_injected
        """,
    "an answer gets one reply like a command": STRICT
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
    "an answer with a NUL ends the session": STRICT
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
def test_a_forbidden_verb_as_an_auth_answer_ends_the_session(answer: str) -> None:
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

# A backend that still grants XCLIENT, and offers STARTTLS.
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
    "AUTH passes once an EHLO reply no longer offers STARTTLS": STARTTLS_OFFERED
    + """
        C> EHLO c

        B< 250-mx
        B| 250-XCLIENT ADDR
        B< 250 AUTH PLAIN

        C> AUTH PLAIN AHVzZXIAcGFzcw==
        """,
    "an EHLO reply of one line does not make AUTH pass": STARTTLS_OFFERED
    + """
        C> EHLO c

        B< 250 mx

        C| AUTH PLAIN
        <- {AUTH_UNAVAILABLE}
        :: refused auth_withheld
        """,
}


def test_auth_is_withheld_before_any_ehlo_if_our_own_ehlo_was_offered_starttls() -> (
    None
):
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


def test_allow_plaintext_auth_lets_auth_pass_where_starttls_is_withheld() -> None:
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
    "extensions that a strict session cannot have": """
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
    "extensions in the last lines": """
        C> EHLO c

        B< 250-mx
        B| 250-SIZE
        <- 250 SIZE
        B| 250-CHUNKING
        B| 250 XCLIENT ADDR
        """,
    "replies to other commands stay as they are": """
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
    "an unsolicited reply is delivered and ends the session": """
        C> NOOP

        B< 250 ok
        B< 250 once more
        <- {OUT_OF_STEP}
        B| 250 and again
        END reply_unasked
        """,
    "an unsolicited reply in content ends the session": CONTENT
    + """
        C> Subject: a

        B< 452 disk full
        END reply_unasked
        """,
    "an unsolicited 421 ends the session without a reply of our own": """
        B< 421 4.4.2 timeout
        :: backend-quitting
        END client_refused
        """,
    "a 354 to another command ends the session": """
        C> RCPT TO:<b@b.example>

        B< 354 go on
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "a 334 to another command ends the session": """
        C> NOOP
        C> RSET

        B< 334 eh
        :: ending

        B< 250 ok
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "a 220 ends the session because it is the reply to XCLIENT": """
        C> NOOP

        B< 220 mx
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "a 354 to an AUTH answer ends the session": STRICT
    + """
        C> AUTH LOGIN

        B< 334 VXNlcm5hbWU6

        C> DATA

        B< 354 go on
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "a 354 to an earlier command than DATA ends the session": """
        C> MAIL FROM:<>
        C> DATA

        B< 354 go on
        :: ending

        B< 354 go on
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
    "replies are delivered whole": """
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
def test_only_the_reply_to_the_clients_own_ehlo_decides_the_mode(
    transcript: str,
) -> None:
    plays(transcript)


@table(WAITS)
def test_strict_client_input_waits_for_the_reply_that_decides_its_meaning(
    transcript: str,
) -> None:
    plays(transcript)


@table(REFUSED)
def test_strict_session_refuses_command(transcript: str) -> None:
    plays(transcript)


@table(LONG)
def test_strict_line_length_limit(transcript: str) -> None:
    plays(transcript)


@table(AUTH)
def test_strict_auth_dialogue(transcript: str) -> None:
    plays(transcript)


@table(WITHHELD_AUTH)
def test_auth_is_withheld_where_starttls_is(transcript: str) -> None:
    plays(transcript)


@table(HIDDEN)
def test_strict_session_hides_extensions(transcript: str) -> None:
    plays(transcript)


@table(REPLIES)
def test_strict_session_matches_replies_to_commands(transcript: str) -> None:
    plays(transcript)


# Content.

# Lone dots that only some servers take for the end of content.
ODD_DOTS = {
    "LF.LF": '"x\\n.\\n"',
    "LF.CRLF": '"x\\n.\\r\\n"',
    "CRLF.LF": '"x\\r\\n.\\n"',
    "CRLF.CRCRLF": '"x\\r\\n.\\r\\r\\n"',
    "CRLF.NUL CRLF": '"x\\r\\n.\\x00\\r\\n"',
    "CRLF.SP CRLF": '"x\\r\\n. \\r\\n"',
    "CRLF.TAB LF": '"x\\r\\n.\\t\\n"',
    "a first line of dot LF": '".\\n"',
}
NOT_LONE_DOTS = {
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
def test_a_forbidden_verb_after_an_odd_dot_ends_the_session(
    dot: str, line: str
) -> None:
    plays(
        CONTENT
        + f"""
        C> {dot}
        C> MAIL FROM:<c@c.example>
        C| {line}
        C| .
        :: refused verb_in_content
        :: ending

        B< 250 queued
        <- {{COMMAND_OUT_OF_PLACE}}
        :: accepted=1
        END verb_in_content
        """
    )


@pytest.mark.parametrize("dot", ODD_DOTS.values(), ids=ODD_DOTS.keys())
def test_an_odd_dot_is_content_until_the_backend_replies_to_it(dot: str) -> None:
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
def test_commands_follow_an_odd_dot_that_the_backend_replied_to(dot: str) -> None:
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


@pytest.mark.parametrize("dot", NOT_LONE_DOTS.values(), ids=NOT_LONE_DOTS.keys())
def test_content_passes_unchecked_while_no_odd_dot_has_passed(dot: str) -> None:
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


CHECKED = {
    "a forbidden verb in the next content after an odd dot ends the session": CONTENT
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
    "an ordinary message passes after an odd dot": CONTENT
    + """
        C> "x\\n.\\n"
        C> Subject: xclient
        C> "\\r\\n"
        C> "\\x00\\x01\\x02\\rXCLIENT\\n"
        C> ..
        C> .

        B< 250 queued
        :: accepted=1
        """,
    "a line of checked content must not be too long": CONTENT
    + """
        C> "x\\n.\\n"
        C> "x" * 12286
        C> "\\r\\n"

        C| "x" * 12288
        :: ending

        B< 250 queued
        <- {LINE_TOO_LONG}
        :: accepted=1
        END command_too_long
        """,
    "a backend may close after an odd dot": CONTENT
    + """
        C> "x\\n.\\n"

        B< 421 4.7.0 no bare LF here

        !! the backend closes
        END client_refused
        """,
    "a backend that executed what followed an odd dot ends the session": CONTENT
    + """
        C> "x\\n.\\nNOOP\\n"

        B< 250 queued
        B< 250 ok
        <- {OUT_OF_STEP}
        END reply_unasked
        """,
    "a 354 after an odd dot ends the session": CONTENT
    + """
        C> "x\\n.\\n"

        B< 354 go on
        <- {OUT_OF_STEP}
        END reply_out_of_place
        """,
}


@table(CHECKED)
def test_content_is_checked_after_an_odd_dot(transcript: str) -> None:
    plays(transcript)
