"""Finding the end of a message's content, and the lone dots that some servers take for it.

CRLF "." CRLF ends content on every server (RFC 5321, 4.5.2).  Some end it at LF.LF, LF.CRLF,
CRLF.LF, CRLF.CRCRLF or CRLF.NUL CRLF too; which one is not a property that we can know.  So a
line that starts with a dot and holds else nothing but white space and NUL is an *odd* dot:
perhaps the end, perhaps content.  Content that starts with such a line counts as well.
"""

import re
from enum import Enum
from typing import Final

_NOTHING: Final = b" \t\v\f\r\n\0"
_EXACT: Final = b".\r\n"
CONTENT_END: Final = b"\r\n" + _EXACT
# From the end of the line before; its own end may be yet to come.
_LONE_DOT: Final = re.compile(rb"\n\.[ \t\v\f\r\0]*(?:\n|\Z)")


class Dot(Enum):
    """What a lone dot is."""

    END = "CRLF.CRLF"
    ODD = "any other spelling"


class ContentScanner:
    """Follows content through any split of its octets."""

    __slots__ = ("_after_crlf", "_last", "_line", "odd_dot")

    def __init__(self) -> None:
        """Start behind the 354, as if a CRLF had just passed."""
        self.odd_dot = False  # one was found; of others nothing is said while it stands
        self._after_crlf = True  # the line begun follows a CRLF, not a bare LF
        self._last = b"\n"  # the last octet read
        # The line begun, while it may be a lone dot; of a longer one its first octets, for
        # white space without end may follow the dot.
        self._line: bytes | None = b""

    def scan(self, data: bytes, start: int, end: int) -> tuple[int, Dot | None]:
        """Read *data* from *start*; return how far, and the lone dot that ends there.

        None means that all up to *end* was read and no more is to be said of it.
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
        """Read all of *data* if ``scan`` would, and had only CONTENT_END behind it to tell of.

        False: nothing was read, for there is more in it, or less: scan it.
        """
        if self.odd_dot or self._may_be_in_dot_line(data):
            return False
        end = len(data)
        dot_line = _find_lone_dot(data, 0, end)
        if dot_line != end:
            is_last = dot_line == end - len(_EXACT)
            if not (is_last and data.endswith(CONTENT_END)):
                return False
        self._line = b"" if data[-1] == 0x0A else None
        self._note_end(data, 0, end)
        return True

    def _may_be_in_dot_line(self, data: bytes) -> bool:
        """Tell whether the line that *data* goes on with may be a lone dot."""
        return self._line is not None and (self._line != b"" or data[0] == 0x2E)

    def _may_start(self, octet: int) -> bool:
        """Tell whether a line that starts so may be a lone dot that is still looked for."""
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
        """Read on in a line that starts with a dot and may hold nothing else."""
        assert self._line is not None
        line_end = data.find(b"\n", position, end) + 1
        line = self._line + data[position : line_end or end]
        if line.strip(_NOTHING) != b".":
            self._line = None
            return position, None
        follows_crlf = self._after_crlf
        self._note_end(data, position, line_end or end)
        if not line_end:
            self._line = line[: len(_EXACT) + 1]
            return end, None
        self._line = b""
        return line_end, Dot.END if follows_crlf and line == _EXACT else Dot.ODD

    def _note_end(self, data: bytes, start: int, end: int) -> None:
        """Note how data[start:end], which is not empty, ends."""
        if data[end - 1] == 0x0A:
            before = data[end - 2 : end - 1] if end - 2 >= start else self._last
            self._after_crlf = before == b"\r"
        self._last = data[end - 1 : end]


def _find_lone_dot(data: bytes, start: int, end: int) -> int:
    """Return where the next line starts that may be a lone dot; *end* if none does."""
    # Most content has few dots, so look for those first: that is memchr(), thirty times
    # as fast as any search for two octets.
    dot = data.find(b".", start, end)
    if dot < 0:
        return end
    line_end = data.find(b"\n.", max(dot - 1, start), end)
    if line_end < 0:
        return end
    found = _LONE_DOT.search(data, line_end, end)
    return found.start() + 1 if found else end


def _find_end(data: bytes, start: int, end: int) -> int:
    """Return where the next line starts that may be the end and nothing else; or *end*."""
    if data[start] == 0x0A:
        return start + 1  # whose CR came before
    found = data.find(CONTENT_END, start, end)
    if found >= 0:
        return found + 2
    # One that starts here may go on elsewhere.
    last = data.rfind(b"\n", start, end) + 1
    return last if last and end - last < len(_EXACT) else end
