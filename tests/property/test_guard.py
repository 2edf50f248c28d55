"""The guard between any client and every kind of server: what must be true at any timing."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from proxyshim.errors import BackendError
from proxyshim.smtp import replies
from proxyshim.smtp.guard import MAX_HELD_OCTETS, Guard, Mode, Rules
from tests import feeding
from tests.property.guard_models import (
    GOOD_ANSWER,
    KINDS,
    ORDERLY,
    Backend,
    Bdat,
    Kind,
)
from tests.property.guard_network import Network

# What an attacker sends.

SPELLINGS = [
    b"XCLIENT ADDR=127.0.0.1\r\n",
    b"xclient addr=127.0.0.1\n",
    b" \tXCLIENT ADDR=127.0.0.1\r\n",
    b"XCLIENT\tADDR=127.0.0.1\r\n",
    b"XFORWARD NAME=a\r\n",
]
UGLY_SPELLINGS = [
    b"\v\f\rXCLIENT ADDR=127.0.0.1\r\n",
    b"XCLIENT\rADDR=127.0.0.1\n",
    b"XCLIENT ADDR=127.0.0.1\0junk\r\n",
    b"PROXY TCP4 127.0.0.1 127.0.0.1 1 25\r\n",
    b"x" * 16_384 + b"XCLIENT ADDR=127.0.0.1\r\n",
    b"NOOP " + b"x" * 16_379 + b"XCLIENT ADDR=127.0.0.1\r\n",
]
COMMANDS = [
    b"EHLO c\r\n",
    b"ehlo c\n",
    b"HELO c\r\n",
    b"NOOP\r\n",
    b"RSET\r\n",
    b"MAIL FROM:<a@a.example>\r\n",
    b"RCPT TO:<b@b.example>\r\n",
    b"DATA\r\n",
    b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\nDATA\r\n",
    b"VRFY SIZE\r\n",
    b"EXPN SIZE\r\n",
    b"AUTH PLAIN\r\n",
    b"AUTH LOGIN\r\n",
    b"dXNlcg==\r\n",
    GOOD_ANSWER + b"\r\n",
    b"*\r\n",
    b"STARTTLS\r\n",
    b"\r\n",
]
ODD_COMMANDS = [
    b"FOO\r\n",
    b"FOO x\r\n",
    b".\r\n",
    b". \n",
    b" NOOP\r\n",
    b"NOOP\tx\r\n",
    b" EHLO c\r\n",
    b"EHLO\tc\r\n",
    b"  \r\n",
    b" DATA\r\n",
    b"DATA\tx\r\n",
    b"\xa0NOOP\r\n",
    b" AUTH LOGIN\r\n",
]
CHUNKS = [b"BDAT 24\r\nXCLIENT ADDR=127.0.0.1\r\n", b"BDAT 0x18 LAST\r\n"]
DOTS = [
    b".\r\n",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r\n.\r\r\n",
    b"\r\n.\0\r\n",
    b"\r\n. \r\n",
    b"\r.\r\n",
]
SCRAPS = [b"Subject: a\r\n", b"text\n", b"x", b"\r", b"\n", b".", b"XCLI", b"ENT x\r\n"]
XCLIENT = SPELLINGS[0]
# How often we choose from each list.
WEIGHTS: list[tuple[list[bytes], int]] = [
    (COMMANDS, 20),
    (SPELLINGS, 8),
    (ODD_COMMANDS, 5),
    (DOTS, 6),
    (SCRAPS, 4),
    (UGLY_SPELLINGS, 1),
    (CHUNKS, 1),
]


def any_token(chance: random.Random) -> bytes:
    weights = [weight for _, weight in WEIGHTS]
    words, _ = chance.choices(WEIGHTS, weights)[0]
    return chance.choice(words)


tokens = st.sampled_from(
    [word for words, weight in WEIGHTS for word in words * -(-weight * 2 // len(words))]
)

# An attack consists of packets from the client and numbers of replies to deliver.
Attack = list[bytes | int]

packets = (
    st.lists(tokens | st.binary(min_size=1, max_size=4), min_size=1, max_size=6)
).map(b"".join)
attacks: SearchStrategy[Attack] = st.lists(
    packets | st.integers(1, 3) | st.just(100), max_size=40
)


def attack(network: Network, steps: Attack) -> None:
    """Play an attack to its end, then probe whether an XCLIENT gets through now."""
    for step in steps:
        if isinstance(step, bytes):
            network.send(step)
        else:
            network.deliver(step)
    for probe in (XCLIENT, b"\r\n.\r\n" + XCLIENT, b"STARTTLS\r\n", XCLIENT):
        network.deliver_all()
        network.send(probe)


def resists(kind: Kind, steps: Attack) -> None:
    """Check that an attack fails on a kind of server."""
    network = Network(kind)
    attack(network, steps)
    assert network.backend.abused == []


# Each of these attacks would succeed, on some kind of server, if the guard had one rule less.

ENVELOPE = b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\n"
ATTACKS: dict[str, Attack] = {
    "after EHLO": [b"EHLO c\r\n", 1, XCLIENT],
    "pipelined after everything": [
        b"EHLO c\r\n" + XCLIENT + b"NOOP\r\n" + XCLIENT + b"FOO\r\n" + XCLIENT
    ],
    "as content before the 354": [ENVELOPE + b"DATA\r\n" + XCLIENT + b".\r\n", 100],
    "after a refused DATA": [b"DATA\r\n" + XCLIENT, 100],
    "after a DATA refused for its form": [ENVELOPE + b" DATA\r\n" + XCLIENT, 100],
    "as an AUTH answer": [b"AUTH PLAIN\r\n", 1, XCLIENT, 100],
    "as a second AUTH answer": [b"AUTH LOGIN\r\n", 1, b"a\r\n", 1, XCLIENT, 100],
    "as the payload of BDAT": [b"BDAT 24\r\n" + XCLIENT, 100],
    "as the payload of BDAT with a malformed size": [b"BDAT 0x18\r\n" + XCLIENT, 100],
    "inside TLS": [b"EHLO c\r\n", 1, b"STARTTLS\r\n", 1, XCLIENT, 100],
    "after a refused STARTTLS": [b"STARTTLS\r\n" + XCLIENT, 100],
    **{
        f"after {dot!r} in content": [
            ENVELOPE + b"DATA\r\n",
            100,
            b"x" + dot + XCLIENT,
            100,
        ]
        for dot in DOTS
    },
    "after an odd dot as the first line of content": [
        ENVELOPE + b"DATA\r\n",
        100,
        b".\n" + XCLIENT,
    ],
    "in the next content where the server reads commands": [
        # The server ends the content at the odd dot and executes the DATA that follows.  The
        # client then waits for single replies until the guard sees content where the server
        # sees commands.
        ENVELOPE + b"DATA\r\n",
        100,
        b"x\n.\n" + ENVELOPE + b"DATA\r\n" + b"y\r\n.\r\n",
        1,
        ENVELOPE + b"DATA\r\n",
        1,
        1,
        1,
        b"z\r\n" + XCLIENT,
        100,
        b"z\r\n" + XCLIENT,
        100,
    ],
    "after a 354 that answers another DATA": [
        b"FOO\r\n",
        1,
        ENVELOPE + b"DATA\r\n",
        100,
        b".\r\n" + ENVELOPE + b"DATA\r\n",
        2,
        b".\r\n" + XCLIENT,
        100,
        XCLIENT,
    ],
    "in content that the server left at a dot sent as a command": [
        # Each command gets the reply to the one two places before it.  So the first DATA seems
        # refused, the server reads the dot as the end of content, and its 354 seems to answer
        # the second DATA.
        b"FOO\r\n",
        1,
        b"FOO\r\n",
        1,
        b"MAIL FROM:<a@a.example>\r\n",
        1,
        b"RCPT TO:<b@b.example>\r\n",
        1,
        b"MAIL FROM:<a@a.example>\r\n",
        1,
        b"MAIL FROM:<a@a.example>\r\n",
        1,
        b"DATA\r\n",
        1,
        b".\r\n",
        1,
        b"DATA\r\n",
        1,
        XCLIENT,
        100,
    ],
    "with the reply to another command as the proof, after two 500s": [
        b"FOO\r\n",
        1,
        b"FOO\r\n",
        1,
        b"EXPN SIZE\r\n",
        1,
        b"EXPN SIZE\r\n",
        1,
        b"EHLO c\r\n",
        1,
        b"STARTTLS\r\n" + XCLIENT,
        100,
        XCLIENT,
    ],
    "with the second reply to an unknown verb as the proof": [
        b"FOO\r\n",
        1,
        b"EHLO c\r\n",
        1,
        b"STARTTLS\r\n",
        1,
        b"STARTTLS\r\n",
        100,
        XCLIENT,
    ],
    "with the second reply to a known verb as the proof": [
        b" NOOP\r\n",
        1,
        b"EHLO c\r\n",
        1,
        b"STARTTLS\r\n" + XCLIENT,
        100,
        XCLIENT,
    ],
    "with the reply to an EHLO in an odd form as the proof": [
        b" EHLO c\r\n",
        1,
        b"EHLO c\r\n",
        1,
        b"STARTTLS\r\n" + XCLIENT,
        100,
        XCLIENT,
    ],
    "with the reply to another command as the proof": [
        b"EXPN SIZE\r\nEHLO c\r\n",
        1,
        b"STARTTLS\r\n" + XCLIENT,
        100,
        XCLIENT,
    ],
    "with the reply to a smuggled command as the proof": [
        ENVELOPE + b"DATA\r\n",
        100,
        b"x\n.\nEXPN SIZE\r\n",
        1,
        b"EHLO c\r\n",
        1,
        b"STARTTLS\r\n" + XCLIENT,
        100,
        XCLIENT,
    ],
    "with a reply in an AUTH dialogue as the proof": [
        b"AUTH LOGIN\r\n",
        1,
        b"EXPN SIZE\r\nEHLO c\r\n",
        1,
        b"EHLO c\r\n",
        1,
        b"STARTTLS\r\n" + XCLIENT,
        100,
        XCLIENT,
    ],
    "at the end of a split line": [b"x" * 16_384 + XCLIENT, 100],
    "at the end of a split command": [b"NOOP " + b"x" * 16_379 + XCLIENT, 100],
    "at the end of a split answer": [
        b"AUTH PLAIN\r\n",
        1,
        b"x" * 16_384 + XCLIENT,
        100,
    ],
    "at the end of a split line that only the guard takes for content": [
        ENVELOPE + b"DATA\r\n",
        100,
        b"x\n.\n" + b"x" * 16_384 + XCLIENT,
        100,
    ],
    **{
        f"spelled {spelling[-30:]!r}": [b"EHLO c\r\n", 1, spelling, 100]
        for spelling in SPELLINGS + UGLY_SPELLINGS
    },
    "after an EHLO made the session relaxed and the right came back": [
        b"AUTH PLAIN\r\n",
        1,
        GOOD_ANSWER + b"\r\n",
        1,
        b"EHLO c\r\n",
        1,
        XCLIENT + b"STARTTLS\r\n" + XCLIENT,
        100,
        XCLIENT,
    ],
}


def unpaced(steps: Attack) -> Attack:
    return steps


def with_late_replies(delay: int, steps: Attack) -> Attack:
    """Deliver each reply only after *delay* more packets."""
    paced: Attack = []
    for number, step in enumerate(step for step in steps if isinstance(step, bytes)):
        paced.append(step)
        if number >= delay:
            paced.append(1)
    return paced


PACES: dict[str, Callable[[Attack], Attack]] = {
    "at its own pace": unpaced,
    **{
        f"replies delayed by {count}": partial(with_late_replies, count)
        for count in (0, 1, 2, 99)
    },
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("steps", ATTACKS.values(), ids=ATTACKS.keys())
def test_known_attack_fails_on_every_kind_of_server(steps: Attack, kind: Kind) -> None:
    for pace in PACES.values():
        resists(kind, pace(steps))
        resists(kind, pace([b"EHLO c\r\n", 100, *steps]))


@settings(max_examples=2 * settings().max_examples)
@given(st.sampled_from(KINDS), attacks)
def test_no_generated_attack_succeeds_while_the_server_keeps_the_right(
    kind: Kind, steps: Attack
) -> None:
    resists(kind, steps)


def random_attack(chance: random.Random) -> Attack:
    """Return a random attack by a client that is anything from patient to hasty."""
    patience = chance.random()
    steps: Attack = []
    for _ in range(chance.randint(5, 40)):
        if chance.random() < patience:
            steps.append(chance.choice([1, 1, 1, 2, 3, 100]))
        else:
            words = [any_token(chance) for _ in range(chance.choice([1, 1, 1, 2, 4]))]
            steps.append(b"".join(words))
    return steps


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hundreds_of_random_attacks_fail(kind: Kind) -> None:
    # This is much faster than Hypothesis, which in turn finds shorter attacks.
    for seed in range(400):
        steps = random_attack(random.Random(seed))
        network = Network(kind)
        attack(network, steps)
        assert network.backend.abused == [], (seed, steps)


# The client's bytes may be split in any way.


def trace(kind: Kind, steps: Attack, cut: Callable[[bytes], Iterator[bytes]]) -> object:
    """Return everything that a guard shows after each step."""
    network, seen = Network(kind), []
    for step in steps:
        for piece in cut(step) if isinstance(step, bytes) else ():
            network.send(piece)
        if isinstance(step, int):
            network.deliver(step)
        guard = network.guard
        seen.append(
            (
                network.at_backend,
                network.at_client,
                guard.mode,
                guard.transaction,
                guard.end_reason,
                guard.finished,
                guard.can_quit,
                guard.refused.copy(),
            )
        )
    return seen


def whole(octets: bytes) -> Iterator[bytes]:
    yield octets


def byte_by_byte(octets: bytes) -> Iterator[bytes]:
    for i in range(len(octets)):
        yield octets[i : i + 1]


def at_random(chance: random.Random, octets: bytes) -> Iterator[bytes]:
    while octets:
        cut = chance.randint(1, 40)
        yield octets[:cut]
        octets = octets[cut:]


@given(st.sampled_from(KINDS), attacks, st.integers(0, 2**32))
def test_splitting_the_clients_input_differently_changes_nothing(
    kind: Kind, steps: Attack, seed: int
) -> None:
    expected = trace(kind, steps, whole)
    assert trace(kind, steps, partial(at_random, random.Random(seed))) == expected
    if all(len(step) < 1000 for step in steps if isinstance(step, bytes)):
        assert trace(kind, steps, byte_by_byte) == expected


# Ordinary clients.


@dataclass(frozen=True, slots=True)
class Line:
    """A command or content that a client sends."""

    octets: bytes
    waits: bool = False  # the client waits for all replies before it goes on
    refused: bytes = b""  # our own reply, if we refuse it


MAIL = Line(b"MAIL FROM:<a@a.example>\r\n")
RCPT = Line(b"RCPT TO:<b@b.example>\r\n")
REFUSED = [
    Line(b"XCLIENT ADDR=127.0.0.1\r\n", refused=replies.NOT_AUTHORIZED),
    Line(b"xforward name=a\n", refused=replies.NOT_AUTHORIZED),
]
ORDINARY = [
    Line(b"NOOP\r\n"),
    Line(b"RSET\n"),
    Line(b"vrfy a\r\n"),
    Line(b"\r\n"),
    RCPT,
    Line(b"DATA\r\n", waits=True),
    Line(b"HELO c\r\n", waits=True),
]
WORDS = [
    b"",
    b".",
    b"a",
    b"XCLIENT x",
    b"\tPROXY x",
    b"BDAT 3",
    b"\0\r\xff",
    b"STARTTLS",
]
content_lines = st.lists(st.sampled_from(WORDS), max_size=4).map(b"".join)


@st.composite
def contents(draw: DrawFn, line_ends: list[bytes]) -> bytes:
    """Return a message with doubled dots, and the end of content."""
    lines = draw(st.lists(content_lines, max_size=6))
    ends = [draw(st.sampled_from(line_ends)) for _ in lines]
    stuffed = [
        (b"." + line if line.startswith(b".") else line) + end
        for line, end in zip(lines, ends, strict=True)
    ]
    return b"".join([*stuffed, b"end\r\n.\r\n"])


@st.composite
def messages(draw: DrawFn, line_ends: list[bytes]) -> list[Line]:
    content = draw(contents(line_ends))
    recipients = [RCPT] * draw(st.integers(1, 3))
    data = Line(b"DATA\r\n", waits=True)
    return [Line(b"RSET\r\n"), MAIL, *recipients, data, Line(content)]


@st.composite
def chunked_messages(draw: DrawFn) -> list[Line]:
    chunks = draw(st.lists(content_lines, max_size=3))
    lines = [Line(b"BDAT %d\r\n%b" % (len(chunk), chunk)) for chunk in chunks]
    return [Line(b"RSET\r\n"), MAIL, RCPT, *lines, Line(b"BDAT 3 LAST\r\nend")]


logins = st.sampled_from(
    [
        [Line(b"AUTH PLAIN AHUAcA==\r\n", waits=True)],
        [Line(b"AUTH PLAIN\r\n", waits=True), Line(b"AHUAcA==\r\n", waits=True)],
        [Line(b"AUTH LOGIN\r\n", waits=True), Line(b"*\r\n", waits=True)],
        [Line(b"AUTH FOO\r\n", waits=True)],
    ]
)


@st.composite
def dialogues(draw: DrawFn, *, relaxed: bool) -> list[Line]:
    """Return what a client sends that follows the protocol."""
    parts = [
        st.sampled_from(ORDINARY + REFUSED).map(lambda line: [line]),
        messages([b"\r\n", b"\n"] if relaxed else [b"\r\n"]),
        logins,
    ]
    if relaxed:
        parts.append(chunked_messages())
        parts.append(st.just([Line(b"LHLO c\r\n")]))
    body = draw(st.lists(st.one_of(parts), max_size=6))
    lines = [Line(b"EHLO c\r\n", waits=True), *(line for part in body for line in part)]
    if relaxed and draw(st.booleans()):
        lines += [Line(b"STARTTLS\r\n", waits=True)]
        lines += [Line(line.octets) for line in [*REFUSED, MAIL]]
    return lines


def without_keywords(raw: bytes, *keywords: bytes) -> bytes:
    """Return an EHLO reply without the lines that offer *keywords*."""
    first, *rest = [line[4:] for line in raw.split(b"\r\n")[:-1]]
    kept = [first, *(line for line in rest if line.split()[0] not in keywords)]
    inner = b"".join(b"250-%s\r\n" % line for line in kept[:-1])
    return inner + b"250 %s\r\n" % kept[-1]


def converse(network: Network, lines: list[Line], chance: random.Random) -> None:
    """Play a dialogue with lines in pieces of any size, and replies at any possible time."""
    burst = b""
    for line in [*lines, Line(b"", waits=True)]:
        burst += line.octets
        if not line.waits and chance.random() < 0.7:
            continue
        for piece in at_random(chance, burst):
            network.send(piece)
            if chance.random() < 0.3:
                network.deliver(chance.randint(1, 3))
            elif chance.random() < 0.3:
                network.deliver_octets(chance.randint(1, 30))
        burst = b""
        if line.waits:
            network.deliver_all()


def without_guard(
    kind: Kind, lines: list[Line], *hidden: bytes
) -> tuple[bytes, bytes, list[bytes]]:
    """Return what must arrive at the backend and at the client, and the accepted messages."""
    backend, at_backend, at_client = Backend(kind), b"", b""
    for line in lines:
        if line.refused:
            at_client += line.refused
            continue
        at_backend += line.octets
        backend.feed(line.octets)
        for reply in backend.replies:
            is_offer = line.octets.startswith(b"EHLO")
            at_client += without_keywords(reply, *hidden) if is_offer else reply
        backend.replies.clear()
    return at_backend, at_client, backend.messages


def arrives_unchanged(
    kind: Kind, lines: list[Line], seed: int, rules: Rules, *hidden: bytes
) -> Guard:
    """Check that a dialogue arrives unchanged, except for what we refuse and hide."""
    network = Network(kind, rules)
    converse(network, lines, random.Random(seed))
    at_backend, at_client, sent = without_guard(kind, lines, *hidden)
    assert network.at_backend == at_backend
    assert network.at_client == at_client
    assert network.backend.messages == sent
    assert network.guard.end_reason is None
    if not network.guard.is_opaque:
        assert network.guard.messages_accepted == len(sent)
        assert not network.guard.awaits_backend
    return network.guard


seeds = st.integers(0, 2**32)
POLITE = [kind for kind in ORDERLY if kind.needs_recipient]
# All of them, as if they judged the client by the client's own address.
DROPPING = [replace(kind, keeps_right=False, bdat=Bdat.TAKE) for kind in POLITE]
KEEPING = [kind for kind in POLITE if kind.keeps_right]


@given(st.sampled_from(DROPPING), dialogues(relaxed=True), seeds)
def test_relaxed_dialogue_arrives_unchanged_with_refusals_in_their_place(
    kind: Kind, lines: list[Line], seed: int
) -> None:
    guard = arrives_unchanged(kind, lines, seed, Rules(), b"XCLIENT", b"XFORWARD")
    assert guard.mode is not Mode.STRICT
    tls = any(line.octets == b"STARTTLS\r\n" for line in lines)
    assert guard.is_opaque is tls


@given(st.sampled_from(KEEPING), dialogues(relaxed=False), seeds)
def test_strict_dialogue_arrives_unchanged_with_refusals_in_their_place(
    kind: Kind, lines: list[Line], seed: int
) -> None:
    rules = Rules(allow_plaintext_auth=True)
    hidden = (b"XCLIENT", b"XFORWARD", b"CHUNKING", b"STARTTLS")
    guard = arrives_unchanged(kind, lines, seed, rules, *hidden)
    assert guard.mode is Mode.STRICT


# Arbitrary bytes from both sides.

any_octets = st.one_of(
    tokens,
    st.binary(max_size=20),
    st.sampled_from([b"250 ok\r\n", b"250-a\r\n", b"354 a\r\n", b"334 a\r\n"]),
    st.sampled_from([b"250-mx\r\n250 SIZE\r\n", b"250-mx\r\n250 XCLIENT\r\n"]),
    st.sampled_from([b"220 a\r\n", b"221 a\r\n", b"550 a\r\n", b"2"]),
)


@given(st.lists(st.tuples(st.sampled_from("cbxde"), any_octets), max_size=40))
def test_arbitrary_input_raises_nothing_but_a_backend_error(
    events: list[tuple[str, bytes]],
) -> None:
    guard = Guard(Rules())
    for side, octets in events:
        if side == "c":
            feeding.from_client(guard, octets)
        elif side == "d":
            guard.client_closed()
        elif side == "e" and len(octets) == 1:
            guard.backend_closed()
        else:
            try:
                feeding.from_backend(guard, octets)
            except BackendError as error:
                guard.abandon(error.reason, replies.BACKEND_LOST)
                assert guard.finished
                return
        assert guard.client_drained in (True, False)
        assert guard.transaction
        if guard.finished and guard.end_reason is not None:
            assert not guard.wants_client


@settings(max_examples=30)
@given(st.lists(tokens, min_size=1, max_size=5), st.booleans())
def test_what_the_guard_holds_is_bounded_for_every_endless_input(
    words: list[bytes], relaxed: bool
) -> None:
    network = Network(replace(KINDS[0], keeps_right=not relaxed))
    network.send(b"EHLO c\r\n")
    network.deliver()
    packet = b"".join(words) * (1 + 10_000 // len(b"".join(words)))
    sent = 0
    while network.guard.wants_client and sent < 2 * MAX_HELD_OCTETS:
        network.send(packet)
        sent += len(packet)
        held = sent - len(network.at_backend)
        refused = len(network.guard.refused) * max(map(len, words))
        assert held - refused <= MAX_HELD_OCTETS + len(packet)
