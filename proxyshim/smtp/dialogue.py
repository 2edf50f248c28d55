"""Where a dialogue stands: the state that both directions of the guard share.

``owed`` is the queue of replies that the client is waiting for, in order.  An entry is a ``Kind``
if the backend owes the reply, and the bytes of the reply if it is one of our own.  Each forwarded
command appends an entry, each reply of the backend removes the first one, and we deliver our own
replies as soon as they are first in the queue.  So our own reply never overtakes the backend's,
not even the one with which we end a session: it is always the last entry.
"""

from enum import Enum, auto
from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.content import ContentScanner
from proxyshim.smtp.hang_up import Farewell
from proxyshim.smtp.own_tls import OwnTls
from proxyshim.smtp.verbs import Kind, Refusal
from proxyshim.smtp.waiting import Waiting

MAX_OWED: Final = 1_000  # replies; at this bound we stop reading the client
# Commands of one session that we refuse; the next one ends it.  Postfix permits as many errors
# (smtpd_hard_error_limit).
MAX_REFUSALS: Final = 20


class Mode(Enum):
    """How closely the guard watches the session."""

    UNPROVEN = (
        auto()
    )  # after a PROXY header, until the backend has shown that it took it
    STRICT = auto()
    RELAXED = auto()
    OPAQUE = auto()  # after STARTTLS, or after losing track: everything passes unread


class State(Enum):
    """What the client's next bytes are."""

    COMMAND = auto()
    CONTENT = auto()
    ANSWER = auto()  # to an AUTH challenge
    CHUNK = auto()  # the payload of a BDAT; only while relaxed
    UNDECIDED = auto()  # the last reply in the queue will decide it


class Transaction(Enum):
    """How far the client's mail transaction is; a drain depends on it."""

    IDLE = auto()
    ENVELOPE = auto()
    CONTENT = auto()
    FINAL_REPLY = auto()  # the backend has the message and has not answered it yet
    OPAQUE = auto()


