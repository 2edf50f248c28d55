"""The MTA's judgement of a client, in place of the greeting.

A mail server refuses a client at once where a direct client would have read its greeting: in the
first reply of a connection that it takes for the client's, or in its reply to XCLIENT.
"""

import re
from typing import Final

from proxyshim.conveyance.contract import ClientRefused
from proxyshim.errors import BackendError, Reason
from proxyshim.smtp.hang_up import read_farewell
from proxyshim.smtp.replies import Reply

# These replies are the MTA's verdict on the client; any other 5yz is about the command or the
# connection itself.  In 550, X.7.1 is an access map's or another policy's, and X.7.25 (RFC 7372) is
# about a client without a host name.  We match the whole enhanced code, because Dovecot answers an
# XCLIENT that it does not take with 550 5.7.14.
_CLIENT_REFUSAL: Final = 554
_POLICY_REFUSAL: Final = re.compile(rb"550[ -]5\.7\.(?:1|25)(?![0-9])")


def is_judgement(reply: Reply) -> bool:
    """Return True if *reply*, which is not 220, can only be about the client."""
    return (
        400 <= reply.code <= 499
        or reply.code == _CLIENT_REFUSAL
        or _POLICY_REFUSAL.match(reply.raw) is not None
    )


def judge_first_greeting(greeting: Reply) -> None:
    """Judge the first reply on a connection that the backend takes for the client's.

    Raises ClientRefused for the MTA's judgement of the client, and BackendError for any other
    reply than 220.  A 421 can be about the state of the backend as well.
    """
    if greeting.code == 220:
        return
    is_about_backend = (
        greeting.code == 421
        and read_farewell(greeting, client_has_spoken=False).reason
        is Reason.BACKEND_CLOSED
    )
    if is_judgement(greeting) and not is_about_backend:
        raise ClientRefused(greeting)
    raise BackendError(Reason.BACKEND_GREETING, f"greeted with: {greeting.excerpt()}")
