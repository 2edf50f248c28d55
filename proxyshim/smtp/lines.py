"""What ends a line, what its verb is, and the longest we take.

A line ends at LF, with or without a CR before it: every server ends a command at a bare LF,
none at a bare CR.  The verb is what the most lenient server would see: some skip white space
before it (what C's isspace() takes for it) and cut the line at a NUL.
"""

import re
from typing import Final

# An AUTH answer may take 12,288 (RFC 4954, 4).  Much longer lines are not safe to pass: a
# server may split one at its buffer's end and run the tail as a command of its own.
MAX_COMMAND_OCTETS: Final = 12_288

WHITE: Final = b" \t\v\f\r"

# The third line of a PROXY v2 signature, "NUL CR LF", counts as a verb: no SMTP client
# sends it, and a header later in a session must be seen for what it is.
_VERB = re.compile(rb"[ \t\v\f\r]*(\0\r\n|[^ \t\v\f\r\n\0]*)")

# Some servers do not know a verb behind a blank or before a TAB, others do.
_PLAIN = re.compile(rb"(?:[A-Za-z]+(?: [^\n]*)?)?\r?\n")

# Unlike bytes.splitlines(), which ends a line at a bare CR, too.
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")

# TAB may stand in a command, CR before the LF; what else is below SP, and DEL, has no
# meaning that two servers agree on.
_CONTROL_OCTET = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ORDINARY = re.compile(rb"(?:[A-Za-z]+(?: [^\x00-\x08\x0a-\x1f\x7f]*)?)?\r?\n")


def verb_of(line: bytes) -> bytes:
    """Return the verb of a command *line* in upper case; empty when it has none."""
    found = _VERB.match(line)
    return found[1].upper() if found else b""


def blanks_before(line: bytes) -> int:
    """Return how many octets a lenient server skips before the verb."""
    return len(line) - len(line.lstrip(WHITE))


def is_plain(line: bytes) -> bool:
    """Tell whether every server sees the same verb in a whole *line*, or that it is empty."""
    return _PLAIN.fullmatch(line) is not None


def lines_of(octets: bytes) -> list[bytes]:
    """Return the lines of a whole reply, each with its line end."""
    return _LINE.findall(octets)


def has_control_octet(line: bytes) -> bool:
    """Tell whether a whole command *line* holds one, its line end apart."""
    body = line[:-2] if line.endswith(b"\r\n") else line[:-1]
    return _CONTROL_OCTET.search(body) is not None


def is_ordinary(line: bytes) -> bool:
    """Tell whether a whole *line* ``is_plain`` and not ``has_control_octet``."""
    return _ORDINARY.fullmatch(line) is not None
