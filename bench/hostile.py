"""What one hostile client can cost: ``python -m bench.hostile``, or ``make hostile``.

It measures the guard inside this process, and adds what moving the octets costs through a pair of
sockets.  The figures are for orientation; tests/unit/test_hostile_cost.py enforces the bounds.
"""

import gc
import socket
import time
import tracemalloc
from collections.abc import Callable
from typing import Final, NamedTuple

from proxyshim.smtp.guard import Guard, Rules

READ_OCTETS: Final = 65_536  # the most that one turn of the loop reads from one session
MB: Final = 1_000_000

ORDINARY: Final = b"an ordinary line of text, about as long as most of them are.\r\n"
ODD_DOT: Final = b"x\n.\r\n"


class Stream(NamedTuple):
    """Content: what it begins with, and what is repeated."""

    start: bytes
    unit: bytes


CONTENTS: Final = {
    "ordinary text": Stream(b"", ORDINARY),
    "ordinary text after an odd dot": Stream(ODD_DOT, ORDINARY),
    "a dot at the start of each line": Stream(b"", b".x\r\n"),
    "dots, blanks and NULs": Stream(b"", b"\n. \t\0x"),
    "LF, after an odd dot": Stream(ODD_DOT, b"\n"),
    "CRLF, after an odd dot": Stream(ODD_DOT, b"\r\n"),
    "odd dots, repeated": Stream(ODD_DOT, b". \r\n"),
    "almost the end, repeated": Stream(ODD_DOT, b"\r\n.\r"),
    "lines of one octet, after an odd dot": Stream(ODD_DOT, b"a\n"),
    "blanks before text, after an odd dot": Stream(ODD_DOT, b" \n\tx"),
    "almost forbidden verbs, after an odd dot": Stream(ODD_DOT, b"bdatx\n"),
    "forbidden verbs inside lines, after an odd dot": Stream(ODD_DOT, b"a bdat \n"),
}
COMMANDS: Final = {
    "NOOP": b"NOOP\r\n",
    "empty lines": b"\n",
    "unknown verbs": b"A\n",
    "verbs in an odd form": b" NOOP\r\n",
    "refused XCLIENTs": b"XCLIENT\n",
    "BDAT without content": b"BDAT 0\n",
    "DATA, pipelined": b"DATA\n",
    "AUTH, pipelined": b"AUTH\n",
    "one endless line": b"x",
    "an endless refused line": b"XCLIENT ",
}
MODES: Final = {"strict": b"XCLIENT", "relaxed": b"CHUNKING"}


def in_mode(mode: str) -> Guard:
    """Return a guard after the EHLO that makes it strict or relaxed."""
    guard = Guard(Rules())
    guard.from_client(b"EHLO c\r\n")
    guard.from_backend(b"250-mx\r\n250-%b\r\n250 DSN\r\n" % MODES[mode])
    empty(guard)
    return guard


def in_content(mode: str) -> Guard:
    """Return a guard after a 354."""
    guard = in_mode(mode)
    guard.from_client(b"MAIL\r\nRCPT\r\nDATA\r\n")
    guard.from_backend(b"250 ok\r\n250 ok\r\n354 go on\r\n")
    empty(guard)
    return guard


def empty(guard: Guard) -> None:
    """Take what the guard puts out, as the relay does."""
    guard.to_backend.clear()
    guard.to_client.clear()
    guard.refused.clear()


def feed(guard: Guard, data: bytes) -> None:
    """Feed one read of the client, as the relay does."""
    if not guard.pass_command(data):
        guard.from_client(data)
        empty(guard)


