"""The end of content, and every lone dot that some server may take for it."""

import re
from itertools import product

import pytest

from proxyshim.smtp.content import ContentScanner, Dot

# A line that consists of a dot and then only white space and NULs may be the end.
LONE_DOT = re.compile(rb"(?:\A|(?<=\n))\.[ \t\v\f\r\0]*\n")


def dots_of(pieces: list[bytes]) -> list[tuple[int, Dot]]:
    """Return where each END and the first ODD dot ends, as the scanner reports them."""
    scanner, base, found = ContentScanner(), 0, []
    for piece in pieces:
        position = 0
        while position < len(piece):
            position, dot = scanner.scan(piece, position, len(piece))
            if dot is not None:
                found.append((base + position, dot))
            else:
                assert position == len(piece)
        base += len(piece)
    return found


def expected_dots(content: bytes) -> list[tuple[int, Dot]]:
    """Return the same, found by a pattern in the whole content."""
    dots = [
        (found.end(), Dot.END if is_exact(content, found) else Dot.ODD)
        for found in LONE_DOT.finditer(content)
    ]
    odd = [dot for dot in dots if dot[1] is Dot.ODD]
    return [dot for dot in dots if dot not in odd[1:]]


def is_exact(content: bytes, found: re.Match[bytes]) -> bool:
    before = b"\r\n" + content[: found.start()]
    return before.endswith(b"\r\n") and found[0] == b".\r\n"


def scans(content: bytes) -> list[Dot]:
    """Check *content* whole, cut at every byte, and byte by byte; return its dots."""
    expected = expected_dots(content)
    for cut in range(len(content)):
        assert dots_of([content[:cut], content[cut:]]) == expected
    assert dots_of([content[i : i + 1] for i in range(len(content))]) == expected
    return [dot for _, dot in expected]


DOTS = {
    "CRLF.CRLF": (b"a\r\n.\r\n", [Dot.END]),
    "the first line": (b".\r\n", [Dot.END]),
    "CRCRLF.CRLF": (b"a\r\r\n.\r\n", [Dot.END]),
    "the first line with LF": (b".\n", [Dot.ODD]),
    "LF.LF": (b"a\n.\n", [Dot.ODD]),
    "LF.CRLF": (b"a\n.\r\n", [Dot.ODD]),
    "CRLF.LF": (b"a\r\n.\n", [Dot.ODD]),
    "CRLF.CRCRLF": (b"a\r\n.\r\r\n", [Dot.ODD]),
    "LF.CRCRLF": (b"a\n.\r\r\n", [Dot.ODD]),
    "CRLF.NUL CRLF": (b"a\r\n.\0\r\n", [Dot.ODD]),
    "CRLF.SP CRLF": (b"a\r\n. \r\n", [Dot.ODD]),
    "CRLF.TAB LF": (b"a\r\n.\t\n", [Dot.ODD]),
    "CRLF.VT FF CRLF": (b"a\r\n.\v\f\r\n", [Dot.ODD]),
    "a long row of blanks": (b"\r\n." + b" " * 300 + b"\r\n", [Dot.ODD]),
    "several in a row": (b".\n.\n.\r\n\r\n.\r\n", [Dot.ODD, Dot.END]),
    "CR.CR": (b"a\r.\r\n", []),
    "CR.CRLF": (b"a\r.\r\n", []),
    "CRLF.CR x": (b"a\r\n.\rx\r\n", []),
    "two dots": (b"a\r\n..\r\n", []),
    "a dot and text": (b"a\r\n.a\r\n", []),
    "SP.CRLF": (b"a\r\n .\r\n", []),
    "an unfinished line": (b"a\r\n.\r", []),
    "dots in lines": (b"a.b.c\r\n.a.b.\r\n...\r\n", []),
    "nothing": (b"", []),
}


@pytest.mark.parametrize(("content", "dots"), DOTS.values(), ids=DOTS.keys())
def test_scanner_finds_lone_dots_in_any_split(content: bytes, dots: list[Dot]) -> None:
    assert scans(content) == dots


def test_scanner_agrees_with_the_pattern_on_every_short_content() -> None:
    for octets in product(b".\r\na\0", repeat=5):
        content = bytes(octets)
        assert dots_of([content]) == expected_dots(content)
        assert dots_of([content[i : i + 1] for i in range(5)]) == expected_dots(content)


def test_scanner_finds_a_lone_dot_after_much_content() -> None:
    content = b"all work and no play. \r\n" * 3000 + b".\r\n"
    pieces = [content[i : i + 1460] for i in range(0, len(content), 1460)]
    assert dots_of(pieces) == [(len(content), Dot.END)]
