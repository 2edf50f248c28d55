"""The shortcut of passing.py does what the rule would have done: two guards, side by side.

This is the twin test that passing.py names.  One guard is offered each packet by ``pass_command``
and ``pass_reply``, the other always parses it, and afterwards both must know the same.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyshim.errors import BackendError, Reason
from proxyshim.smtp import guard as guard_module
from proxyshim.smtp import relaxed, replies, strict
from proxyshim.smtp.backend_replies import BackendReader
from proxyshim.smtp.content import ContentScanner
from proxyshim.smtp.dialogue import MAX_OWED, Dialogue, Mode, State
from proxyshim.smtp.final_replies import FinalReplies
from proxyshim.smtp.guard import Guard, Rules
from proxyshim.smtp.lines import MAX_COMMAND_OCTETS
from proxyshim.smtp.relaxed import RelaxedReader
from proxyshim.smtp.replies import MAX_REPLY_LINE_OCTETS, ReplyParser
from proxyshim.smtp.strict import StrictReader
from proxyshim.smtp.verbs import VERBS, Kind, Refusal
from proxyshim.smtp.waiting import Waiting
from tests import feeding

CHECK_ONLY = Refusal(replies.NO_CLIENT_ADDRESS, Reason.NO_CLIENT_ADDRESS, ends=True)
RULES = {
    "ordinary": Rules(),
    "STARTTLS withheld": Rules(starttls_offered=True),
    "check-only": Rules(check_only=CHECK_ONLY),
}

Event = tuple[str, bytes]  # "C" or "B" and what it sends, or another event and nothing

PARTS = (
    Guard,
    Dialogue,
    StrictReader,
    RelaxedReader,
    BackendReader,
    ReplyParser,
    ContentScanner,
    Waiting,
    FinalReplies,
)
PROPERTIES = [name for name, what in vars(Guard).items() if isinstance(what, property)]


def state_of(part: object) -> dict[str, object]:
    """Return everything that a guard, or a part of it, knows."""
    known = {name: getattr(part, name, None) for name in type(part).__slots__}  # type: ignore[attr-defined]
    return {
        name: state_of(value) if isinstance(value, PARTS) else value
        for name, value in known.items()
        if isinstance(part, Guard) or not isinstance(value, Dialogue | RelaxedReader)
    }


class Twins:
    """A guard that uses the shortcut, as in the relay, and one that does not."""

    def __init__(self, rules: Rules) -> None:
        """Begin after the greeting."""
        self.fast, self.plain = Guard(rules), Guard(rules)
        self.taken = 0  # packets that the shortcut took

    def after(self, events: list[Event]) -> "Twins":
        """Let *events* happen to both, without comparing them."""
        for event in events:
            if not self._take(event):
                happen(self.fast, event)
            happen(self.plain, event)
        return self

    def compare(self, event: Event) -> None:
        """Let *event* happen to both, and compare everything that they know and put out."""
        for guard in (self.fast, self.plain):
            guard.to_backend.clear()
            guard.to_client.clear()
            guard.refused.clear()
        untouched = repr(state_of(self.fast))
        if not self._take(event):
            assert repr(state_of(self.fast)) == untouched, event
            happen(self.fast, event)
        happen(self.plain, event)
        assert state_of(self.fast) == state_of(self.plain), event
        for name in PROPERTIES:
            assert getattr(self.fast, name) == getattr(self.plain, name), (name, event)

    def _take(self, event: Event) -> bool:
        guard, (actor, octets) = self.fast, event
        taken = False
        if actor == "C" and (taken := feeding.takes(guard, guard.pass_command, octets)):
            guard.to_backend.append(octets)
        if actor == "B" and (taken := feeding.takes(guard, guard.pass_reply, octets)):
            guard.to_client.append(octets)
        self.taken += taken
        return taken


def happen(guard: Guard, event: Event) -> None:
    actor, octets = event
    if actor == "C":
        guard.from_client(octets)
    elif actor == "B":
        try:
            guard.from_backend(octets)
        except BackendError as error:
            guard.abandon(error.reason, replies.BACKEND_LOST)
    elif actor == "drain":
        guard.end(Reason.SHUTDOWN, replies.SHUTTING_DOWN)
    elif actor == "an end without a reply":
        guard.end(Reason.SHUTDOWN)
    elif actor == "timeout":
        guard.abandon(Reason.BACKEND_TIMEOUT, replies.BACKEND_LOST)
    elif actor == "the client closes":
        guard.client_closed()
    elif actor == "a moment passes":
        guard.from_backend(b"")
    else:
        guard.backend_closed()


# What either side may send.

# EHLO replies that do not offer XCLIENT, and that do.
RIGHT_DROPPED = b"250-mx\r\n250-SIZE\r\n250 DSN\r\n"
RIGHT_KEPT = b"250-mx\r\n250-XCLIENT ADDR\r\n250 DSN\r\n"
PRINTABLE_VERBS = sorted(verb for verb in VERBS if verb.isalpha())
LINES = [
    *(verb + b"\r\n" for verb in PRINTABLE_VERBS),
    *(verb.lower() + b" a:<b>\r\n" for verb in PRINTABLE_VERBS),
    *(verb + b"\n" for verb in PRINTABLE_VERBS),
]
BORDERS = [
    b"NOOP",
    b"NOO",
    b"NOOP\r",
    b"NOOP \r",
    b"P\r\n",
    b"NOOP\tx\r\n",
    b"NOOP\0\r\n",
    b"NOOP \0\r\n",
    b"NOOP \x7f\r\n",
    b"NOOP \t\xff\r\n",
    b"NOOP\rx\n",
    b"NOOP\r\r\n",
    b"NOOP \r\r\n",
    b"NOOP \rx\r\n",
    b"NOOPS\r\n",
    b" NOOP\r\n",
    b"\tMAIL a\n",
    b"NOOP\r\nNOOP\r\n",
    b"NOOP\r\nNOOP",
    b"NOOP\n\n",
    b"MAIL a\r\nRCPT b\r\nDATA\r\n",
    b"DATA\r\nx\r\n.\r\n",
    b"EHLO c\r\nNOOP\r\n",
    b"FOOO\r\n",
    b"X",
    b"XCLIENT a=b\r\n",
    b"XCLI",
    b"BDAT 5\r\n",
    b"BDAT 5 LAST\r\nx\r\n.\n",
    b"BDAT 5x LAST\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\0\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"*\r\n",
]
LONG_LINES = [
    b"NOOP " + b"x" * (MAX_COMMAND_OCTETS - 7 + longer) + b"\r\n" for longer in (0, 1)
]
CONTENTS = [
    b"Subject: a\r\n\r\nb.\r\n.\r\n",
    b"Subject: a\r\n\r\nb\r\n.\r\n",
    b"a\r\n.\r\nQUIT\r\n",
    b"a\r\n.\r\n.\r\n",
    b"..a\r\nb\r\n.\r\n",
    b"a\r\n..b\r\n.\r\n",
    b"a\r\n.b\r\n",
    b"\r\n.\r\n",
    b".\r\n",
    b".",
    b".\r",
    b"\r\n",
    b"\n",
    b"a.b.\r\n",
    b"ab",
    b"ab\r",
    b"ab\n",
    b"ab\r\n.",
    b"ab\r\n.\r",
    b"ab\n.\r\n",
    b"ab\n.\r\n\r\n.\r\n",
    b"ab\r\n.\n",
    b"ab\r\n.\n\r\n.\r\n",
    b"ab\r\n.\r\r\n",
    b"ab\r\n.\0\r\n",
    b"ab\r\n. \r\n.\r\n",
    b".\n\r\n.\r\n",
    b"XCLIENT\r\n",
    b"\r\n\r\n.\r\n",
]
REPLIES = [
    b"250 ok\r\n",
    b"250 ok\n",
    b"250 \r\n",
    b"354 go on\r\n",
    b"550 no\r\n",
    b"451 later\r\n",
    b"235 hello\r\n",
    b"334 VXNl\r\n",
    b"220 go on\r\n",
    b"221 bye\r\n",
    b"421 bye\r\n",
    b"503 no\r\n",
    RIGHT_DROPPED,
    RIGHT_KEPT,
]
REPLY_BORDERS = [
    b"250\r\n",
    b"250-ok\r\n",
    b"250-ok\r\n250 ok\r\n",
    b"250 ok\r\n250 ok\r\n",
    b"250 ok\r\n2",
    b"250 ok",
    b"250 ok\r",
    b"\n",
    b"50 ok\r\n",
    b"250\tok\r\n",
    b"250\rok\r\n",
    b"199 no\r\n",
    b"600 no\r\n",
    b"2500 ok\r\n",
    b" 250 ok\r\n",
    b"250 \0\r\r\n",
    b"354 go on\r\n250 ok\r\n",
    b"354-go\r\n354 on\r\n",
    *(
        b"250 " + b"x" * (MAX_REPLY_LINE_OCTETS - 6 + longer) + b"\r\n"
        for longer in (0, 1)
    ),
]
OTHER = ["drain", "an end without a reply", "timeout"]
OTHER += ["the client closes", "the backend closes", "a moment passes"]
EVENTS: list[Event] = [
    *(("C", octets) for octets in LINES + BORDERS + LONG_LINES + CONTENTS),
    *(("C", octets[:-2]) for octets in LONG_LINES),
    *(("B", octets) for octets in REPLIES + REPLY_BORDERS),
    *((other, b"") for other in OTHER),
]


# Every event in every situation.

FEW = 5  # a small limit for the number of owed replies


@contextmanager
def no_more_owed_than(limit: int) -> Iterator[None]:
    modules: list[ModuleType] = [guard_module, relaxed, strict]
    with ExitStack() as patches:
        for module in modules:
            patches.enter_context(patch.object(module, "MAX_OWED", limit))
        yield


EHLO: list[Event] = [("C", b"EHLO c\r\n")]
RELAXED: list[Event] = [*EHLO, ("B", RIGHT_DROPPED)]
STRICT: list[Event] = [*EHLO, ("B", RIGHT_KEPT)]
CONTENT: list[Event] = [("C", b"MAIL a\r\n"), ("C", b"DATA\r\n"), ("B", b"250 ok\r\n")]
CONTENT += [("B", b"354 go on\r\n")]
SITUATIONS: dict[str, list[Event]] = {
    "at a command": [],
    "at a command while replies are owed": [("C", b"MAIL a\r\nRCPT b\r\n")],
    "after the reply to a command": [("C", b"MAIL a\r\n"), ("B", b"250 ok\r\n")],
    "in a command": [("C", b"NOO")],
    "in a command that may be refused": [("C", b"XCLI")],
    "after blanks": [("C", b" ")],
    "after EHLO": EHLO,
    "after HELO": [("C", b"HELO c\r\n")],
    "after RSET": [("C", b"MAIL a\r\n"), ("B", b"250 ok\r\n"), ("C", b"RSET\r\n")],
    "after QUIT": [("C", b"QUIT\r\n")],
    "after DATA": [("C", b"DATA\r\n")],
    "after DATA and a command": [("C", b"DATA\r\nNOOP\r\n")],
    "after DATA and more commands than the limit": [
        ("C", b"DATA\r\n" + b"NOOP\r\n" * (FEW + 1))
    ],
    "after a command and DATA": [("C", b"MAIL a\r\nDATA\r\n")],
    "after a refused DATA": [("C", b"DATA\r\n"), ("B", b"503 no\r\n")],
    "after AUTH": [("C", b"AUTH PLAIN\r\n")],
    "at an AUTH answer": [("C", b"AUTH PLAIN\r\n"), ("B", b"334 \r\n")],
    "after an AUTH answer": [("C", b"AUTH A\r\n"), ("B", b"334 \r\n"), ("C", b"a\r\n")],
    "after STARTTLS": [("C", b"STARTTLS\r\n")],
    "after an unknown verb": [("C", b"FOO\r\n")],
    "unsure": [("C", b"FOO\r\n"), ("B", b"500 what?\r\n")],
    "unsure and in content": [("C", b"FOO\r\n"), ("B", b"500 what?\r\n"), *CONTENT],
    "our own reply is second in the queue": [("C", b"NOOP\r\nXCLIENT\r\n")],
    "our own reply is last in the queue": [("C", b"NOOP\r\nRSET\r\nXCLIENT\r\n")],
    "in a reply": [("C", b"NOOP\r\n"), ("B", b"250-a\r\n250")],
    "in content": CONTENT,
    "in content after CRLF": [*CONTENT, ("C", b"a\r\n")],
    "in content after LF": [*CONTENT, ("C", b"a\n")],
    "in content after CR": [*CONTENT, ("C", b"a\r")],
    "in a line of content": [*CONTENT, ("C", b"a")],
    "in a line of content that starts with a dot": [*CONTENT, ("C", b".a")],
    "in content after a dot": [*CONTENT, ("C", b".")],
    "in the end of content": [*CONTENT, ("C", b"a\r\n.\r")],
    "in content after an odd dot": [*CONTENT, ("C", b"a\n.\n")],
    "in content after an odd dot and more": [*CONTENT, ("C", b"a\n.\nNOOP\r\nb")],
    "in content that was answered early": [*CONTENT, ("B", b"452 full\r\n")],
    "after content": [*CONTENT, ("C", b"a\r\n.\r\n")],
    "after two messages": [
        *CONTENT,
        ("C", b"a\r\n.\r\n"),
        ("B", b"250 ok\r\n"),
        *CONTENT,
        ("C", b".\r\n"),
    ],
    "after content and a command": [*CONTENT, ("C", b"a\r\n.\r\nMAIL a\r\n")],
    "after a chunk": [("C", b"BDAT 4 LAST\r\nabcd")],
    "in a chunk": [("C", b"BDAT 8\r\nabcd")],
    "opaque": [("C", b"STARTTLS\r\n"), ("B", b"220 go on\r\n")],
    "opaque after a reply out of place": [("C", b"NOOP\r\n"), ("B", b"354 go on\r\n")],
    "ending": [("C", b"NOOP\r\n"), ("drain", b"")],
    "ending without our own reply": [
        ("C", b"NOOP\r\n"),
        ("an end without a reply", b""),
    ],
    "ended": [("drain", b"")],
    "after the client closed": [("the client closes", b"")],
    "two fewer owed than the limit": [("C", b"NOOP\r\n" * (FEW - 2))],
    "one fewer owed than the limit": [("C", b"NOOP\r\n" * (FEW - 1))],
    "as many owed as the limit": [("C", b"NOOP\r\n" * FEW)],
    "more commands than the limit": [("C", b"NOOP\r\n" * (FEW + 1))],
}
STARTS: dict[str, tuple[Rules, list[Event]]] = {
    "strict": (RULES["ordinary"], []),
    "strict with STARTTLS withheld": (RULES["STARTTLS withheld"], []),
    "strict after EHLO": (RULES["ordinary"], STRICT),
    "relaxed": (RULES["ordinary"], RELAXED),
    "check-only": (RULES["check-only"], []),
}


@pytest.mark.parametrize(("rules", "start"), STARTS.values(), ids=STARTS.keys())
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS.keys())
def test_shortcut_agrees_with_the_rule_on_every_event(
    rules: Rules, start: list[Event], situation: list[Event]
) -> None:
    with no_more_owed_than(FEW):
        for event in EVENTS:
            Twins(rules).after([*start, *situation]).compare(event)


@pytest.mark.parametrize(("rules", "start"), STARTS.values(), ids=STARTS.keys())
def test_shortcut_agrees_with_the_rule_on_every_octet_after_a_verb(
    rules: Rules, start: list[Event]
) -> None:
    for verb in (b"noop", b"EHLO", b"DATA", b"XCLI", b"PROX"):
        for octet in range(256):
            for rest in (b"x\r\n", b"\r\n", b"\n", b""):
                line = verb + bytes([octet]) + rest
                twins = Twins(rules).after(start)
                twins.compare(("C", line))
                twins.compare(("C", b"NOOP\r\n"))


@pytest.mark.parametrize("start", [RELAXED, STRICT], ids=["relaxed", "strict"])
@pytest.mark.parametrize("verb", PRINTABLE_VERBS)
def test_shortcut_agrees_with_the_rule_on_every_code_after_every_verb(
    verb: bytes, start: list[Event]
) -> None:
    for code in range(190, 610):
        for next_command in (b"", b"NOOP\r\n"):
            twins = Twins(Rules(allow_plaintext_auth=True)).after(start)
            twins.after([("C", verb + b" 3 LAST\r\n" + next_command)])
            twins.compare(("B", b"%d a\r\n" % code))
            twins.compare(("C", b"NOOP\r\n"))


# Dialogues.

ANSWERS = st.sampled_from([octets for octets in REPLIES if octets != b"220 go on\r\n"])
COMMANDS = st.sampled_from(LINES)
MESSAGES = st.lists(st.sampled_from(CONTENTS), min_size=1, max_size=3).map(b"".join)
COIN = st.booleans()
ANY_EVENT = st.sampled_from(EVENTS)
# What the client is likely to send in each state.
FITTING = {
    State.COMMAND: COMMANDS,
    State.CONTENT: MESSAGES,
    State.ANSWER: COMMANDS,
    State.CHUNK: MESSAGES,
    State.UNDECIDED: COMMANDS | MESSAGES,
}


def next_event(data: st.DataObject, guard: Guard) -> Event:
    """Choose an event.  Most of them fit, because others would end the session too soon."""
    if data.draw(st.integers(0, 9)) == 0:
        return data.draw(ANY_EVENT)
    dialogue = guard._dialogue
    if bool(dialogue.owed) and data.draw(COIN):
        if dialogue.owed[0] is Kind.DATA and data.draw(COIN):
            return "B", b"354 go on\r\n"
        return "B", data.draw(ANSWERS)
    return "C", data.draw(FITTING[dialogue.state])


@settings(max_examples=5 * settings().max_examples)
@given(
    st.sampled_from(list(STARTS.values())),
    st.sampled_from([2, 3, 5, MAX_OWED]),
    st.data(),
)
def test_shortcut_agrees_with_the_rule_on_whole_dialogues(
    start: tuple[Rules, list[Event]], limit: int, data: st.DataObject
) -> None:
    rules, events = start
    with no_more_owed_than(limit):
        twins = Twins(rules).after(events)
        for _ in range(data.draw(st.integers(1, 25))):
            twins.compare(next_event(data, twins.plain))


# The shortcut is really used.

ORDINARY: list[Event] = [
    ("C", b"MAIL FROM:<a@a.example> SIZE=2000\r\n"),
    ("B", b"250 2.1.0 Ok\r\n"),
    ("C", b"rcpt to:<b@b.example>\r\n"),
    ("B", b"550 5.1.1 no\r\n"),
    ("C", b"RCPT TO:<c@b.example>\n"),
    ("B", b"250 2.1.5 Ok\r\n"),
    ("C", b"DATA\r\n"),
    ("B", b"354 End data with <CR><LF>.<CR><LF>\r\n"),
    ("C", b"Subject: a. b\r\n\r\nfirst."),
    ("C", b"\r\n..\r\n.a\r\n"),
    ("C", b"last\r\n.\r\n"),
    ("B", b"250 2.0.0 Ok: queued\r\n"),
    ("C", b"RSET\r\n"),
    ("B", b"250 2.0.0 Ok\r\n"),
    ("C", b"QUIT\r\n"),
    ("B", b"221 2.0.0 Bye\r\n"),
]


@pytest.mark.parametrize(
    "offer", [RIGHT_DROPPED, RIGHT_KEPT], ids=["relaxed", "strict"]
)
def test_shortcut_takes_every_packet_of_an_ordinary_session(offer: bytes) -> None:
    twins = Twins(Rules(starttls_offered=True))
    twins.compare(("C", b"EHLO client.example\r\n"))
    assert twins.taken == 1
    twins.compare(("B", offer))
    twins.taken = 0
    for event in ORDINARY:
        twins.compare(event)
    assert twins.taken == len(ORDINARY)
    assert twins.fast.messages_accepted == 1
    assert twins.fast.mode is (Mode.RELAXED if offer == RIGHT_DROPPED else Mode.STRICT)


def test_shortcut_takes_every_packet_of_an_opaque_session() -> None:
    twins = Twins(Rules()).after([*RELAXED, *SITUATIONS["opaque"]])
    twins.taken = 0
    for event in (("C", b"\x16\x03"), ("B", b"\x16\x03\n"), ("C", b"XCLIENT\r\n")):
        twins.compare(event)
    assert twins.taken == 3
