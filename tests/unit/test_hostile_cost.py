"""No octets of a client cost much more than ordinary ones: counted, not timed.

``steps`` counts the lines of Python that run.  What runs inside one call of ``bytes.find`` or of a
pattern is not counted.  There, where the fault was a copy or a search of everything that waits,
we compare the processor time with that of a control in the same run, with a wide margin.
"""

import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from proxyshim.errors import BackendError
from proxyshim.smtp import extensions
from proxyshim.smtp.dialogue import MAX_OWED
from proxyshim.smtp.guard import MAX_HELD_OCTETS, Guard, Rules
from proxyshim.smtp.lines import is_ordinary, is_plain, verb_of
from proxyshim.smtp.relaxed import MAX_KEPT_OCTETS
from proxyshim.smtp.replies import MAX_REPLY_OCTETS, Reply, ReplyParser
from proxyshim.smtp.verbs import FORBIDDEN_WHILE_STRICT, find_forbidden
from tests import feeding

PACKET_OCTETS = 16_384


def steps(run: Callable[[], object]) -> int:
    """Return how many lines of Python *run* executes."""
    count = 0

    def trace(_: FrameType, event: str, __: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    earlier = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(earlier)
    return count


def in_mode(mode: str) -> Guard:
    guard = Guard(Rules())
    guard.from_client(b"EHLO c\r\n")
    keyword = b"XCLIENT" if mode == "strict" else b"CHUNKING"
    guard.from_backend(b"250-mx\r\n250-%b\r\n250 DSN\r\n" % keyword)
    return guard


def in_content(mode: str) -> Guard:
    guard = in_mode(mode)
    guard.from_client(b"MAIL\r\nRCPT\r\nDATA\r\n")
    guard.from_backend(b"250 ok\r\n250 ok\r\n354 go on\r\n")
    return guard


def fed(guard: Guard, octets: bytes, packet_octets: int) -> None:
    for start in range(0, len(octets), packet_octets):
        feeding.from_client(guard, octets[start : start + packet_octets])
        guard.to_backend.clear()


def of_size(unit: bytes, octets: int) -> bytes:
    return (unit * (octets // len(unit) + 1))[:octets]


ORDINARY = b"an ordinary line of text, as long as most.\r\n"
ODD_DOT = b"x\n.\r\n"
HOSTILE: dict[str, tuple[bytes, bytes]] = {
    "runs of LF after an odd dot": (ODD_DOT + b". \r\n", b"\n"),
    "runs of CRLF after an odd dot": (ODD_DOT, b"\r\n"),
    "repeated odd dots": (ODD_DOT, b". \r\n"),
    "repeated odd dots after LF": (ODD_DOT, b".\n"),
    "dots with CR": (ODD_DOT, b".\r\r\n"),
    "dots without a line end": (ODD_DOT, b"\r\n.\r"),
    "dots and text": (b"", b".x\r\n"),
    "dots and blanks": (b"", b"\n. \t\0x"),
    "a dot and endless blanks": (b"\r\n.", b" "),
    "almost forbidden verbs": (ODD_DOT, b"bdatx\n"),
    "forbidden verbs inside lines": (ODD_DOT, b"a bdat b proxy \r\n"),
    "blank lines before a verb": (ODD_DOT, b" \n\tx"),
    "short lines": (ODD_DOT, b"a\n"),
    "LF after every octet": (b"", b"x\n"),
}


@pytest.mark.parametrize("packet_octets", [PACKET_OCTETS, 7], ids=["large", "tiny"])
@pytest.mark.parametrize("mode", ["strict", "relaxed"])
@pytest.mark.parametrize(("start", "unit"), HOSTILE.values(), ids=HOSTILE.keys())
def test_no_content_costs_much_more_than_ordinary_content(
    start: bytes, unit: bytes, mode: str, packet_octets: int
) -> None:
    octets = 4 * packet_octets if packet_octets > 1000 else 1000 * packet_octets

    def cost(start: bytes, unit: bytes, octets: int) -> int:
        guard = in_content(mode)
        fed(guard, start, PACKET_OCTETS)
        content = of_size(unit, octets)
        return steps(lambda: fed(guard, content, packet_octets))

    ordinary, hostile = cost(b"", ORDINARY, octets), cost(start, unit, octets)
    assert hostile <= 6 * ordinary
    assert cost(start, unit, 2 * octets) <= 2.2 * hostile


def cpu_s(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def least(*runs: Callable[[], float]) -> list[float]:
    """Return the least of nine times of each, taken in turn."""
    return [
        min(times)
        for times in zip(*([run() for run in runs] for _ in range(9)), strict=True)
    ]


def octet_by_octet(take: Callable[[bytes], object], octets: bytes) -> float:
    pieces = [octets[i : i + 1] for i in range(len(octets))]
    return cpu_s(lambda: [take(piece) for piece in pieces])


def after_data() -> Guard:
    guard = in_mode("relaxed")
    guard.from_client(b"DATA\r\n")
    return guard


def waiting_for_a_reply() -> Guard:
    guard = in_mode("strict")
    guard.from_client(b"DATA\r\n")
    return guard


WAITING = {
    "what is held": (waiting_for_a_reply, MAX_HELD_OCTETS - 2_000),
    "a kept copy": (after_data, MAX_KEPT_OCTETS - 2_000),
}


@pytest.mark.parametrize(("start", "many"), WAITING.values(), ids=WAITING.keys())
def test_an_octet_costs_the_same_however_many_wait(
    start: Callable[[], Guard], many: int
) -> None:
    def after(waiting: int) -> float:
        guard = start()
        guard.from_client(b"x" * waiting)
        return octet_by_octet(guard.from_client, b"x" * 1000)

    few_s, many_s = least(lambda: after(10), lambda: after(many))
    assert many_s < 6 * few_s


def test_an_octet_of_a_reply_costs_the_same_however_long_the_reply_is() -> None:
    def after(lines: int) -> float:
        parser = ReplyParser()
        parser.feed(b"250-a\r\n" * lines)
        parser.next()

        def take(octet: bytes) -> None:
            parser.feed(octet)
            parser.next()

        return octet_by_octet(take, b"250-a\r\n" * 100)

    few_s, many_s = least(
        lambda: after(1), lambda: after(MAX_REPLY_OCTETS // len(b"250-a\r\n") - 200)
    )
    assert many_s < 6 * few_s


def test_each_of_many_replies_costs_the_same() -> None:
    def per_reply(count: int) -> float:
        parser = ReplyParser()
        parser.feed(b"250\n" * count)
        return cpu_s(lambda: [parser.next() for _ in range(count)]) / count

    few_s, many_s = least(lambda: per_reply(500), lambda: per_reply(50_000))
    assert many_s < 6 * few_s


def held_commands(mode: str, line: bytes, many: int) -> Guard:
    guard = in_mode(mode)
    guard.from_client(line)
    guard.from_client(line * many)
    return guard


@pytest.mark.parametrize("line", [b"FOO\r\n", b"AUTH x\r\n"])
def test_a_reply_costs_the_same_however_many_commands_are_held(line: bytes) -> None:
    def after(many: int) -> float:
        guard = held_commands("strict", line, many)
        return cpu_s(lambda: [guard.from_backend(b"550 no\r\n") for _ in range(100)])

    few_s, many_s = least(lambda: after(110), lambda: after(100_000 // len(line)))
    assert many_s < 6 * few_s


def test_a_reply_costs_the_same_while_too_many_are_owed() -> None:
    def after(many: int) -> float:
        guard = held_commands("relaxed", b"NOOP\r\n", MAX_OWED + many)
        return cpu_s(lambda: [guard.from_backend(b"250 ok\r\n") for _ in range(100)])

    few_s, many_s = least(lambda: after(110), lambda: after(20_000))
    assert many_s < 6 * few_s


def test_one_copy_is_read_a_limited_number_of_times() -> None:
    guard = in_mode("relaxed")
    guard.from_client(b"AUTH\r\n" * 40_000)
    for _ in range(100):
        guard.from_backend(b"550 no\r\n")
    assert not guard.is_opaque
    guard.from_backend(b"550 no\r\n")
    assert guard.is_opaque


@pytest.mark.parametrize("check", [is_plain, is_ordinary])
def test_a_long_line_that_does_not_match_costs_no_more_than_one_that_does(
    check: Callable[[bytes], bool],
) -> None:
    def cost(line: bytes) -> float:
        return cpu_s(lambda: [check(line) for _ in range(100)])

    good = b"NOOP " + b"x" * 12_000 + b"\r\n"
    bad = b"x" * 12_000 + b"\t\r\n"
    worse = b"x " + b"x" * 12_000 + b"\0\r\n"
    good_s, bad_s, worse_s = least(
        lambda: cost(good), lambda: cost(bad), lambda: cost(worse)
    )
    # A pattern that backtracks would cost thousands of times as much.
    assert bad_s < 40 * good_s
    assert worse_s < 40 * good_s


def test_long_ehlo_replies_are_not_cached() -> None:
    kept = extensions._read.cache_info().currsize
    for number in range(3):
        lines = b"250-X%d\r\n250-SIZE\r\n" % number * 1000
        reply = Reply(250, b"250-mx\r\n" + lines + b"250 XCLIENT\r\n")
        assert b"SIZE" in extensions.read_keywords(reply)
        assert b"XCLIENT" in extensions.read_extensions(reply)
        hidden = extensions.hide(reply, frozenset({b"XCLIENT"}))
        assert hidden.endswith(b"250-X%d\r\n250 SIZE\r\n" % number)
    assert extensions._read.cache_info().currsize == kept


# The search for forbidden verbs is exact.


def lines_from(alphabet: list[bytes], length: int) -> Iterator[bytes]:
    if not length:
        yield b""
        return
    for rest in lines_from(alphabet, length - 1):
        for piece in alphabet:
            yield piece + rest


def test_the_search_for_forbidden_verbs_agrees_with_verb_of() -> None:
    alphabet = [b"bDat", b"proxy", b" ", b"\t", b"\r", b"\0", b"\1", b"\n", b"x"]
    for octets in lines_from(alphabet, 5):
        content = octets + b"\n"
        position, expected = 0, None
        for line in content.split(b"\n")[:-1]:
            if verb_of(line + b"\n") in FORBIDDEN_WHILE_STRICT:
                expected = position
                break
            position += len(line) + 1
        assert find_forbidden(content, 0, len(content)) == expected, content


def test_a_client_that_is_read_in_slices_is_never_forgotten() -> None:
    guard = in_mode("strict")
    guard.from_client(b"NOOP\r\n" * 5_000)
    for _ in range(5_000):
        guard.from_backend(b"250 ok\r\n")
    assert b"".join(guard.to_backend).count(b"NOOP") == 5_000
    with pytest.raises(BackendError):
        guard.from_backend(b"nonsense\r\n")
