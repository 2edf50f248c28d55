"""The client's direction while strict: we forward nothing that two servers could read differently.

The rules, and why they suffice, are in guard.py.  What may not pass yet is held.  Outside content,
no part of an unfinished line passes.
"""

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.content import Dot
from proxyshim.smtp.dialogue import MAX_OWED, Dialogue, Mode, State
from proxyshim.smtp.lines import (
    MAX_COMMAND_OCTETS,
    has_control_octet,
    is_dot,
    is_ordinary,
    is_plain,
    is_word,
    verb_of,
)
from proxyshim.smtp.own_tls import OwnTls
from proxyshim.smtp.verbs import (
    FORBIDDEN_WHILE_STRICT,
    HIDDEN_WHILE_STRICT,
    REFUSED_ALWAYS,
    REFUSED_HEADERS,
    UNKNOWN,
    VERBS,
    Kind,
    Refusal,
    Verb,
    find_forbidden,
)
from proxyshim.smtp.waiting import Waiting


class Rules(NamedTuple):
    """What the guard of a session needs to know in advance."""

    # In a check-only session: how we refuse all but the five permitted commands.
    check_only: Refusal | None = None
    # Let AUTH pass while strict, even though STARTTLS is withheld.
    allow_plaintext_auth: bool = False
    # The backend offered STARTTLS to our own EHLO.
    starttls_offered: bool = False
    # The client's address literal (RFC 5321, 4.1.3), for a client that gives no name.
    client_literal: bytes = b""
    # The backend judges the client by the client's own address, so we have no right that the
    # client could use: the guard only follows the session.  A check-only session is strict anyway.
    follows_only: bool = False
    # The backend has not shown yet that it took our PROXY header (proving.py).
    unproven: bool = False
    # We end the client's TLS.
    tls: OwnTls | None = None

    @property
    def refused_verbs(self) -> frozenset[bytes]:
        """The verbs that do not pass even in a relaxed session."""
        return REFUSED_HEADERS if self.follows_only else REFUSED_ALWAYS

    @property
    def first_mode(self) -> Mode:
        """The mode in which the session begins, once the backend has proven what it has to."""
        if self.follows_only and self.check_only is None:
            return Mode.RELAXED
        return Mode.STRICT


