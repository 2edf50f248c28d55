"""Where a dialogue stands: what both directions of the guard share.

``owed`` is the queue of replies that the client waits for, in order: a ``Kind`` where the backend
owes it, octets where we do.  Commands append to it; replies take from its head; ours are
delivered when they get there.  An end of ours is the last entry, so it never overtakes a reply.
"""

from enum import Enum, auto
from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp.content import ContentScanner
from proxyshim.smtp.verbs import Kind, Refusal

MAX_OWED: Final = 1_000  # replies; at the bound the client is not read


class Mode(Enum):
    """How a session is watched."""

    STRICT = auto()
    RELAXED = auto()
    OPAQUE = auto()  # behind STARTTLS, or lost: a plain pump


class State(Enum):
    """What the client's next octets are."""

    COMMAND = auto()
    CONTENT = auto()
    ANSWER = auto()  # to an AUTH challenge
    CHUNK = auto()  # a BDAT's payload; relaxed only
    UNSETTLED = auto()  # the reply owed last will say


class Transaction(Enum):
    """What a drain has to know."""

    IDLE = auto()
    ENVELOPE = auto()
    CONTENT = auto()
    FINAL_REPLY = (
        auto()
    )  # a message is with the backend; the answer to it is not here yet
    OPAQUE = auto()


class Dialogue:
    """The state that the two directions share, and the ways to change it that they share."""

    scanner: ContentScanner  # of the present content; not there before the first

    __slots__ = (
        "answered_early",
        "end_reason",
        "held",
        "last_code",
        "mail_accepted",
        "messages_accepted",
        "mode",
        "owed",
        "refused",
        "scanner",
        "state",
        "to_backend",
        "to_client",
        "unsure",
    )

    def __init__(self) -> None:
        """Begin strict, at a command."""
        self.mode = Mode.STRICT
        self.state = State.COMMAND
        # No deque: this is short, and an idle session is 700 octets smaller for it.
        self.owed: list[Kind | bytes] = []
        self.to_backend: list[bytes] = []
        self.to_client: list[bytes] = []
        self.refused: list[Reason] = []
        self.end_reason: Reason | None = None
        self.last_code = 0
        self.held = b""  # of the client's octets, what may not pass yet
        self.unsure = False  # whether replies and commands can be matched: see guard.py
        self.answered_early = False  # the present content was, before its end
        self.mail_accepted = False
        self.messages_accepted = 0

    @property
    def transaction(self) -> Transaction:
        """Tell where the client's transaction stands."""
        if self.mode is Mode.OPAQUE:
            return Transaction.OPAQUE
        # What is owed to a chunk whose payload is not through yet is no final reply.
        owed = self.owed[:-1] if self.state is State.CHUNK else self.owed
        if Kind.CONTENT in owed or Kind.BDAT_LAST in owed:
            return Transaction.FINAL_REPLY
        if self.state in (State.CONTENT, State.CHUNK):
            return Transaction.CONTENT
        if self.mail_accepted or Kind.MAIL in owed:
            return Transaction.ENVELOPE
        return Transaction.IDLE

    def begin_content(self) -> None:
        self.state = State.CONTENT
        self.scanner = ContentScanner()
        self.answered_early = False

    def answer(self, reply: bytes) -> None:
        """Put a reply of ours in its place among those owed."""
        if self.owed:
            self.owed.append(reply)
        else:
            self.deliver_own(reply)

    def deliver_own(self, reply: bytes) -> None:
        self.to_client.append(reply)
        self.last_code = int(reply[:3])

    def refuse(self, refusal: Refusal) -> None:
        """Answer a command that is not sent on."""
        self.refused.append(refusal.reason)
        if refusal.ends:
            self.end(refusal.reason, refusal.reply)
        else:
            self.answer(refusal.reply)

    def end(self, reason: Reason, reply: bytes = b"") -> None:
        """Read the client no more, and make *reply* our last word; the first end counts."""
        if self.end_reason is not None:
            return
        self.end_reason = reason
        self.held = b""
        if reply and self.mode is not Mode.OPAQUE:
            self.answer(reply)
