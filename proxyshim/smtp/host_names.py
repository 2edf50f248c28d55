"""Check host names by the MTA's own rules.

A name from the DNS is text that a stranger wrote.  We neither send nor log a name that fails here.
Source: RFC 1123, 2.1, and the underscore, which Postfix's valid_hostname() accepts too.
"""

import re
from typing import Final

MAX_OCTETS: Final = 255

_LABEL: Final = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME: Final = re.compile(_LABEL + rb"(?:\." + _LABEL + rb")*")
_NUMERIC: Final = re.compile(rb"[0-9.]*")


def is_host_name(name: bytes) -> bool:
    """Return True if *name*, given without a final dot, may be conveyed as a client's name.

    A name of nothing but digits and dots is refused, because it looks like an address.
    """
    return (
        len(name) <= MAX_OCTETS
        and _HOST_NAME.fullmatch(name) is not None
        and _NUMERIC.fullmatch(name) is None
    )
