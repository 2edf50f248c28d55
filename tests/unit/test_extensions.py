"""The EHLO reply: reading what it offers, and hiding some of it."""

import pytest

from proxyshim.smtp.extensions import hide, read_extensions, read_keywords
from proxyshim.smtp.replies import Reply

POSTFIX = (
    b"250-lab.example\r\n"
    b"250-PIPELINING\r\n"
    b"250-SIZE 10240000\r\n"
    b"250-AUTH PLAIN LOGIN\r\n"
    b"250-AUTH=PLAIN LOGIN\r\n"
    b"250-XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT\r\n"
    b"250-XFORWARD NAME ADDR PROTO HELO SOURCE PORT IDENT\r\n"
    b"250 CHUNKING\r\n"
)


def offered(raw: bytes) -> dict[bytes, bytes]:
    return dict(read_extensions(Reply(250, raw)))


def hidden(raw: bytes, *keywords: bytes) -> bytes:
    return hide(Reply(250, raw), frozenset(keywords))


def test_all_extensions_of_postfix_are_read() -> None:
    assert offered(POSTFIX) == {
        b"PIPELINING": b"",
        b"SIZE": b"10240000",
        b"AUTH": b"PLAIN LOGIN",
        b"XCLIENT": b"NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT",
        b"XFORWARD": b"NAME ADDR PROTO HELO SOURCE PORT IDENT",
        b"CHUNKING": b"",
    }


READ = {
    "the first line holds no keyword": (b"250-XCLIENT\r\n250 SIZE\r\n", {b"SIZE": b""}),
    "one line offers nothing": (b"250 XCLIENT\r\n", {}),
    "any case": (b"250-mx\r\n250 xClient addr\r\n", {b"XCLIENT": b"addr"}),
    "bare LF": (b"250-mx\n250-A\n250 B c\n", {b"A": b"", b"B": b"c"}),
    "blanks before and after": (
        b"250-mx\r\n250- \tA  b \t\r\n250 B\r\n",
        {b"A": b"b", b"B": b""},
    ),
    "an equals sign": (b"250-mx\r\n250 AUTH=PLAIN x\r\n", {b"AUTH": b"PLAIN x"}),
    "the first of repeated keywords counts": (
        b"250-mx\r\n250-A 1\r\n250 a 2\r\n",
        {b"A": b"1"},
    ),
    "an empty line": (b"250-mx\r\n250-\r\n250\r\n", {}),
    "a bare CR ends no line": (
        b"250-mx\r250-XCLIENT\r\n250 A\r250-B\r\n",
        {b"A": b""},
    ),
}


@pytest.mark.parametrize(("raw", "expected"), READ.values(), ids=READ.keys())
def test_extensions_are_read_from_an_ehlo_reply(
    raw: bytes, expected: dict[bytes, bytes]
) -> None:
    assert offered(raw) == expected
    assert read_keywords(Reply(250, raw)) == frozenset(expected)


HIDDEN = {
    "a keyword in the middle": (
        b"250-mx\r\n250-XCLIENT ADDR\r\n250 SIZE\r\n",
        b"250-mx\r\n250 SIZE\r\n",
    ),
    "the last keyword": (
        b"250-mx\r\n250-SIZE 5\r\n250 XCLIENT ADDR\r\n",
        b"250-mx\r\n250 SIZE 5\r\n",
    ),
    "the last two keywords": (
        b"250-mx\r\n250-SIZE\r\n250-XFORWARD\r\n250 XCLIENT\r\n",
        b"250-mx\r\n250 SIZE\r\n",
    ),
    "all keywords": (b"250-mx hi\r\n250-XFORWARD\r\n250 XCLIENT\r\n", b"250 mx hi\r\n"),
    "the first line is never hidden": (
        b"250-XCLIENT mx\r\n250 XCLIENT\r\n",
        b"250 XCLIENT mx\r\n",
    ),
    "a keyword in any case": (
        b"250-mx\r\n250-xclient\r\n250 A\r\n",
        b"250-mx\r\n250 A\r\n",
    ),
    "a keyword with an equals sign": (
        b"250-mx\r\n250-XCLIENT=ADDR\r\n250 A\r\n",
        b"250-mx\r\n250 A\r\n",
    ),
    "a repeated keyword": (
        b"250-mx\r\n250-XCLIENT\r\n250-A\r\n250 XCLIENT\r\n",
        b"250-mx\r\n250 A\r\n",
    ),
    "a longer word is not hidden": (
        b"250-mx\r\n250-XCLIENTS\r\n250 X-XCLIENT XCLIENT\r\n",
        b"250-mx\r\n250-XCLIENTS\r\n250 X-XCLIENT XCLIENT\r\n",
    ),
    "line ends do not change": (
        b"250-mx\n250-A b \n250 XCLIENT\r\n",
        b"250-mx\n250 A b \n",
    ),
    "an empty line may become the last": (
        b"250-mx\r\n250-\r\n250 XCLIENT\r\n",
        b"250-mx\r\n250 \r\n",
    ),
    "nothing to hide": (b"250-mx\r\n250 A\r\n", b"250-mx\r\n250 A\r\n"),
    "a reply of one line": (b"250 XCLIENT\r\n", b"250 XCLIENT\r\n"),
    "a bare CR ends no line": (
        b"250-mx\r250-XCLIENT\r\n250 XCLIENT\r\n",
        b"250 mx\r250-XCLIENT\r\n",
    ),
}


@pytest.mark.parametrize(("raw", "expected"), HIDDEN.values(), ids=HIDDEN.keys())
def test_keywords_are_hidden_in_an_ehlo_reply(raw: bytes, expected: bytes) -> None:
    assert hidden(raw, b"XCLIENT", b"XFORWARD") == expected
