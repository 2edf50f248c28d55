"""The EHLO reply: what the backend offers, and hiding what the client must not see.

The first line is the server's greeting and holds no keyword, whatever it says; a client's own
name may stand in it.  Source: RFC 5321, 4.1.1.1.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from proxyshim.smtp.lines import lines_of
from proxyshim.smtp.replies import Reply

# "AUTH=LOGIN" is an old spelling of "AUTH LOGIN" that servers still send beside it.
_KEYWORD = re.compile(rb"[2-5][0-9]{2}[- ][ \t]*([^ \t=\r\n]*)[ \t=]?([^\r\n]*)")


# A server says the same to everybody, but for a name in the first line; so what its replies
# mean is worked out once.  Bounded, for the name may be a client's.
_KNOWN_REPLIES: Final = 128


def read_extensions(reply: Reply) -> Mapping[bytes, bytes]:
    """Return keyword -> parameters, the keywords in upper case; of repeated ones the first."""
    return _read(reply.raw)


@lru_cache(_KNOWN_REPLIES)
def _read(raw: bytes) -> Mapping[bytes, bytes]:
    offered: dict[bytes, bytes] = {}
    for line in lines_of(raw)[1:]:
        found = _KEYWORD.match(line)
        if found and found[1]:
            offered.setdefault(found[1].upper(), found[2].strip())
    return MappingProxyType(offered)


def hide(reply: Reply, keywords: frozenset[bytes]) -> bytes:
    """Return the octets of *reply* without the lines that offer one of *keywords*.

    The other lines stay octet for octet, but for the separator of the one that becomes last.
    """
    return _hide(reply.raw, keywords)


@lru_cache(_KNOWN_REPLIES)
def _hide(raw: bytes, keywords: frozenset[bytes]) -> bytes:
    first, *rest = lines_of(raw)
    kept = [line for line in rest if _keyword_of(line) not in keywords]
    if len(kept) == len(rest):
        return raw
    *inner, last = [first, *kept]
    return b"".join(inner) + last[:3] + b" " + last[4:]


def _keyword_of(line: bytes) -> bytes:
    found = _KEYWORD.match(line)
    return found[1].upper() if found else b""
