"""Is this a host name, by the MTA's own rules?

What the DNS returns is a stranger's text: a name that fails here is never sent and never logged.
Source: RFC 1123, 2.1, with the underscore that Postfix's valid_hostname() lets pass.
"""

import re
from typing import Final

MAX_OCTETS: Final = 255

_LABEL: Final = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME: Final = re.compile(_LABEL + rb"(?:\." + _LABEL + rb")*")
_NUMERIC: Final = re.compile(rb"[0-9.]*")


def is_host_name(name: bytes) -> bool:
    """Tell whether *name*, without a dot at its end, may be conveyed as a client's name.

    Digits and dots alone do not make one: that would be an address.
    """
    return (
        len(name) <= MAX_OCTETS
        and _HOST_NAME.fullmatch(name) is not None
        and _NUMERIC.fullmatch(name) is None
    )
