"""The table of verbs: what we do with each command, and what its reply may change.

Refused verbs have their own rows, because "known and refused" is not the same as "unknown".  A verb
that is not in the table is treated as ``UNKNOWN``.  Every server answers each command in the table
with exactly one reply; we do not know that of any other command.

Sources: RFC 5321, 4.1; RFC 3207 (STARTTLS), 4954 (AUTH), 3030 (BDAT), 1985 (ETRN),
4468 (BURL); Postfix XCLIENT_README and XFORWARD_README; PROXY spec, 2.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.lines import WHITE, verb_of


class Kind(Enum):
    """What a reply answers, as far as it matters for the state of the dialogue."""

    COMMAND = auto()
    UNKNOWN = auto()  # a verb that is not in the table
    HELO = auto()
    EHLO = auto()
    OWN_EHLO = auto()  # sent by us in the client's name; its reply is not delivered
    OWN_NOOP = auto()  # sent by us to see whether the backend took our PROXY header
    MAIL = auto()
    RSET = auto()
    DATA = auto()
    CONTENT = auto()  # the end of content, not a verb
    ODD_DOT = (
        auto()
    )  # a lone dot that may be the end of content, while our own reply waits
    AUTH = auto()
    STARTTLS = auto()
    BDAT = auto()
    BDAT_LAST = auto()
    QUIT = auto()


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a command is refused: our reply, the reason to log, and whether it ends the session."""

    reply: bytes
    reason: Reason
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """A row of the table."""

    kind: Kind = Kind.COMMAND
    # While strict: hold what follows until the reply, because that decides how it is parsed.
    waits: bool = False
    # How the command is refused in both modes; None if it is not.
    always: Refusal | None = None
    # How the command is refused while strict.  We hide its EHLO keywords then, too.
    strict: Refusal | None = None
    in_check: bool = False  # permitted in a check-only session


_XCLIENT: Final = Refusal(replies.NOT_AUTHORIZED, Reason.XCLIENT_INJECTED)
_XFORWARD: Final = Refusal(replies.NOT_AUTHORIZED, Reason.XFORWARD_INJECTED)
_PROXY: Final = Refusal(replies.PROXY_UNWELCOME, Reason.PROXY_INJECTED, ends=True)
# Some servers discard the payload of a BDAT that they refuse; others execute it as commands.
_BDAT: Final = Refusal(replies.CHUNKING_UNAVAILABLE, Reason.BDAT_REFUSED, ends=True)
_STARTTLS: Final = Refusal(replies.TLS_UNAVAILABLE, Reason.STARTTLS_WITHHELD)
_AUTH: Final = Refusal(replies.AUTH_UNAVAILABLE, Reason.AUTH_WITHHELD)

PROXY_V2_VERB: Final = b"\0\r\n"  # see lines.verb_of

VERBS: Final[dict[bytes, Verb]] = {
    b"EHLO": Verb(Kind.EHLO, waits=True, in_check=True),
    b"HELO": Verb(Kind.HELO, waits=True, in_check=True),
    b"MAIL": Verb(Kind.MAIL),
    b"RCPT": Verb(),
    b"DATA": Verb(Kind.DATA, waits=True),
    b"RSET": Verb(Kind.RSET, in_check=True),
    b"NOOP": Verb(in_check=True),
    b"QUIT": Verb(Kind.QUIT, in_check=True),
    b"VRFY": Verb(),
    b"EXPN": Verb(),
    b"HELP": Verb(),
    b"ETRN": Verb(),
    b"AUTH": Verb(Kind.AUTH, waits=True, strict=_AUTH),
    b"STARTTLS": Verb(Kind.STARTTLS, waits=True, strict=_STARTTLS),
    b"BDAT": Verb(Kind.BDAT, waits=True, strict=_BDAT),
    b"XCLIENT": Verb(always=_XCLIENT),  # only we may send it
    b"XFORWARD": Verb(always=_XFORWARD),  # some servers keep this right after XCLIENT
    b"PROXY": Verb(always=_PROXY),  # a PROXY header comes first or never
    PROXY_V2_VERB: Verb(always=_PROXY),
    b"": Verb(),  # an empty line
}
UNKNOWN: Final = Verb(Kind.UNKNOWN, waits=True)

