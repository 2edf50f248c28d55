"""The EHLO reply: read what the backend offers, and hide what the client must not see.

The first line is the server's greeting.  We never read a keyword in it, because the client's own
name may appear there.  Source: RFC 5321, 4.1.1.1.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from proxyshim.smtp.lines import split_lines
from proxyshim.smtp.replies import Reply

# "AUTH=LOGIN" is an old spelling of "AUTH LOGIN".  Some servers send both.
_KEYWORD = re.compile(rb"[2-5][0-9]{2}[- ][ \t]*([^ \t=\r\n]*)[ \t=]?([^\r\n]*)")

# A server sends everybody the same lines after the first, so we parse them once and cache the
# result.  The cache is bounded, because a server may behave differently.
_CACHED_OFFERS: Final = 128
# A longer offer is parsed each time, so that the cache is bounded in octets as well.
_MAX_CACHED_OCTETS: Final = 8_192


def read_extensions(reply: Reply) -> Mapping[bytes, bytes]:
    """Return the parameters of each keyword, in upper case.  The first of several counts."""
    offer = _split(reply)[1]
    return _read(offer) if _may_cache(offer) else _read.__wrapped__(offer)


def read_keywords(reply: Reply) -> frozenset[bytes]:
    """Return the keywords without their parameters."""
    offer = _split(reply)[1]
    if _may_cache(offer):
        return _read_keywords(offer)
    return frozenset(_read.__wrapped__(offer))


def hide(reply: Reply, keywords: frozenset[bytes], added: bytes = b"") -> bytes:
    """Return the bytes of *reply* without the lines that offer one of *keywords*.

    The other lines do not change, except for the separator of the one that becomes the last.  A
    line that offers *added* comes last, if there is one.
    """
    first, offer = _split(reply)
    hide_in = _hide if _may_cache(offer) else _hide.__wrapped__
    kept = hide_in(offer, keywords)
    if added:
        last = b"%d %b\r\n" % (reply.code, added)
        return b"".join(map(_as_not_last, split_lines(first + kept))) + last
    if kept == offer:
        return reply.raw
    return first + kept if kept else _as_last(first)


def _split(reply: Reply) -> tuple[bytes, bytes]:
    """Return the first line, and all others."""
    raw = reply.raw
    end = raw.find(b"\n") + 1 or len(raw)
    return raw[:end], raw[end:]


def _may_cache(offer: bytes) -> bool:
    return len(offer) <= _MAX_CACHED_OCTETS


@lru_cache(_CACHED_OFFERS)
def _read(offer: bytes) -> Mapping[bytes, bytes]:
    offered: dict[bytes, bytes] = {}
    for line in split_lines(offer):
        found = _KEYWORD.match(line)
        if found and found[1]:
            offered.setdefault(found[1].upper(), found[2].strip())
    return MappingProxyType(offered)


@lru_cache(_CACHED_OFFERS)
def _read_keywords(offer: bytes) -> frozenset[bytes]:
    return frozenset(_read(offer))


@lru_cache(_CACHED_OFFERS)
def _hide(offer: bytes, keywords: frozenset[bytes]) -> bytes:
    lines = split_lines(offer)
    kept = [line for line in lines if _keyword_of(line) not in keywords]
    if kept and len(kept) < len(lines):
        kept[-1] = _as_last(kept[-1])
    return b"".join(kept)


def _as_last(line: bytes) -> bytes:
    return line[:3] + b" " + line[4:]


def _as_not_last(line: bytes) -> bytes:
    text = line[4:] if len(line.rstrip(b"\r\n")) > 3 else b"\r\n"
    return line[:3] + b"-" + text


def _keyword_of(line: bytes) -> bytes:
    found = _KEYWORD.match(line)
    return found[1].upper() if found else b""
