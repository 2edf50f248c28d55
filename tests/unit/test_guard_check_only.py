"""Check-only sessions: a health check may see that the backend is alive, and nothing else."""

import pytest

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.guard import Rules
from proxyshim.smtp.verbs import Refusal
from tests.unit.transcripts import plays, table

RULES = Rules(
    check_only=Refusal(replies.NO_CLIENT_ADDRESS, Reason.NO_CLIENT_ADDRESS, ends=True)
)

CHECKS = {
    "the five permitted commands pass": """
        C> EHLO c

        B< 250-mx
        B| 250-XCLIENT ADDR
        B| 250-STARTTLS
        B< 250 SIZE
        :: strict

        C> NOOP
        C> RSET
        C| HELO c
        C| QUIT

        B< 250 ok
        B< 250 ok
        -> HELO c

        B< 250 mx
        -> QUIT

        B< 221 bye
        :: idle backend-quitting
        """,
    "an EHLO reply without XCLIENT does not make the session relaxed": """
        C> EHLO c

        B< 250-mx
        B| 250-STARTTLS
        B< 250 SIZE
        :: strict
        """,
    "XCLIENT is refused as in any session": """
        C| XCLIENT ADDR=127.0.0.1
        <- {NOT_AUTHORIZED}
        :: refused xclient_injected
        """,
    "PROXY ends the session as in any session": """
        C| PROXY TCP4 127.0.0.1 127.0.0.1 1 25
        <- {PROXY_UNWELCOME}
        :: refused proxy_injected
        END proxy_injected
        """,
    "a refusal does not overtake an owed reply": """
        C> NOOP
        C| MAIL FROM:<>
        C| QUIT
        :: refused no_client_address

        B< 250 ok
        <- {NO_CLIENT_ADDRESS}
        END no_client_address
        """,
    "control octets end the session": """
        C| "NOOP\\x00\\r\\n"
        <- {CONTROL_OCTET}
        END control_octet
        """,
}
REFUSED = (
    "MAIL FROM:<>",
    "RCPT TO:<b@b.example>",
    "DATA",
    "AUTH PLAIN",
    "STARTTLS",
    "BDAT 5 LAST",
    "VRFY a",
    "EXPN a",
    "HELP",
    "ETRN a",
    "FOO",
    '"\\r\\n"',
    '"  \\r\\n"',
    '" mail FROM:<>\\n"',
)


@table(CHECKS)
def test_check_only_session(transcript: str) -> None:
    plays(transcript, RULES)


@pytest.mark.parametrize("command", REFUSED)
def test_any_other_command_ends_a_check_only_session_with_its_reason(
    command: str,
) -> None:
    plays(
        f"""
        C| {command}
        C| NOOP
        <- {{NO_CLIENT_ADDRESS}}
        :: refused no_client_address
        END no_client_address
        """,
        RULES,
    )