# While strict, none of these may appear where a server could take it for a command, such as in an
# AUTH answer, or after a dot that may have ended the content.
FORBIDDEN_WHILE_STRICT: Final = frozenset(
    verb
    for verb, row in VERBS.items()
    if row.always or (row.strict and row.kind is not Kind.AUTH)
)

_FORBIDDEN_LINE: Final = re.compile(
    rb"^[%b]*(?:%b)(?:(?<=\n)|[%b\n\0])"
    % (WHITE, b"|".join(sorted(map(re.escape, FORBIDDEN_WHILE_STRICT))), WHITE),
    re.IGNORECASE | re.MULTILINE,
)


# What the search for them needs: letters in lower case; and whatever may separate a verb from
# what follows it as a space, or only the blanks that may also come before it.
_LOWER: Final = bytes(range(256)).lower()
_SEPARATORS_TO_SP: Final = _LOWER.translate(
    bytes.maketrans(WHITE + b"\n\0", b" " * (len(WHITE) + 2))
)
_BLANKS_TO_SP: Final = _LOWER.translate(bytes.maketrans(WHITE, b" " * len(WHITE)))
_WORDS: Final = tuple(
    verb.lower() for verb in sorted(FORBIDDEN_WHILE_STRICT) if verb.isalpha()
)
_MARK: Final = b"\1"


def find_forbidden(data: bytes, start: int, end: int) -> int | None:
    """Return where the first line with a forbidden verb starts; data[start:end] is whole lines.

    Calling verb_of() for every line would find the same.  But a client decides how short the
    lines are and how many look almost forbidden, and a pattern would take up to a hundred times as
    long for these.  So each step is a search or a replacement in all the octets at once.
    """
    octets = data[start:end]
    separated = octets.translate(_SEPARATORS_TO_SP)
    words = [word for word in _WORDS if word + b" " in separated]
    if not (words or PROXY_V2_VERB in octets) or not _begin_a_line(words, octets):
        return None
    found = _FORBIDDEN_LINE.search(data, start, end)
    assert found is not None
    return found.start()


def _begin_a_line(words: list[bytes], octets: bytes) -> bool:
    """Return True if a line begins with one of *words* or with PROXY_V2_VERB.

    There may be blanks before it.  So we put a mark after each, wherever it is, and remove all
    blanks then.
    """
    marked = octets.replace(_MARK, b"?").replace(PROXY_V2_VERB, _MARK + b"\r\n")
    marked = marked.translate(_BLANKS_TO_SP)
    separators = (b" ", b"\n", b"\0") if b"\0" in marked else (b" ", b"\n")
    for word in words:
        for separator in separators:
            marked = marked.replace(word + separator, word + _MARK + separator)
    lines = b"\n" + marked.translate(None, b" ")
    return any(b"\n" + word + _MARK in lines for word in (b"", *words))


HIDDEN_ALWAYS: Final = frozenset({b"XCLIENT", b"XFORWARD"})
HIDDEN_WHILE_STRICT: Final = HIDDEN_ALWAYS | {
    b"STARTTLS",
    b"CHUNKING",
    b"BINARYMIME",
    b"BURL",
}

# What a session refuses even while relaxed: all commands that only we may send; or, where the
# backend gives us no right that a client could use, only a second PROXY header.
REFUSED_ALWAYS: Final = frozenset(verb for verb, row in VERBS.items() if row.always)
REFUSED_HEADERS: Final = frozenset({b"PROXY", PROXY_V2_VERB})


def may_become_refused(line_start: bytes, refused: frozenset[bytes]) -> bool:
    """Return True if a line that starts like this may be a command with a *refused* verb."""
    start = line_start.lstrip(WHITE).upper()
    if any(verb.startswith(start) for verb in refused):
        return True
    return verb_of(line_start) in refused


_BDAT_LINE = re.compile(rb"BDAT +([0-9]{1,9})( +LAST)? *\r?\n", re.IGNORECASE)


def read_bdat(line: bytes) -> tuple[int, bool] | None:
    """Return a BDAT's size in octets, and True if it is the last one.

    Return None for any other form than that of RFC 3030, 2, because servers differ in what else
    they accept as a number.
    """
    found = _BDAT_LINE.fullmatch(line)
    return (int(found[1]), found[2] is not None) if found else None