class StrictReader:
    """Checks what the client sends, line by line."""

    __slots__ = ("_client_name", "_dialogue", "_rules", "_starttls_withheld")

    def __init__(self, dialogue: Dialogue, rules: Rules) -> None:
        """Begin after the greeting."""
        self._dialogue = dialogue
        self._rules = rules
        self._starttls_withheld = rules.starttls_offered
        # What an EHLO in the client's name would say; empty once an offer is known.
        self._client_name = rules.client_literal

    def read(self, data: bytes, position: int) -> None:
        """Forward what may pass of data[position:], and hold the rest."""
        dialogue = self._dialogue
        while position < len(data) and dialogue.end_reason is None:
            read_one = _READERS.get(dialogue.state)
            after = read_one(self, data, position) if read_one else position
            if after == position:
                break  # a line is incomplete, or a reply has to come first
            position = after
        if position < len(data) and dialogue.end_reason is None:
            for_reply = dialogue.state is State.UNDECIDED or (
                dialogue.state is State.COMMAND and data.find(b"\n", position) >= 0
            )
            dialogue.held = Waiting(data, position, for_reply=for_reply)

    @property
    def is_check_only(self) -> bool:
        """Return True if the session is check-only, and so never becomes relaxed."""
        return self._rules.check_only is not None

    @property
    def follows_only(self) -> bool:
        """Return True if there is no right of ours to protect."""
        return self._rules.follows_only

    @property
    def first_mode(self) -> Mode:
        """The mode of the session once the backend has taken our PROXY header."""
        return self._rules.first_mode

    def note_offer(self, offered: Collection[bytes]) -> None:
        """Record what the backend's reply to an EHLO offers."""
        self._client_name = b""
        if offered:
            self._starttls_withheld = b"STARTTLS" in offered

    @property
    def hidden_keywords(self) -> frozenset[bytes]:
        """Return what to hide from the client in the reply to its EHLO."""
        if self._auth_withheld:
            return HIDDEN_WHILE_STRICT | {b"AUTH"}
        return HIDDEN_WHILE_STRICT

    def may_forward(self, line: bytes, kind: Kind) -> bool:
        """Return True if ``read`` would forward a whole *line* of a verb in STRICT_COMMANDS."""
        return (
            self._rules.check_only is None
            and len(line) <= MAX_COMMAND_OCTETS
            and is_ordinary(line)
            and not self._dialogue.in_doubt
            and not (self._dialogue.owed and kind in _SENT_ALONE)
        )

    # Each of these reads one item at *position* and returns the position after it.  If it cannot
    # read it, now or ever, it returns *position* itself.

    def _read_command(self, data: bytes, position: int) -> int:
        dialogue = self._dialogue
        line = self._take_line(data, position)
        if line is None or len(dialogue.owed) >= MAX_OWED:
            return position
        row = VERBS.get(verb_of(line), UNKNOWN)
        if row.kind in _SENT_ALONE and dialogue.owed:
            return position  # see the argument in guard.py, step 4
        if dialogue.tls is not None and dialogue.tls.catches(row):
            return self._read_caught(dialogue.tls, row, data, position, line)
        refusal = self._refusal_of(row)
        if refusal is not None and refusal is row.strict and self._may_ask(row):
            if not dialogue.owed:
                self._ask_for_offer()
            return position
        if refusal is not None:
            dialogue.refuse(refusal)
        else:
            self._forward(line, row)
        return position + len(line)

    def _read_caught(
        self, tls: OwnTls, row: Verb, data: bytes, position: int, line: bytes
    ) -> int:
        """Read a command that is about our TLS."""
        dialogue = self._dialogue
        refusal = self._rules.check_only or tls.refusal_of(row, line)
        end = position + len(line)
        if refusal is not None:
            dialogue.refuse(refusal)
        elif dialogue.owed:
            return position  # our reply is the last one in the clear
        else:
            dialogue.want_tls(is_last=end == len(data))
        return end

    def _read_answer(self, data: bytes, position: int) -> int:
        line = self._take_line(data, position)
        if line is None:
            return position
        if verb_of(line) in FORBIDDEN_WHILE_STRICT:
            self._end_at_verb(Reason.VERB_IN_AUTH)
            return position
        self._note_dot(line)
        self._dialogue.forward(line)
        self._dialogue.owed.append(Kind.AUTH)
        self._dialogue.state = State.UNDECIDED
        return position + len(line)

    def _read_content(self, data: bytes, position: int) -> int:
        """Forward content up to the next lone dot; where we screen it, checked lines only."""
        dialogue = self._dialogue
        limit, too_long = len(data), False
        if dialogue.screening:
            limit, too_long = _end_of_lines(data, position)
        end, dot = dialogue.scanner.scan(data, position, limit)
        if (
            dialogue.screening
            and (found := find_forbidden(data, position, end)) is not None
        ):
            dialogue.forward(data[position:found])
            self._end_at_verb(Reason.VERB_IN_CONTENT)
            return end
        if position < end:
            dialogue.forward(data[position:end])
        if dot is Dot.ODD:
            dialogue.note_odd_dot()
            dialogue.odd_dot_end = dialogue.forwarded
        elif dot is Dot.END:
            dialogue.end_content()
        elif too_long:
            dialogue.end(Reason.COMMAND_TOO_LONG, replies.LINE_TOO_LONG)
        return end

    def _take_line(self, data: bytes, position: int) -> bytes | None:
        """Return the line at *position*, or None if it is incomplete or must not pass."""
        limit = position + MAX_COMMAND_OCTETS
        end = data.find(b"\n", position, limit) + 1
        if not end:
            if len(data) >= limit:
                self._dialogue.end(Reason.COMMAND_TOO_LONG, replies.LINE_TOO_LONG)
            return None
        line = data[position:end]
        if has_control_octet(line):
            row = VERBS.get(verb_of(line), UNKNOWN)
            if (
                row.always is not None
            ):  # log this too, because it is worse than a control octet
                self._dialogue.refused.append(row.always.reason)
            self._dialogue.end(Reason.CONTROL_OCTET, replies.CONTROL_OCTET)
            return None
        return line

    def _refusal_of(self, row: Verb) -> Refusal | None:
        if row.always is not None:
            return row.always
        if self._rules.check_only is not None and not row.in_check:
            return self._rules.check_only
        if row.kind is Kind.AUTH and not self._auth_withheld:
            return None
        return row.strict

    def _may_ask(self, row: Verb) -> bool:
        """Return True if our own EHLO may show that the command need not be refused.

        A client that says HELO, or nothing, never gets the reply that proves that the right is
        gone.  So we ask once, in its name, before its first STARTTLS or AUTH, and never in a
        transaction, which an EHLO would reset.
        """
        dialogue = self._dialogue
        return (
            self._client_name != b""
            and not self._rules.follows_only
            and row.kind in _SHOWN_BY_AN_OFFER
            and self._rules.check_only is None
            and not (dialogue.unsure or dialogue.mail_accepted)
            and Kind.MAIL not in dialogue.owed
        )

    def _ask_for_offer(self) -> None:
        dialogue = self._dialogue
        dialogue.forward(b"EHLO %b\r\n" % self._client_name)
        dialogue.owed.append(Kind.OWN_EHLO)
        dialogue.state = State.UNDECIDED
        self._client_name = b""

    @property
    def _auth_withheld(self) -> bool:
        """Return True if a login could expose a password that the backend means to protect.

        A backend that offers STARTTLS may still permit a login without it on a connection that
        it takes for a safe one.  It may take *our* connection for one, because we run on the
        same host, although the client's password has crossed the network in clear text.  Where we
        end the client's TLS, that decides (own_tls.py).
        """
        if self._dialogue.tls is not None:
            return self._dialogue.tls.withholds_auth
        return self._starttls_withheld and not self._rules.allow_plaintext_auth

    def _forward(self, line: bytes, row: Verb) -> None:
        dialogue = self._dialogue
        self._note_dot(line)
        # The reply to an unknown verb shows whether it gets just one (guard.py, step 4).
        is_certain = (
            is_word(line) and not dialogue.owed if row is UNKNOWN else is_plain(line)
        )
        if not is_certain:
            dialogue.lose_count()
        dialogue.forward(line)
        dialogue.owed.append(row.kind)
        if dialogue.tls is not None:
            dialogue.tls.note_forwarded(row)
        if row.kind is Kind.HELO and self._client_name:
            self._client_name = line[len(b"HELO") :].strip() or self._client_name
        if row.waits or dialogue.in_doubt or not is_certain:
            dialogue.state = State.UNDECIDED

    def _note_dot(self, line: bytes) -> None:
        """Note a line that ends content, if the backend is in content where we see commands."""
        if self._dialogue.unsure and is_dot(line):
            self._dialogue.note_odd_dot()

    def _end_at_verb(self, reason: Reason) -> None:
        self._dialogue.refused.append(reason)
        self._dialogue.end(reason, replies.COMMAND_OUT_OF_PLACE)


def _end_of_lines(data: bytes, start: int) -> tuple[int, bool]:
    """Return where the last whole line ends, and whether a line that is too long follows."""
    while len(data) - start >= MAX_COMMAND_OCTETS:
        end = data.rfind(b"\n", start, start + MAX_COMMAND_OCTETS) + 1
        if not end:
            return start, True
        start = end
    return max(start, data.rfind(b"\n", start) + 1), False


# Forwarded only when no reply is owed, so that the next reply is certainly theirs.
# The verbs that a relaxed session would forward.
_SHOWN_BY_AN_OFFER: Final = (Kind.STARTTLS, Kind.AUTH)
_SENT_ALONE: Final = (Kind.EHLO, Kind.HELO)

# In a state without a reader the client's bytes wait for the reply that decides what they are.
_READERS: Final[dict[State, Callable[[StrictReader, bytes, int], int]]] = {
    State.COMMAND: StrictReader._read_command,
    State.ANSWER: StrictReader._read_answer,
    State.CONTENT: StrictReader._read_content,
}
