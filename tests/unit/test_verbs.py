"""The table of verbs: properties that every change to it must keep."""

from itertools import product

import pytest

from proxyshim.smtp import replies
from proxyshim.smtp.lines import verb_of
from proxyshim.smtp.verbs import (
    FORBIDDEN_WHILE_STRICT,
    HIDDEN_ALWAYS,
    HIDDEN_WHILE_STRICT,
    REFUSED_ALWAYS,
    UNKNOWN,
    VERBS,
    Kind,
    find_forbidden,
    may_become_refused,
    read_bdat,
)


def test_only_verbs_that_claim_an_identity_are_always_refused() -> None:
    refused = {verb for verb, row in VERBS.items() if row.always}
    assert refused == {b"XCLIENT", b"XFORWARD", b"PROXY", b"\0\r\n"}


def test_which_verbs_are_forbidden_while_strict() -> None:
    assert {
        b"XCLIENT",
        b"XFORWARD",
        b"PROXY",
        b"\0\r\n",
        b"BDAT",
        b"STARTTLS",
    } == FORBIDDEN_WHILE_STRICT


def test_which_verbs_make_the_client_wait_for_the_reply() -> None:
    waiting = {verb for verb, row in VERBS.items() if row.waits}
    assert waiting == {b"EHLO", b"HELO", b"DATA", b"AUTH", b"STARTTLS", b"BDAT"}
    assert UNKNOWN.waits


def test_a_check_only_session_permits_five_commands() -> None:
    allowed = {verb for verb, row in VERBS.items() if row.in_check}
    assert allowed == {b"EHLO", b"HELO", b"NOOP", b"RSET", b"QUIT"}
    assert not UNKNOWN.in_check


def test_which_refused_verbs_end_the_session() -> None:
    ending = {
        verb
        for verb, row in VERBS.items()
        for refusal in (row.always, row.strict)
        if refusal and refusal.ends
    }
    assert ending == {b"PROXY", b"\0\r\n", b"BDAT"}


def test_a_refusal_that_ends_a_session_never_bounces_mail() -> None:
    for verb, row in VERBS.items():
        for refusal in (row.always, row.strict):
            if refusal and refusal.ends and verb != b"BDAT":
                assert refusal.reply.startswith(b"421 ")


def test_which_codes_refuse_xclient_bdat_and_starttls() -> None:
    assert VERBS[b"XCLIENT"].always is not None
    assert VERBS[b"XCLIENT"].always.reply == replies.NOT_AUTHORIZED
    assert replies.NOT_AUTHORIZED.startswith(b"550 5.7.0 ")
    assert replies.CHUNKING_UNAVAILABLE.startswith(b"502 5.5.1 ")
    assert replies.TLS_UNAVAILABLE.startswith(b"454 4.7.0 ")


def test_which_keywords_are_hidden() -> None:
    assert {b"XCLIENT", b"XFORWARD"} == HIDDEN_ALWAYS
    assert {
        b"STARTTLS",
        b"CHUNKING",
        b"BINARYMIME",
        b"BURL",
    } == HIDDEN_WHILE_STRICT - HIDDEN_ALWAYS


def test_an_unknown_verb_is_forwarded() -> None:
    assert UNKNOWN.kind is Kind.UNKNOWN
    assert UNKNOWN.always is None
    assert UNKNOWN.strict is None


MAY_BECOME_REFUSED = [
    b"",
    b" ",
    b"\t\v\f\r",
    b"x",
    b"  XC",
    b"xfor",
    b"P",
    b"PrOx",
    b"\0",
    b"\0\r",
]
MAY_BECOME_REFUSED += [
    b"XCLIENT",
    b"XCLIENT ADDR=",
    b" proxy\t",
    b"XCLIENT\0",
    b"\r\0\r",
]
NEVER_REFUSED = [b"E", b"XA", b"XCLIENTS", b"PROXYX", b".", b"\0X", b"\0\rX", b" \xa0X"]
NEVER_REFUSED += [b"XFORWAR D", b"XCLIEN\0T"]


@pytest.mark.parametrize("start", MAY_BECOME_REFUSED)
def test_the_start_of_a_line_that_may_become_a_refused_command(start: bytes) -> None:
    assert may_become_refused(start, REFUSED_ALWAYS)


@pytest.mark.parametrize("start", NEVER_REFUSED)
def test_the_start_of_a_line_that_cannot_become_a_refused_command(start: bytes) -> None:
    assert not may_become_refused(start, REFUSED_ALWAYS)


def find_by_line(content: bytes) -> int | None:
    """Return the same as find_forbidden(), by calling verb_of() for every line."""
    start = 0
    for line in content.split(b"\n")[:-1]:
        if verb_of(line + b"\n") in FORBIDDEN_WHILE_STRICT:
            return start
        start += len(line) + 1
    return None


def test_find_forbidden_agrees_with_verb_of() -> None:
    before = [b"", b" ", b"\t\v\f\r", b"\0", b"x", b".", b"\xa0"]
    after = [bytes([octet]) for octet in range(256)] + [b"", b" x", b"\r", b"S"]
    found = 0
    for verb in [*FORBIDDEN_WHILE_STRICT, b"xClient", b"bdat", b"NOOP", b""]:
        for start, rest in product(before, after):
            line = start + verb + rest + b"\n"
            for content in (line, b"a\r\n" + line + b"PROXY\n"):
                where = find_forbidden(content, 0, len(content))
                assert where == find_by_line(content), content
                found += where is not None
            assert find_forbidden(b"PROXY\n" + line, 6, 6 + len(line)) == (
                None if find_by_line(line) is None else 6
            )
    assert found > 1000


BDAT = {
    b"BDAT 12\r\n": (12, False),
    b"BDAT 12 LAST\r\n": (12, True),
    b"bdat 0 last\n": (0, True),
    b"BDAT   012   LAST  \r\n": (12, True),
    b"BDAT 999999999\r\n": (999_999_999, False),
}


@pytest.mark.parametrize(("line", "chunk"), BDAT.items(), ids=map(repr, BDAT))
def test_read_bdat_accepts_a_size_that_all_servers_read_alike(
    line: bytes, chunk: tuple[int, bool]
) -> None:
    assert read_bdat(line) == chunk


@pytest.mark.parametrize(
    "line",
    [
        b"BDAT\r\n",
        b"BDAT LAST\r\n",
        b"BDAT LAST 12\r\n",
        b"BDAT -1\r\n",
        b"BDAT +12 LAST\r\n",
        b"BDAT 0x0c\r\n",
        b"BDAT 12LAST\r\n",
        b"BDAT 12abc LAST\r\n",
        b"BDAT 12. LAST\r\n",
        b"BDAT 12 FOO\r\n",
        b"BDAT 12 LAST x\r\n",
        b"BDAT 4294967308\r\n",
        b"BDAT 99999999999999999999\r\n",
        b"BDAT\t12\r\n",
        b" BDAT 12\r\n",
        b"BDAT 12 LAST\0\r\n",
        b"BDAT 1_2\r\n",
        b"BDAT \xd9\xa1\r\n",
        b"BDAT 12 LAST",
    ],
)
def test_read_bdat_rejects_a_size_that_servers_read_differently(
    line: bytes,
) -> None:
    assert read_bdat(line) is None