def of_size(unit: bytes, octets: int) -> bytes:
    """Repeat *unit* up to that size."""
    return (unit * (octets // len(unit) + 1))[:octets]


def least_s(
    run: Callable[[], object], prepare: Callable[[], object], times: int = 5
) -> float:
    """Return the least processor time of *run*, which gets what *prepare* returned."""
    best = float("inf")
    for _ in range(times):
        prepare()
        begin = time.process_time()
        run()
        best = min(best, time.process_time() - begin)
    return best


def transport_s_per_mb() -> float:
    """Return what it costs to receive and to send an MB in reads of the usual size."""
    ours, theirs = socket.socketpair()
    data = bytes(READ_OCTETS)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * READ_OCTETS)
    with ours, theirs:

        def move() -> None:
            for _ in range(16):
                ours.sendall(data)
                theirs.recv(READ_OCTETS, socket.MSG_WAITALL)

        return least_s(move, lambda: None) / (16 * READ_OCTETS / MB)


def content_s_per_mb(mode: str, stream: Stream) -> float:
    """Return what the guard needs for an MB of content."""
    data = of_size(stream.unit, READ_OCTETS)
    guard = in_content(mode)
    reads = 16

    def prepare() -> None:
        nonlocal guard
        guard = in_content(mode)
        if stream.start:
            feed(guard, stream.start)

    def run() -> None:
        for _ in range(reads):
            feed(guard, data)

    return least_s(run, prepare) / (reads * READ_OCTETS / MB)


def longest_turn_s(mode: str, unit: bytes) -> tuple[float, float]:
    """Return the time of one read of commands, and of one read of a thousand replies to them."""
    data = of_size(unit, READ_OCTETS)
    guard = in_mode(mode)

    def prepare() -> None:
        nonlocal guard
        guard = in_mode(mode)

    def replies() -> None:
        if guard.awaits_backend:
            guard.from_backend(b"550 no\r\n" * 1_000)

    def after_the_commands() -> None:
        prepare()
        feed(guard, data)

    commands_s = least_s(lambda: feed(guard, data), prepare)
    return commands_s, least_s(replies, after_the_commands)


def held_octets(fill: Callable[[], Guard]) -> int:
    """Return the memory of a guard that *fill* made, with all it holds."""
    fill()
    gc.collect()
    tracemalloc.start()
    guards = [fill() for _ in range(8)]
    gc.collect()
    octets, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return octets // len(guards)


def holding(mode: str, commands: bytes, then: bytes, *, replies: bytes = b"") -> Guard:
    """Return a guard that was sent *commands*, and then *then* as long as it took more."""
    guard = in_mode(mode)
    feed(guard, commands)
    if replies:
        guard.from_backend(replies)
        empty(guard)
    for _ in range(3):  # three more reads are within all bounds, and four are not
        if guard.wants_client:
            feed(guard, of_size(then, READ_OCTETS))
    return guard


HOLDING: Final[dict[str, Callable[[], Guard]]] = {
    "after EHLO": lambda: in_mode("relaxed"),
    "strict, commands wait for a reply": lambda: holding(
        "strict", b"FOO\r\n", b"NOOP\r\n"
    ),
    "relaxed, 1,000 replies owed": lambda: holding("relaxed", b"", b"NOOP\r\n"),
    "relaxed, content before the 354": lambda: holding(
        "relaxed", b"DATA\r\n", ORDINARY
    ),
    "relaxed, content after an odd dot": lambda: holding(
        "relaxed", b"DATA\r\n", b".\n" + ORDINARY, replies=b"354 go on\r\n"
    ),
}


def main() -> None:
    """Print the tables."""
    transport_s = transport_s_per_mb()
    print("Content: processor time in ms for an MB, with the transport", end="")
    print(f" ({transport_s * 1e3:.2f} ms)")
    for mode in MODES:
        ordinary_s = transport_s + content_s_per_mb(mode, CONTENTS["ordinary text"])
        for name, stream in CONTENTS.items():
            total_s = transport_s + content_s_per_mb(mode, stream)
            print(
                f"  {mode:8}{name:48}{total_s * 1e3:8.2f}{total_s / ordinary_s:7.1f} x ordinary"
            )
    print(
        "\nCommands: the longest turn for 64 kB, and for 1,000 replies to them, in ms"
    )
    longest_s = 0.0
    for mode in MODES:
        for name, unit in COMMANDS.items():
            turns = longest_turn_s(mode, unit)
            longest_s = max(longest_s, *turns)
            print(f"  {mode:8}{name:48}{turns[0] * 1e3:8.2f}{turns[1] * 1e3:8.2f}")
    print(f"  the longest stall{'':39}{longest_s * 1e3:8.2f}")
    print("\nRefused commands, until the session ends")
    for mode in MODES:
        _print_refusals(mode)
    print("\nMemory of the guard of one session, in kB")
    for name, fill in HOLDING.items():
        print(f"  {name:56}{held_octets(fill) / 1e3:8.1f}")


def _print_refusals(mode: str) -> None:
    data = of_size(COMMANDS["refused XCLIENTs"], READ_OCTETS)
    guard = in_mode(mode)
    begin = time.process_time()
    guard.from_client(data)
    cost_s = time.process_time() - begin
    replied = sum(map(len, guard.to_client))
    read = len(guard.refused) * len(COMMANDS["refused XCLIENTs"])
    print(
        f"  {mode:8}{len(guard.refused)} commands, {read} octets:"
        f" {cost_s * 1e9 / read:.0f} ns and {replied / read:.1f} octets of replies per octet"
    )


if __name__ == "__main__":
    main()
