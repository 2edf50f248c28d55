"""The client's direction while strict: nothing is sent on that two servers read differently.

The rules, and why they are enough, are in guard.py.  What may not pass yet is held; nothing of an
unfinished line passes but in content.
"""

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.content import Dot
from proxyshim.smtp.dialogue import MAX_OWED, Dialogue, State
from proxyshim.smtp.lines import (
    MAX_COMMAND_OCTETS,
    has_control_octet,
    is_ordinary,
    is_plain,
    verb_of,
)
from proxyshim.smtp.verbs import (
    HIDDEN_WHILE_STRICT,
    NEVER_WHILE_STRICT,
    UNKNOWN,
    VERBS,
    Kind,
    Refusal,
    Verb,
    find_never,
)


class Rules(NamedTuple):
    """What a session's guard depends on, besides the dialogue."""

    # A check-only session: how every command but the five is refused.
    check_only: Refusal | None = None
    # While strict and with STARTTLS withheld, let AUTH pass all the same.
    allow_plaintext_auth: bool = False
    # What the backend offered to our own EHLO.
    starttls_offered: bool = False


class StrictReader:
    """Judges what the client sends, line by line."""

    __slots__ = ("_dialogue", "_rules", "_starttls_withheld")

    def __init__(self, dialogue: Dialogue, rules: Rules) -> None:
        """Begin behind the greeting."""
        self._dialogue = dialogue
        self._rules = rules
        self._starttls_withheld = rules.starttls_offered

    def read(self, data: bytes) -> None:
        """Send on what may pass of *data*; hold the rest."""
        dialogue = self._dialogue
        position = 0
        while position < len(data) and dialogue.end_reason is None:
            read_one = _READERS.get(dialogue.state)
            after = read_one(self, data, position) if read_one else position
            if after == position:
                break  # not complete, or a reply has to come first
            position = after
        if dialogue.end_reason is None:
            dialogue.held = data[position:]

    def take_offer(self, offered: Collection[bytes]) -> frozenset[bytes]:
        """Note what the backend's EHLO reply offers; return what to hide of it."""
        if offered:
            self._starttls_withheld = b"STARTTLS" in offered
        if self._auth_withheld:
            return HIDDEN_WHILE_STRICT | {b"AUTH"}
        return HIDDEN_WHILE_STRICT

    def passes(self, line: bytes, kind: Kind) -> bool:
        """Tell whether a whole *line* of a verb in ``STRICT_COMMANDS`` is sent on at once."""
        return (
            self._rules.check_only is None
            and len(line) <= MAX_COMMAND_OCTETS
            and is_ordinary(line)
            and not (self._dialogue.owed and kind in _SENT_ALONE)
        )

    # Each of these reads one thing and returns the position behind it; the position that it
    # got when it can't, now or ever.

    def _read_command(self, data: bytes, position: int) -> int:
        dialogue = self._dialogue
        line = self._take_line(data, position)
        if line is None or len(dialogue.owed) >= MAX_OWED:
            return position
        row = VERBS.get(verb_of(line), UNKNOWN)
        if row.kind in _SENT_ALONE and dialogue.owed:
            return position  # see the argument, 4
        refusal = self._refusal_of(row)
        if refusal is not None:
            dialogue.refuse(refusal)
        else:
            self._send_on(line, row)
        return position + len(line)

    def _read_answer(self, data: bytes, position: int) -> int:
        line = self._take_line(data, position)
        if line is None:
            return position
        if verb_of(line) in NEVER_WHILE_STRICT:
            self._end_at_verb(Reason.VERB_IN_AUTH)
            return position
        self._dialogue.to_backend.append(line)
        self._dialogue.owed.append(Kind.AUTH)
        self._dialogue.state = State.UNSETTLED
        return position + len(line)

    def _read_content(self, data: bytes, position: int) -> int:
        """Send content on up to the next lone dot; while unsure, screened and in whole lines."""
        dialogue = self._dialogue
        limit, too_long = len(data), False
        if dialogue.unsure:
            limit, too_long = _end_of_lines(data, position)
        end, dot = dialogue.scanner.scan(data, position, limit)
        if dialogue.unsure and (found := find_never(data, position, end)) is not None:
            dialogue.to_backend.append(data[position:found])
            self._end_at_verb(Reason.VERB_IN_CONTENT)
            return end
        if position < end:
            dialogue.to_backend.append(data[position:end])
        if dot is Dot.ODD:
            dialogue.unsure = True
        elif dot is Dot.END:
            dialogue.owed.append(Kind.CONTENT)
            dialogue.state = State.UNSETTLED
        elif too_long:
            dialogue.end(Reason.COMMAND_TOO_LONG, replies.LINE_TOO_LONG)
        return end

    def _take_line(self, data: bytes, position: int) -> bytes | None:
        """Return the line that starts there; None if it is not complete, or not fit to pass."""
        limit = position + MAX_COMMAND_OCTETS
        end = data.find(b"\n", position, limit) + 1
        if not end:
            if len(data) >= limit:
                self._dialogue.end(Reason.COMMAND_TOO_LONG, replies.LINE_TOO_LONG)
            return None
        line = data[position:end]
        if has_control_octet(line):
            row = VERBS.get(verb_of(line), UNKNOWN)
            if row.always is not None:  # say so, for it is more than a control octet
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

    @property
    def _auth_withheld(self) -> bool:
        """Tell whether a login could go through a connection that the backend misjudges.

        Where it offers STARTTLS and we withhold it, it may take *our* connection, from the
        same host, for a secure one, and let passwords pass that cross the network in clear.
        """
        return self._starttls_withheld and not self._rules.allow_plaintext_auth

    def _send_on(self, line: bytes, row: Verb) -> None:
        dialogue = self._dialogue
        dialogue.to_backend.append(line)
        dialogue.owed.append(row.kind)
        counts = row is not UNKNOWN and is_plain(line)
        if not counts:
            dialogue.unsure = True
        if row.waits or not counts:
            dialogue.state = State.UNSETTLED

    def _end_at_verb(self, reason: Reason) -> None:
        self._dialogue.refused.append(reason)
        self._dialogue.end(reason, replies.COMMAND_OUT_OF_PLACE)


def _end_of_lines(data: bytes, start: int) -> tuple[int, bool]:
    """Return where the last whole line ends, and whether a line too long follows there."""
    while len(data) - start >= MAX_COMMAND_OCTETS:
        end = data.rfind(b"\n", start, start + MAX_COMMAND_OCTETS) + 1
        if not end:
            return start, True
        start = end
    return max(start, data.rfind(b"\n", start) + 1), False


# Only when no reply is owed, so that the next one is theirs.
_SENT_ALONE: Final = (Kind.EHLO, Kind.HELO)

# By what the client's next octets are; absent: only a reply will tell, so they wait for it.
_READERS: Final[dict[State, Callable[[StrictReader, bytes, int], int]]] = {
    State.COMMAND: StrictReader._read_command,
    State.ANSWER: StrictReader._read_answer,
    State.CONTENT: StrictReader._read_content,
}
