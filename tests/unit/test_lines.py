"""Command lines: where they end, what their verb is, and which octets they may contain."""

from itertools import product

import pytest

from proxyshim.smtp.lines import has_control_octet, is_ordinary, is_plain, verb_of

VERBS = {
    "a bare verb": (b"NOOP\r\n", b"NOOP"),
    "an argument": (b"MAIL FROM:<>\r\n", b"MAIL"),
    "a bare LF": (b"QUIT\n", b"QUIT"),
    "any case": (b"xClient ADDR=127.0.0.1\r\n", b"XCLIENT"),
    "leading blanks": (b" \t XCLIENT x\r\n", b"XCLIENT"),
    "leading VT, FF and CR": (b"\v\f\rXCLIENT x\r\n", b"XCLIENT"),
    "a TAB after it": (b"XCLIENT\tx\r\n", b"XCLIENT"),
    "a VT after it": (b"XCLIENT\vx\r\n", b"XCLIENT"),
    "a FF after it": (b"XCLIENT\fx\r\n", b"XCLIENT"),
    "a CR after it": (b"XCLIENT\rx\r\n", b"XCLIENT"),
    "cut at a NUL": (b"XCLIENT\0x\r\n", b"XCLIENT"),
    "a colon is part of it": (b"QUIT:\r\n", b"QUIT:"),
    "an octet beyond ASCII is part of it": (b"\xa0XCLIENT\r\n", b"\xa0XCLIENT"),
    "an empty line": (b"\r\n", b""),
    "only blanks": (b" \t \r\n", b""),
    "a NUL first": (b"\0XCLIENT\r\n", b""),
    "the third line of a v2 signature": (b"\0\r\n", b"\0\r\n"),
    "an unfinished line": (b"XCLI", b"XCLI"),
    "no octets yet": (b"", b""),
}


@pytest.mark.parametrize(("line", "verb"), VERBS.values(), ids=VERBS.keys())
def test_the_verb_is_what_the_most_lenient_server_sees(
    line: bytes, verb: bytes
) -> None:
    assert verb_of(line) == verb


def test_only_white_space_and_nul_end_a_verb() -> None:
    ends = {
        octet
        for octet in range(256)
        if verb_of(b"AB" + bytes([octet]) + b"C\r\n") == b"AB"
    }
    assert ends == set(b" \t\v\f\r\n\0")


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize("octet", range(256))
def test_control_octets_are_found_anywhere_in_a_line(
    octet: int, line_end: bytes
) -> None:
    is_control = (octet < 0x20 and octet != 0x09) or octet == 0x7F
    one = bytes([octet])
    for body in (one + b"NOOP", b"NO" + one + b"OP", b"NOOP" + one, one):
        ends_as_a_line_does = octet == 0x0D and line_end == b"\n" and body[-1:] == one
        expected = is_control and not ends_as_a_line_does
        assert has_control_octet(body + line_end) is expected


@pytest.mark.parametrize("verb", [b"", b"NOOP", b"a", b" NOOP", b"\r", b"NO-OP"])
def test_an_ordinary_line_is_plain_and_has_no_control_octet(
    verb: bytes,
) -> None:
    octets = [bytes([octet]) for octet in range(256) if octet != 0x0A]
    for rest in map(b"".join, product([b"", b" ", b" x"], octets, [b"", b"x", b"\r"])):
        for line in (verb + rest + b"\r\n", verb + rest + b"\n"):
            expected = is_plain(line) and not has_control_octet(line)
            assert is_ordinary(line) is expected, line
    assert is_ordinary(b"NOOP x\r\n")
    assert not is_ordinary(b"NOOP x")
