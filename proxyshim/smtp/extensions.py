"""The EHLO reply: what the backend offers, and hiding what the client must not see.

The first line is the server's greeting and holds no keyword, whatever it says; a client's own
name may stand in it.  Source: RFC 5321, 4.1.1.1.
"""

import re
from collections.abc import Collection

from proxyshim.smtp.lines import lines_of
from proxyshim.smtp.replies import Reply

# "AUTH=LOGIN" is an old spelling of "AUTH LOGIN" that servers still send beside it.
_KEYWORD = re.compile(rb"[2-5][0-9]{2}[- ][ \t]*([^ \t=\r\n]*)[ \t=]?([^\r\n]*)")


def read_extensions(reply: Reply) -> dict[bytes, bytes]:
    """Return keyword -> parameters, the keywords in upper case; of repeated ones the first."""
    offered: dict[bytes, bytes] = {}
    for line in lines_of(reply.raw)[1:]:
        found = _KEYWORD.match(line)
        if found and found[1]:
            offered.setdefault(found[1].upper(), found[2].strip())
    return offered


def hide(reply: Reply, keywords: Collection[bytes]) -> bytes:
    """Return the octets of *reply* without the lines that offer one of *keywords*.

    The other lines stay octet for octet, but for the separator of the one that becomes last.
    """
    first, *rest = lines_of(reply.raw)
    kept = [line for line in rest if _keyword_of(line) not in keywords]
    if len(kept) == len(rest):
        return reply.raw
    *inner, last = [first, *kept]
    return b"".join(inner) + last[:3] + b" " + last[4:]


def _keyword_of(line: bytes) -> bytes:
    found = _KEYWORD.match(line)
    return found[1].upper() if found else b""
