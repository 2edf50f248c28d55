"""Find the end of a message's content, and the lone dots that some servers take for the end.

CRLF "." CRLF ends content on every server (RFC 5321, 4.5.2).  Some servers also end it at LF.LF,
LF.CRLF, CRLF.LF, CRLF.CRCRLF or CRLF.NUL CRLF, and we cannot know which of these a given server
accepts.  So any other line that consists of a dot and then only white space and NULs is an *odd*
dot, which may be the end or may be content.  The first line of the content may be one, too.
"""

import re
from enum import Enum
from typing import Final

_DOT_LINE: Final = b".\r\n"
CONTENT_END: Final = b"\r\n" + _DOT_LINE
_OVERLAP: Final = (
    len(CONTENT_END) - 1
)  # of the end, this much may be in earlier packets

# What may follow the dot of a lone dot; group 1 is empty if the line's LF has not arrived yet.
# The possessive "*+" never tries a shorter run, so a long run of blanks costs nothing extra.
_AFTER_DOT: Final = re.compile(rb"[ \t\v\f\r\0]*+(\n|\Z)")
_DOT: Final = re.compile(rb"\." + _AFTER_DOT.pattern)
_NEXT_DOT: Final = re.compile(rb"\n\." + _AFTER_DOT.pattern)


class Dot(Enum):
    """The two kinds of lone dots."""

    END = "CRLF.CRLF"
    ODD = "any other spelling"


class ContentScanner:
    """Follows content, however it is split into packets.

    ``bytes.find`` and patterns that do not backtrack do all the searching, and each packet is
    searched a fixed number of times.  So no content costs much more than any other, whatever its
    octets are.
    """

    __slots__ = ("_in_dot_line", "_tail", "odd_dot")

    def __init__(self) -> None:
        """Start after the 354, as if a CRLF had just passed."""
        # True once an odd dot was found; later ones are not reported until it is cleared.
        self.odd_dot = False
        self._tail = b"\r\n"  # the last bytes read, at most _OVERLAP
        self._in_dot_line = False  # so far, the current line may be a lone dot

    def scan(self, data: bytes, start: int, end: int) -> tuple[int, Dot | None]:
        """Read data[start:end] up to the next lone dot that has to be reported.

        Return the position after it, and its kind; or *end* and None if there is none.
        """
        if start >= end:
            return start, None
        if self.odd_dot:
            return self._scan_for_end(data, start, end)
        found = self._find_dot(data, start, end)
        self._in_dot_line = found is not None and not found[1]
        if found is None or not found[1]:
            self._note(data, start, end)
            return end, None
        stop = found.end()
        is_end = self._ends_content(data, start, stop)
        self._note(data, start, stop)
        self.odd_dot = not is_end
        return stop, Dot.END if is_end else Dot.ODD

    def skim(self, data: bytes) -> bool:
        """Read all of *data* if no lone dot is in it, except a CRLF.CRLF that ends it.

        Return False, without reading anything, if there may be another one or if the start of
        one may be pending.  Call ``scan`` then, which is the rule; this is its shortcut.
        """
        if (
            self.odd_dot
            or self._in_dot_line
            or (data.startswith(b".") and self._tail[-1] == 0x0A)
        ):
            return False
        end = len(data)
        found = _find_next_dot(data, 0, end)
        if found is not None:
            is_last = found.start() == end - len(_DOT_LINE) - 1
            if not (is_last and data.endswith(CONTENT_END)):
                return False
        self._note(data, 0, end)
        return True

    def _scan_for_end(
        self, data: bytes, start: int, end: int
    ) -> tuple[int, Dot | None]:
        """Read up to the end of content; an odd dot was found already."""
        self._in_dot_line = False
        seam = self._tail + data[start : min(start + _OVERLAP, end)]
        found = seam.find(CONTENT_END)
        if found >= 0:
            stop = start + found + len(CONTENT_END) - len(self._tail)
        else:
            found = data.find(CONTENT_END, start, end)
            stop = found + len(CONTENT_END) if found >= 0 else end
        self._note(data, start, stop)
        return stop, Dot.END if found >= 0 else None

    def _find_dot(self, data: bytes, start: int, end: int) -> re.Match[bytes] | None:
        """Find the first lone dot, or what may become one at the end."""
        found = None
        if self._in_dot_line:
            found = _AFTER_DOT.match(data, start, end)
        elif self._tail[-1] == 0x0A:
            found = _DOT.match(data, start, end)
        return found or _find_next_dot(data, start, end)

    def _ends_content(self, data: bytes, start: int, stop: int) -> bool:
        """Return True if the lone dot whose line ends at *stop* is CRLF.CRLF."""
        last = data[max(start, stop - len(CONTENT_END)) : stop]
        return (self._tail + last).endswith(CONTENT_END)

    def _note(self, data: bytes, start: int, stop: int) -> None:
        """Record how the content ends after data[start:stop]."""
        last = data[max(start, stop - _OVERLAP) : stop]
        self._tail = (self._tail + last)[-_OVERLAP:]


def _find_next_dot(data: bytes, start: int, end: int) -> re.Match[bytes] | None:
    """Find the first lone dot that follows a LF in data[start:end]."""
    # Most content has few dots, so we look for those first.  That is memchr(), which is thirty
    # times as fast as any search for two bytes.
    dot = data.find(b".", start, end)
    if dot < 0:
        return None
    line_end = data.find(b"\n.", max(dot - 1, start), end)
    if line_end < 0:
        return None
    return _NEXT_DOT.search(data, line_end, end)
