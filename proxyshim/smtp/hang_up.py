"""Why the backend hung up: it has judged the client, or it has failed.

A 5yz or a 421 before the end is the backend's judgement of the client, unless the 421 says that it
is about the backend itself.  Source: RFC 5321, 3.8 (421) and RFC 3463, 3.4 (X.3.Z, the state of the
mail system).
"""

import re
from typing import Final, NamedTuple

from proxyshim.errors import Reason
from proxyshim.smtp.replies import Reply

_ABOUT_ITSELF: Final = re.compile(rb"421[ -]4\.3\.")
_HAS_ENHANCED_CODE: Final = re.compile(rb"421[ -][245]\.[0-9]{1,3}\.[0-9]{1,3}\b")


class Farewell(NamedTuple):
    """A 421 of the backend: what it means if the backend hangs up, and its text for the log."""

    reason: Reason
    text: str


def read_farewell(reply: Reply, *, client_has_spoken: bool) -> Farewell:
    """Return what a 421 means.

    Without an enhanced code, one that comes before the client has said anything cannot be about
    what the client did: the backend is full, or stops.
    """
    is_failure = _ABOUT_ITSELF.match(reply.raw) is not None or not (
        client_has_spoken or _HAS_ENHANCED_CODE.match(reply.raw)
    )
    reason = Reason.BACKEND_CLOSED if is_failure else Reason.CLIENT_REFUSED
    return Farewell(reason, f"closed with: {reply.excerpt()}")
