"""Transcripts of guarded dialogues: a small language, and a player that checks them.

    C> NOOP        the client sends a line, and the backend receives it at once
    C| NOOP        the client sends a line, and the backend does not receive it, or not yet
    -> NOOP        the backend receives a line that was held until now
    B< 250 ok      the backend sends a line, and the client receives it
    B| 250-XCLIENT the backend sends a line that the client does not receive in this form
    <- 550 no      the client receives a line that is our own, was changed, or was held
    <- {OUT_OF_STEP}   the same, for a reply with this name in replies.py
    !! drain       another event happens, see EVENTS
    :: relaxed idle    these facts are true now, see FACTS
    END reason     the session has ended for this reason, and every owed reply was delivered

CRLF is added to every line, unless it is in quotes: a quoted line stands for exactly those bytes,
with Python's escapes, and may be repeated, as in ``"x" * 10``.  All lines that one side sends, up
to a blank line or a ``::`` line, are one packet.  We compare what arrives after the whole packet
was fed, so the order of the lines within a packet is free.  Nothing may arrive that the transcript
does not mention.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from _pytest.mark import ParameterSet

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.guard import Guard, Mode, Rules, Transaction
from tests import feeding

# What else may happen, besides packets from the client ("C") and the backend ("B").
EVENTS: dict[str, Callable[[Guard], object]] = {
    "drain": lambda guard: guard.end(Reason.SHUTDOWN, replies.SHUTTING_DOWN),
    "timeout": lambda guard: guard.abandon(
        Reason.BACKEND_TIMEOUT, replies.BACKEND_LOST
    ),
    "the client closes": Guard.client_closed,
    "a moment passes": lambda guard: guard.from_backend(b""),
    "the backend closes": Guard.backend_closed,
    "the backend resets": lambda guard: guard.backend_closed(by_reset=True),
}


def has(name: str, value: object) -> Callable[[Guard], bool]:
    return lambda guard: bool(getattr(guard, name) == value)


FACTS: dict[str, Callable[[Guard], bool]] = {
    **{mode.name.lower(): has("mode", mode) for mode in Mode},
    **{
        transaction.name.lower(): has("transaction", transaction)
        for transaction in Transaction
        if transaction is not Transaction.OPAQUE
    },
    **{f"accepted={count}": has("messages_accepted", count) for count in range(4)},
    "reads": has("wants_client", True),
    "stops-reading": has("wants_client", False),
    "can-quit": has("can_quit", True),
    "cannot-quit": has("can_quit", False),
    "drained": has("client_drained", True),
    "not-drained": has("client_drained", False),
    "awaits-backend": has("awaits_backend", True),
    "awaits-nothing": has("awaits_backend", False),
    "backend-quitting": has("backend_quitting", True),
    "ending": lambda guard: guard.end_reason is not None and not guard.finished,
}

_QUOTED = re.compile(r'("(?:[^"\\]|\\.)*")(?: \* (\d+))?')


@dataclass(slots=True)
class Step:
    """A packet or an event, and what the guard must show afterwards."""

    actor: str  # "C", "B" or "!!"
    octets: bytes = b""
    event: str = ""
    at_backend: bytes = b""
    at_client: bytes = b""
    facts: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    end: str | None = None


def octets_of(text: str) -> bytes:
    """Return the bytes that a line of a transcript stands for."""
    if named := re.fullmatch(r"\{(\w+)\}", text):
        reply = getattr(replies, named[1])
        assert isinstance(reply, bytes)
        return reply
    if quoted := _QUOTED.fullmatch(text):
        octets = ast.literal_eval("b" + quoted[1])
        assert isinstance(octets, bytes)
        return octets * int(quoted[2] or 1)
    return text.encode("latin-1") + b"\r\n"


def read_transcript(transcript: str) -> list[Step]:
    """Read the steps of a transcript."""
    steps: list[Step] = []
    open_packet = ""
    for line in map(str.strip, transcript.splitlines()):
        mark, _, text = line.partition(" ")
        text = text.strip()
        if not line:
            open_packet = ""
        if not line or line.startswith("#"):
            continue
        if mark in ("C>", "C|", "B<", "B|"):
            if mark[0] != open_packet:
                open_packet = mark[0]
                steps.append(Step(mark[0]))
            steps[-1].octets += octets_of(text)
        elif mark == "!!":
            open_packet = ""
            steps.append(Step(mark, event=text))
        step = steps[-1]
        if mark in ("C>", "->"):
            step.at_backend += octets_of(text)
        elif mark in ("B<", "<-"):
            step.at_client += octets_of(text)
        elif mark == "::":
            open_packet = ""
            words = text.split()
            if words[0] == "refused":
                step.refused += words[1:]
            else:
                step.facts += words
        elif mark == "END":
            step.end = text
        else:
            assert mark in ("C|", "B|", "!!"), f"not a transcript line: {line!r}"
    return steps


Split = Callable[[bytes], list[bytes]]


def cut_at(position: int) -> Split:
    return lambda octets: [
        piece for piece in (octets[:position], octets[position:]) if piece
    ]


def whole(octets: bytes) -> list[bytes]:
    return [octets]


def byte_by_byte(octets: bytes) -> list[bytes]:
    return [octets[i : i + 1] for i in range(len(octets))]


def splits(steps: list[Step]) -> Iterator[Split]:
    """Return all the ways in which to split the packets of a transcript."""
    yield whole
    yield byte_by_byte
    longest = max(len(step.octets) for step in steps)
    # A very long packet is cut only near its two ends.
    for position in range(1, min(longest, 400)):
        yield cut_at(position)
        if longest > 400:
            yield cut_at(longest - position)


def play(
    steps: list[Step],
    split: Split,
    rules: Rules,
    from_client: feeding.Feed = feeding.from_client,
    from_backend: feeding.Feed = feeding.from_backend,
) -> Guard:
    """Play a transcript, and check everything that the guard shows after each step."""
    guard = Guard(rules)
    for number, step in enumerate(steps, 1):
        at_backend = at_client = b""
        for piece in split(step.octets) if step.octets else [b""]:
            if step.actor == "C":
                from_client(guard, piece)
            elif step.actor == "B":
                from_backend(guard, piece)
            else:
                EVENTS[step.event](guard)
            at_backend += b"".join(guard.to_backend)
            at_client += b"".join(guard.to_client)
            guard.to_backend.clear()
            guard.to_client.clear()
        where = f"step {number}, {step.octets or step.event!r}"
        assert at_backend == step.at_backend, f"at the backend, {where}"
        assert at_client == step.at_client, f"at the client, {where}"
        for fact in step.facts:
            assert FACTS[fact](guard), f"{fact} is not true, {where}"
        assert guard.refused == step.refused, f"refused, {where}"
        guard.refused.clear()
        reason = guard.end_reason if guard.finished else None
        assert reason == step.end, f"the end, {where}"
    return guard


def plays(transcript: str, rules: Rules | None = None) -> None:
    """Check a transcript with its packets whole, cut at every byte, and byte by byte."""
    steps = read_transcript(transcript)
    for split in splits(steps):
        play(steps, split, rules or Rules())
    play(steps, whole, rules or Rules(), Guard.from_client, Guard.from_backend)


def table(transcripts: Mapping[str, str]) -> pytest.MarkDecorator:
    """Make a test of each entry, which maps the name of a test to its transcript."""
    params: list[ParameterSet] = [
        pytest.param(transcript, id=name.replace(" ", "_"))
        for name, transcript in transcripts.items()
    ]
    return pytest.mark.parametrize("transcript", params)


# How most transcripts begin.

# The backend judges the client by the client's own address, so the session becomes relaxed.
RELAXED = """
C> EHLO client.example

B< 250-mx.example
B< 250-PIPELINING
B< 250-CHUNKING
B< 250-STARTTLS
B< 250 AUTH PLAIN LOGIN
:: relaxed idle

"""

# The backend still grants XCLIENT, so the session stays strict.
STRICT = """
C> EHLO client.example

B< 250-mx.example
B| 250-XCLIENT NAME ADDR
B< 250-PIPELINING
B< 250 AUTH PLAIN LOGIN
:: strict idle

"""

# A transaction up to the backend's 354.
CONTENT = """
C> MAIL FROM:<a@a.example>
C> RCPT TO:<b@b.example>
C> DATA
:: envelope

B< 250 sender ok
B< 250 recipient ok
B< 354 go on
:: content

"""
