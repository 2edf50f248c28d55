"""Command lines: where they end, what their verb is, and how long they may be.

A line ends at LF, with or without a CR before it: every server ends a command at a bare LF, and
none ends it at a bare CR.  We read the verb as the most lenient server would.  Some servers skip
white space before it (whatever C's isspace() accepts), and some cut the line at a NUL.
"""

import re
from typing import Final

# An AUTH answer may be this long (RFC 4954, 4).  Much longer lines are not safe to forward: a
# server may split one where its buffer ends, and execute the rest as another command.
MAX_COMMAND_OCTETS: Final = 12_288

WHITE: Final = b" \t\v\f\r"

# The third line of a PROXY v2 signature, "NUL CR LF", counts as a verb.  No SMTP client sends it,
# and we have to recognise a PROXY header that comes later in a session.
_VERB = re.compile(rb"[ \t\v\f\r]*(\0\r\n|[^ \t\v\f\r\n\0]*)")

# Servers disagree about a verb that follows a blank or precedes a TAB, so neither is plain.  The
# possessive "++" and "*+" never try a shorter run, so a long line that does not match costs no
# more than one that does.
_PLAIN = re.compile(rb"(?:[A-Za-z]++(?: [^\n]*+)?)?\r?\n")

# An unknown verb that all servers find, and find unknown, because no server ends it elsewhere.
_WORD = re.compile(rb"[!-~]++(?: [^\n]*+)?\r?\n")
_DOT = re.compile(rb"\.[ \t]*+\r?\n")

# bytes.splitlines() will not do, because it also ends a line at a bare CR.
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")

# A command may contain TAB, and CR before its LF.  Servers do not agree on the meaning of any
# other octet below SP, nor of DEL.
_CONTROL_OCTET = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ORDINARY = re.compile(rb"(?:[A-Za-z]++(?: [^\x00-\x08\x0a-\x1f\x7f]*+)?)?\r?\n")


def verb_of(line: bytes) -> bytes:
    """Return the verb of a command *line* in upper case, or nothing if it has none."""
    found = _VERB.match(line)
    return found[1].upper() if found else b""


def count_leading_blanks(line: bytes) -> int:
    """Return how many octets a lenient server skips before the verb."""
    return len(line) - len(line.lstrip(WHITE))


def is_plain(line: bytes) -> bool:
    """Return True if all servers find the same verb in a whole *line*, or all find none."""
    return _PLAIN.fullmatch(line) is not None


def is_word(line: bytes) -> bool:
    """Return True if a whole *line* begins with a verb, of any characters, and perhaps a space."""
    return _WORD.fullmatch(line) is not None


def is_dot(line: bytes) -> bool:
    """Return True if a whole command *line* would end content on some server."""
    return _DOT.fullmatch(line) is not None


def split_lines(reply: bytes) -> list[bytes]:
    """Return the lines of a whole *reply*, each with its line end."""
    return _LINE.findall(reply)


def has_control_octet(line: bytes) -> bool:
    """Return True if a whole command *line* contains one, not counting its line end."""
    body = line[:-2] if line.endswith(b"\r\n") else line[:-1]
    return _CONTROL_OCTET.search(body) is not None


def is_ordinary(line: bytes) -> bool:
    """Return True if a whole *line* is plain and has no control octet, in one search."""
    return _ORDINARY.fullmatch(line) is not None
