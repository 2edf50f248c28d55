"""Find the end of a message's content, and the lone dots that some servers take for the end.

CRLF "." CRLF ends content on every server (RFC 5321, 4.5.2).  Some servers also end it at LF.LF,
LF.CRLF, CRLF.LF, CRLF.CRCRLF or CRLF.NUL CRLF, and we cannot know which of these a given server
accepts.  So any other line that consists of a dot and then only white space and NULs is an *odd*
dot, which may be the end or may be content.  The first line of the content may be one, too.
"""

import re
from enum import Enum
from typing import Final

_IGNORED: Final = b" \t\v\f\r\n\0"  # what may follow an odd dot on its line
_DOT_LINE: Final = b".\r\n"
CONTENT_END: Final = b"\r\n" + _DOT_LINE
# Starts at the LF of the previous line; the dot's own LF may not have arrived yet.
_LONE_DOT: Final = re.compile(rb"\n\.[ \t\v\f\r\0]*(?:\n|\Z)")


class Dot(Enum):
    """The two kinds of lone dots."""

    END = "CRLF.CRLF"
    ODD = "any other spelling"


class ContentScanner:
    """Follows content, however it is split into packets."""

    __slots__ = ("_after_crlf", "_last", "_line", "odd_dot")

    def __init__(self) -> None:
        """Start after the 354, as if a CRLF had just passed."""
        # True once an odd dot was found; later ones are not reported until it is cleared.
        self.odd_dot = False
        self._after_crlf = True  # the current line follows a CRLF, not a bare LF
        self._last = b"\n"  # the last byte read
        # The current line, or None if it cannot be a lone dot.  We keep only its first bytes,
        # because the white space after a dot may be endless.
        self._line: bytes | None = b""

    def scan(self, data: bytes, start: int, end: int) -> tuple[int, Dot | None]:
        """Read data[start:end] up to the next lone dot that has to be reported.

        Return the position after it, and its kind; or *end* and None if there is none.
        """
        position = start
        while position < end:
            if self._line is None:
                position = self._skip_to_dot_line(data, position, end)
            elif not self._line and not self._may_start(data[position]):
                self._line = None
            else:
                position, dot = self._read_dot_line(data, position, end)
                if dot is Dot.END:
                    return position, dot
                if dot is Dot.ODD and not self.odd_dot:
                    self.odd_dot = True
                    return position, dot
        return position, None

    def skim(self, data: bytes) -> bool:
        """Read all of *data* if no lone dot is in it, except a CRLF.CRLF that ends it.

        Return False, without reading anything, if there may be another one or if the start of
        one may be pending.  Call ``scan`` then, which is the rule; this is its shortcut.
        """
        if self.odd_dot or self._may_be_in_dot_line(data):
            return False
        end = len(data)
        dot_line = _find_lone_dot(data, 0, end)
        if dot_line != end:
            is_last = dot_line == end - len(_DOT_LINE)
            if not (is_last and data.endswith(CONTENT_END)):
                return False
        self._line = b"" if data[-1] == 0x0A else None
        self._note_end(data, 0, end)
        return True

    def _may_be_in_dot_line(self, data: bytes) -> bool:
        """Return True if the current line, continued by *data*, may be a lone dot."""
        return self._line is not None and (self._line != b"" or data[0] == 0x2E)

    def _may_start(self, octet: int) -> bool:
        """Return True if a line that starts with *octet* may be a dot that we still report."""
        return octet == 0x2E and (self._after_crlf or not self.odd_dot)

    def _skip_to_dot_line(self, data: bytes, position: int, end: int) -> int:
        """Move to the start of the next line that may be a lone dot, or to the end."""
        if self.odd_dot:
            stop = _find_end(data, position, end)
        else:
            stop = _find_lone_dot(data, position, end)
        self._line = b"" if data[stop - 1] == 0x0A else None
        self._note_end(data, position, stop)
        return stop

    def _read_dot_line(
        self, data: bytes, position: int, end: int
    ) -> tuple[int, Dot | None]:
        """Read more of a line that starts with a dot and may contain nothing else."""
        assert self._line is not None
        line_end = data.find(b"\n", position, end) + 1
        line = self._line + data[position : line_end or end]
        if line.strip(_IGNORED) != b".":
            self._line = None
            return position, None
        follows_crlf = self._after_crlf
        self._note_end(data, position, line_end or end)
        if not line_end:
            self._line = line[: len(_DOT_LINE) + 1]
            return end, None
        self._line = b""
        return line_end, Dot.END if follows_crlf and line == _DOT_LINE else Dot.ODD

    def _note_end(self, data: bytes, start: int, end: int) -> None:
        """Record how data[start:end], which is not empty, ends."""
        if data[end - 1] == 0x0A:
            before = data[end - 2 : end - 1] if end - 2 >= start else self._last
            self._after_crlf = before == b"\r"
        self._last = data[end - 1 : end]


def _find_lone_dot(data: bytes, start: int, end: int) -> int:
    """Return where the next line starts that may be a lone dot, or *end* if there is none."""
    # Most content has few dots, so we look for those first.  That is memchr(), which is thirty
    # times as fast as any search for two bytes.
    dot = data.find(b".", start, end)
    if dot < 0:
        return end
    line_end = data.find(b"\n.", max(dot - 1, start), end)
    if line_end < 0:
        return end
    found = _LONE_DOT.search(data, line_end, end)
    return found.start() + 1 if found else end


def _find_end(data: bytes, start: int, end: int) -> int:
    """Return where the next line starts that may be the end of content, or *end*.

    This search is for content in which an odd dot was found already.
    """
    if data[start] == 0x0A:
        return start + 1  # its CR may have come before *start*
    found = data.find(CONTENT_END, start, end)
    if found >= 0:
        return found + 2
    # The end may be split: it starts here and continues in the next packet.
    last = data.rfind(b"\n", start, end) + 1
    return last if last and end - last < len(_DOT_LINE) else end
