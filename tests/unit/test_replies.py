"""Replies: how the backend's are parsed, and what all our own have in common."""

import re

import pytest

from proxyshim.errors import BackendError, Reason
from proxyshim.smtp import replies
from proxyshim.smtp.replies import (
    MAX_REPLY_LINE_OCTETS,
    MAX_REPLY_OCTETS,
    Reply,
    ReplyParser,
)


def parse(pieces: list[bytes]) -> list[Reply]:
    """Return the replies that *pieces* consist of, in order."""
    parser = ReplyParser()
    found = []
    for piece in pieces:
        parser.feed(piece)
        while (reply := parser.next()) is not None:
            found.append(reply)
    return found


def reads(octets: bytes, *expected: tuple[int, bytes]) -> None:
    """Check what is read from *octets* whole, cut at every byte, and byte by byte."""
    replies_expected = [Reply(*one) for one in expected]
    for cut in range(len(octets)):
        assert parse([octets[:cut], octets[cut:]]) == replies_expected
    assert parse([octets[i : i + 1] for i in range(len(octets))]) == replies_expected


def fails(pieces: list[bytes]) -> str:
    with pytest.raises(BackendError) as caught:
        parse(pieces)
    assert caught.value.reason is Reason.BACKEND_BAD_REPLY
    return caught.value.detail


READ = {
    "one line": [(250, b"250 ok\r\n")],
    "no text": [(250, b"250 \r\n")],
    "no text, no separator": [(250, b"250\r\n")],
    "a bare LF": [(250, b"250 ok\n")],
    "several lines": [(250, b"250-mx\r\n250-SIZE\r\n250 HELP\r\n")],
    "line ends mixed": [(250, b"250-mx\n250-SIZE\r\n250 HELP\n")],
    "an empty line in the middle": [(214, b"214-\r\n214 end\r\n")],
    "the last line's code counts": [(451, b"250-mx\r\n451 no\r\n")],
    "several lines, no separator in the last": [(250, b"250-mx\r\n250\r\n")],
    "octets beyond ASCII": [(220, b"220 \xc3\xa9\xff\r\n")],
    "a bare CR ends no line": [(250, b"250-a\r250 b\r\n250 c\r\n")],
    "three at once": [
        (250, b"250 a\r\n"),
        (550, b"550-b\r\n550 c\r\n"),
        (354, b"354 d\r\n"),
    ],
}


@pytest.mark.parametrize("expected", READ.values(), ids=READ.keys())
def test_replies_are_read_in_any_split(expected: list[tuple[int, bytes]]) -> None:
    reads(b"".join(raw for _, raw in expected), *expected)


@pytest.mark.parametrize(
    "octets",
    [
        b"250-mx\r\n250-SIZE\r\n",
        b"250-mx\r\n250 SIZE\r",
        b"25",
        b"250 ok",
    ],
)
def test_an_unfinished_reply_is_not_returned(octets: bytes) -> None:
    parser = ReplyParser()
    parser.feed(octets)
    assert parser.next() is None
    assert not parser.at_boundary
    assert parser.take_rest() == octets
    assert parser.at_boundary


@pytest.mark.parametrize(
    "octets",
    [
        b"hello\r\n",
        b"\r\n",
        b"\n",
        b"25 ok\r\n",
        b"2500 ok\r\n",
        b"250\tok\r\n",
        b"250_ok\r\n",
        b"250\rok\r\n",
        b" 250 ok\r\n",
        b"150 ok\r\n",
        b"650 ok\r\n",
        b"EHLO mx\r\n",
        b"250-mx\r\nSIZE\r\n250 HELP\r\n",
        b"2\xb250 ok\r\n",
    ],
)
def test_a_line_that_is_not_a_reply_line_is_a_backend_failure(octets: bytes) -> None:
    assert fails([octets]).startswith("not a reply line: b")
    assert fails([octets[:1], octets[1:]]).startswith("not a reply line: b")


def test_the_length_of_a_reply_line_is_limited() -> None:
    longest = b"250 " + b"x" * (MAX_REPLY_LINE_OCTETS - 6) + b"\r\n"
    assert parse([longest]) == [Reply(250, longest)]
    longer = b"250 " + b"x" * (MAX_REPLY_LINE_OCTETS - 5) + b"\r\n"
    assert fails([longer]) == f"reply line exceeds {MAX_REPLY_LINE_OCTETS} octets"
    unfinished = longer[:-2] + b"xx"
    assert fails([unfinished]) == f"reply line exceeds {MAX_REPLY_LINE_OCTETS} octets"


def test_the_length_of_a_reply_is_limited() -> None:
    lines = MAX_REPLY_OCTETS // 1000 + 1
    detail = fails([b"250-" + b"x" * 994 + b"\r\n"] * lines)
    assert detail == f"reply exceeds {MAX_REPLY_OCTETS} octets"


def test_the_error_quotes_a_short_printable_part_of_a_bad_line() -> None:
    detail = fails([b"\x1b[2J\xff" + b"x" * 500 + b"\r\n"])
    assert detail.isprintable()
    assert len(detail) < 160


def test_a_positive_reply_has_a_2yz_code() -> None:
    positive = [code for code in range(200, 600) if Reply(code, b"").positive]
    assert positive == list(range(200, 300))


def test_the_lines_of_a_reply_have_no_code_and_no_line_end() -> None:
    reply = Reply(250, b"250-a b\r\n250-\n250-c\rd\r\n250 e\r\n")
    assert reply.lines == [b"a b", b"", b"c\rd", b"e"]


def test_an_excerpt_is_one_printable_line() -> None:
    reply = Reply(550, b"550-a\x1b[2J\r\n550 b\xff\r\n")
    assert reply.excerpt() == r"550-a?[2J / 550 b\xff"
    assert reply.excerpt(5) == "550-a"


# Our own replies.

OUR_OWN = {
    name: value
    for name, value in vars(replies).items()
    if isinstance(value, bytes) and name.isupper()
}
GRAMMAR = re.compile(rb"([245])[0-9]{2} \1\.[0-9]\.[0-9]{1,2} [ -~]{1,80}\r\n")
ENDING = {b"421"}
REFUSING = {b"550", b"502", b"454"}
ANSWERING_A_CHECK = {b"250", b"221"}
ABOUT_TLS = {b"220", b"501", b"503", b"530"}


@pytest.mark.parametrize("reply", OUR_OWN.values(), ids=OUR_OWN.keys())
def test_every_reply_that_we_send_is_one_line_with_an_enhanced_code(
    reply: bytes,
) -> None:
    assert GRAMMAR.fullmatch(reply)
    assert parse([reply]) == [Reply(int(reply[:3]), reply)]
    assert reply[:3] in ENDING | REFUSING | ANSWERING_A_CHECK | ABOUT_TLS


def test_only_refusals_of_commands_that_were_not_offered_are_permanent() -> None:
    permanent = {name for name, reply in OUR_OWN.items() if reply[:1] == b"5"}
    about_tls = {"TLS_REQUIRED", "TLS_ACTIVE", "STARTTLS_SYNTAX", "GREET_FIRST"}
    assert permanent == {"NOT_AUTHORIZED", "CHUNKING_UNAVAILABLE"} | about_tls


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_the_refusal_of_a_proxy_header_names_the_peer(address: str) -> None:
    reply = replies.header_forbidden(address)
    assert reply == f"421 4.7.1 PROXY not allowed from [{address}]\r\n".encode()
    assert GRAMMAR.fullmatch(reply)