class Dialogue:
    """The shared state, and the changes to it that more than one reader makes."""

    scanner: ContentScanner  # follows the current content; unset before the first

    __slots__ = (
        "answered_early",
        "backend_quitting",
        "end_reason",
        "farewell",
        "final_ends",
        "forwarded",
        "held",
        "hesitates",
        "in_doubt",
        "last_code",
        "mail_accepted",
        "messages_accepted",
        "milestone",
        "mode",
        "odd_dot_end",
        "owed",
        "owed_after_5xx",
        "refusals",
        "refused",
        "scanner",
        "screening",
        "state",
        "tls",
        "to_backend",
        "to_client",
        "unanswered",
        "unsure",
    )

    def __init__(self) -> None:
        """Begin strict, with the client at a command."""
        self.mode = Mode.STRICT
        self.state = State.COMMAND
        # Not a deque: the queue is short, and a list saves 700 bytes per idle session.
        self.owed: list[Kind | bytes] = []
        self.to_backend: list[bytes] = []
        self.to_client: list[bytes] = []
        self.refused: list[Reason] = []
        self.end_reason: Reason | None = None
        self.tls: OwnTls | None = None  # where we end the client's TLS
        self.last_code = 0
        # The backend sent 221 or 421, so we expect it to close the connection.
        self.backend_quitting = False
        self.held: Waiting | None = None  # from the client, and not allowed to pass yet
        self.refusals = 0
        # For these three see the argument in guard.py, steps 3 and 4.
        self.unsure = False
        self.in_doubt = False
        self.screening = False
        # The backend's 421, once it has sent one.
        self.farewell: Farewell | None = None
        # How many replies were owed when the backend's last one, a 5xx, had come; -1 after any
        # other reply.  As long as this is so, the backend may be about to hang up.
        self.owed_after_5xx = -1
        self.hesitates = False  # our own reply comes next, and waits for such a hang-up
        # The backend has already answered the current content, before its end.
        self.answered_early = False
        self.mail_accepted = False
        self.messages_accepted = 0
        # For the final replies (final_replies.py).
        self.forwarded = 0  # octets of the client's, until the stream is opaque
        # Where in them the messages end whose final replies are owed, and perhaps earlier ones.
        self.final_ends: tuple[int, ...] = ()
        # Where an odd dot ends that the backend may have taken for the end of the content; else 0.
        self.odd_dot_end = 0
        # Set by a final reply, to the number of parts in ``to_client`` including it; and by a
        # reply after which the backend closes, to 0 if it is not a final one.
        self.milestone: int | None = None
        # The client had sent something that was not answered when the stream became opaque.
        self.unanswered = False

    @property
    def transaction(self) -> Transaction:
        """Return how far the client's transaction is."""
        if self.mode is Mode.OPAQUE:
            return Transaction.OPAQUE
        owed = self.complete_owed
        if any(kind in FINAL_KINDS for kind in owed):
            return Transaction.FINAL_REPLY
        if self.state in (State.CONTENT, State.CHUNK):
            return Transaction.CONTENT
        if self.mail_accepted or Kind.MAIL in owed:
            return Transaction.ENVELOPE
        return Transaction.IDLE

    @property
    def complete_owed(self) -> list[Kind | bytes]:
        """Return the replies owed to what the client has completed."""
        # The last reply owed is not a final one while its chunk is still being sent.
        return self.owed[:-1] if self.state is State.CHUNK else self.owed

    def forward(self, data: bytes) -> None:
        """Pass *data* on to the backend."""
        self.to_backend.append(data)
        self.forwarded += len(data)

    def last_certain(self, delivered: int) -> int:
        """Return how many entries of ``owed`` end with the last final reply that is certain.

        It is certain if its message ends within the first *delivered* octets.
        """
        places = [n for n, kind in enumerate(self.complete_owed) if kind in FINAL_KINDS]
        ends = self.final_ends[len(self.final_ends) - len(places) :]
        certain = [n for n, end in zip(places, ends, strict=True) if end <= delivered]
        return certain[-1] + 1 if certain else 0

    def note_message_end(self) -> None:
        """Record that a message ends with the octets forwarded so far; its reply is owed."""
        # Ends before the first reply that is still owed are of no use any more.
        owed = sum(kind in FINAL_KINDS for kind in self.owed)
        recent = self.final_ends[1 - owed :] if owed > 1 else ()
        self.final_ends = (*recent, self.forwarded)

    def begin_content(self) -> None:
        """Enter content, after the 354."""
        self.state = State.CONTENT
        self.odd_dot_end = 0
        self.scanner = ContentScanner()
        self.answered_early = False

    def end_content(self) -> None:
        """Leave content, after CRLF.CRLF was forwarded."""
        self.odd_dot_end = 0
        if self.mode is _STRICT:
            self.state = _UNDECIDED
        else:
            self.state = _COMMAND
            if self.answered_early:
                return
        self.owed.append(_CONTENT)
        self.note_message_end()

    def note_reply(self, kind: Kind | None, code: int) -> None:
        """Record what a reply of the backend to *kind* means for the transaction.

        A *kind* of None is a reply to nothing that the client sent.
        """
        self.last_code = code
        self.owed_after_5xx = len(self.owed) if code >= 500 else -1
        if code in _QUITTING_CODES:
            self.backend_quitting = True
            self.milestone = self.milestone or 0
        positive = code < 300  # 2yz: the command was completed (RFC 5321, 4.2.1)
        if kind is _MAIL:
            self.mail_accepted |= positive
        elif kind in FINAL_KINDS or kind is Kind.ODD_DOT:
            self.messages_accepted += positive
            self.mail_accepted = False
            self.odd_dot_end = 0
            self.milestone = len(self.to_client) + 1
        elif positive and kind in _RESETTING:
            self.mail_accepted = False

    @property
    def is_judged(self) -> bool:
        """Return True if the backend's last word was a 5xx, and it has no other command to read.

        If it hangs up now, that was its judgement of the client.  A QUIT does not count, because
        it is how a client answers such a 5xx.
        """
        if self.owed_after_5xx < 0:
            return False
        since = self.owed[self.owed_after_5xx :]
        return all(owed is _QUIT or isinstance(owed, bytes) for owed in since)

    def judgement(self, *, is_expected: bool, by_reset: bool) -> Reason | None:
        """Return how the backend has judged the client, now that it has hung up."""
        if self.farewell is not None:
            return self.farewell.reason
        if not is_expected and (
            self.is_judged or (by_reset and self.owed_after_5xx >= 0)
        ):
            return Reason.CLIENT_REFUSED
        return None

    def weigh(self, kind: Kind, code: int) -> None:
        """Judge from the reply to a command sent alone whether our count of replies is right.

        Call it for the reply to an unknown verb, and for every reply while ``in_doubt``.
        """
        is_complaint = code in _UNKNOWN_VERB_CODES
        if kind is Kind.UNKNOWN:
            self.in_doubt = is_complaint and (self.in_doubt or not self.unsure)
            self.unsure = True
        else:
            self.unsure, self.in_doubt = is_complaint, False

    def lose_count(self) -> None:
        """Record that from here on we may be wrong about which reply answers which command."""
        self.unsure = True
        self.in_doubt = False

    def note_odd_dot(self) -> None:
        """Record that the backend may read commands where we see content."""
        self.lose_count()
        self.screening = True

    def answer(self, reply: bytes) -> None:
        """Queue our own *reply*, or deliver it if no other reply is owed or possible."""
        if self.odd_dot_end and not self.owed:
            self.owed.append(Kind.ODD_DOT)
        if self.owed:
            self.owed.append(reply)
        else:
            self.deliver_own(reply)

    def deliver_own(self, reply: bytes) -> None:
        """Deliver our own *reply* now; but none after the backend's last one."""
        if not self.backend_quitting:
            self.to_client.append(reply)
            self.last_code = int(reply[:3])

    def deliver_first(self) -> None:
        """Deliver our own replies that are first in the queue."""
        self.hesitates = False
        owed = self.owed
        while owed and isinstance(own := owed[0], bytes):
            del owed[0]
            self.deliver_own(own)

    def refuse(self, refusal: Refusal) -> None:
        """Answer a command that is not forwarded."""
        self.refused.append(refusal.reason)
        self.refusals += 1
        if refusal.ends:
            self.end(refusal.reason, refusal.reply)
        elif self.refusals > MAX_REFUSALS:
            self.end(Reason.TOO_MANY_REFUSALS, replies.TOO_MANY_REFUSALS)
        else:
            self.answer(refusal.reply)

    def want_tls(self, *, is_last: bool) -> None:
        """Act on STARTTLS; *is_last* is False if more has arrived in the clear after it."""
        assert self.tls is not None
        if is_last:
            self.tls.is_wanted = True
        else:
            self.end(Reason.PLAINTEXT_AFTER_STARTTLS, replies.PLAINTEXT_AFTER_STARTTLS)

    def abandon(self, reason: Reason, reply: bytes) -> None:
        """End the session at once: *reply* replaces all that are owed and will not come.

        It answers the first of these.  Our own replies that are owed after that one are dropped,
        because the client would take them for its answer; except a 421, which may answer anything.
        Without a *reply*, nothing is delivered.
        """
        self.deliver_first()
        last = self.owed[-1] if self.owed else None
        self.owed.clear()
        self.odd_dot_end = 0
        if self.end_reason is None:
            self.end(reason, reply)
        elif last is not None and reply:
            if isinstance(last, bytes) and last.startswith(b"421"):
                reply = last
            self.deliver_own(reply)

    def end(self, reason: Reason, reply: bytes = b"") -> None:
        """Stop reading the client, and make *reply* our last one.  Only the first call counts."""
        if self.end_reason is not None:
            return
        self.end_reason = reason
        self.held = None
        if reply and self.mode is not Mode.OPAQUE:
            self.answer(reply)


# Global names, because attributes of an Enum are slow to look up in Python 3.11.
_STRICT: Final = Mode.STRICT
_COMMAND: Final = State.COMMAND
_UNDECIDED: Final = State.UNDECIDED
_MAIL: Final = Kind.MAIL
_CONTENT: Final = Kind.CONTENT
_QUIT: Final = Kind.QUIT

# What a final reply answers.
FINAL_KINDS: Final = (Kind.CONTENT, Kind.BDAT_LAST)
_QUITTING_CODES: Final = (221, 421)
_UNKNOWN_VERB_CODES: Final = (500, 502)  # RFC 5321, 4.2.4
_RESETTING: Final = (Kind.HELO, Kind.EHLO, Kind.RSET)
