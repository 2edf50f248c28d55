"""The client's direction while relaxed: all passes as it came, but for what is always refused.

Only the start of a line that may become a refused command is held, and what comes while
``MAX_OWED`` replies are owed.  What a reply will decide (what stands behind DATA, AUTH, STARTTLS,
or an odd dot) passes at once, and is read when the reply is there: from a copy, for its meaning
alone.  Where that is not possible the guard gives up following (``Mode.OPAQUE``).
"""

from collections.abc import Callable
from typing import Final

from proxyshim.smtp.content import Dot
from proxyshim.smtp.dialogue import MAX_OWED, Dialogue, Mode, State
from proxyshim.smtp.lines import MAX_COMMAND_OCTETS, blanks_before, verb_of
from proxyshim.smtp.verbs import (
    UNKNOWN,
    VERBS,
    Kind,
    Verb,
    may_be_refused,
    read_bdat,
)

# What passed while only a reply can say how it was read.  Who sends more than this behind a
# DATA without waiting for its reply is not followed any further.
MAX_UNSETTLED_OCTETS: Final = 262_144
# Held before what may be a refused verb.  Behind more of them none is looked for, in any split.
_MAX_BLANKS: Final = 512


class RelaxedReader:
    """Follows what the client sends, and sends it on."""

    __slots__ = ("_chunk_left", "_dialogue", "line_start", "unsettled")

    def __init__(self, dialogue: Dialogue) -> None:
        """Begin at a command."""
        self._dialogue = dialogue
        self.line_start = b""  # of a command line that passed in part; not all of it
        self.unsettled = b""  # a copy of what passed and waits for its meaning
        self._chunk_left = 0  # octets of a BDAT's payload

    @property
    def is_ahead(self) -> bool:
        """Tell whether something passed that is not a whole and understood line."""
        return bool(self.line_start or self.unsettled)

    def read(self, data: bytes, *, passed: bool = False) -> None:
        """Follow *data*, and send it on but for refused commands.

        *passed*: it went on already, and is read for its meaning alone.
        """
        dialogue = self._dialogue
        position = 0
        while (
            position < len(data)
            and dialogue.mode is Mode.RELAXED
            and dialogue.end_reason is None
        ):
            position = _READERS[dialogue.state](self, data, position, passed)
        if dialogue.mode is Mode.OPAQUE:
            self._pass_on(data, position, len(data), passed)

    def reread(self) -> None:
        """Read what passed before its meaning was known."""
        data, self.unsettled = self.unsettled, b""
        if data:
            self.read(data, passed=True)

    def give_up(self) -> None:
        """Follow the dialogue no more; only a relaxed session may be left so."""
        dialogue = self._dialogue
        dialogue.mode = Mode.OPAQUE
        self.unsettled = self.line_start = b""
        # Replies of ours have lost their place, but are owed all the same.
        for owed in dialogue.owed:
            if isinstance(owed, bytes):
                dialogue.deliver_own(owed)
        dialogue.owed.clear()

    def _pass_on(self, data: bytes, start: int, end: int, passed: bool) -> None:
        if not passed and start < end:
            self._dialogue.to_backend.append(data[start:end])

    # Each of these reads on up to a change of state, and returns how far it came.

    def _read_commands(self, data: bytes, start: int, passed: bool) -> int:
        dialogue = self._dialogue
        position = run = start  # run: where what is to be sent on starts
        while position < len(data) and self._reads_commands:
            end = data.find(b"\n", position) + 1
            if not end or len(dialogue.owed) >= MAX_OWED:
                self._pass_on(data, run, position, passed)
                rest = data[position:]
                (self._stop if end else self._begin_line)(rest, passed)
                return len(data)
            line = self.line_start + data[position:end]
            row = VERBS.get(verb_of(line), UNKNOWN)
            can_stay = not (passed or self.line_start)
            if row.always and can_stay and blanks_before(line) <= _MAX_BLANKS:
                self._pass_on(data, run, position, passed)
                run = end
                dialogue.refuse(row.always)
            else:
                self.line_start = b""
                self._owe(row, line)
            position = end
        self._pass_on(data, run, position, passed)
        return position

    @property
    def _reads_commands(self) -> bool:
        dialogue = self._dialogue
        return (
            dialogue.state is State.COMMAND
            and dialogue.mode is Mode.RELAXED
            and dialogue.end_reason is None
        )

    def _begin_line(self, start: bytes, passed: bool) -> None:
        """Take the start of a line, or more of it; its end is not here yet."""
        can_stay = not (passed or self.line_start)
        if can_stay and blanks_before(start) <= _MAX_BLANKS and may_be_refused(start):
            # The end of a line as long as that is not needed: it will be refused.
            self._dialogue.held = start[:MAX_COMMAND_OCTETS]
            return
        self._pass_on(start, 0, len(start), passed)
        self.line_start = (self.line_start + start)[:MAX_COMMAND_OCTETS]

    def _stop(self, rest: bytes, passed: bool) -> None:
        """Read no further while so many replies are owed."""
        if passed:
            self.give_up()
        else:
            self._dialogue.held = rest

    def _owe(self, row: Verb, line: bytes) -> None:
        """Note a command that goes on."""
        if row.kind is Kind.BDAT:
            self._begin_chunk(line)
            return
        self._dialogue.owed.append(row.kind)
        if row.kind in DECIDED_BY_REPLY:
            self._dialogue.state = State.UNSETTLED

    def _begin_chunk(self, line: bytes) -> None:
        chunk = read_bdat(line)
        if chunk is None:
            self.give_up()  # where its payload ends only the server knows
            return
        self._chunk_left, last = chunk
        self._dialogue.owed.append(Kind.BDAT_LAST if last else Kind.BDAT)
        if self._chunk_left:
            self._dialogue.state = State.CHUNK

    def _read_chunk(self, data: bytes, start: int, passed: bool) -> int:
        end = min(len(data), start + self._chunk_left)
        self._pass_on(data, start, end, passed)
        self._chunk_left -= end - start
        if not self._chunk_left:
            self._dialogue.state = State.COMMAND
        return end

    def _read_content(self, data: bytes, start: int, passed: bool) -> int:
        """Follow content up to its end; keep what follows an odd dot to read it again."""
        dialogue = self._dialogue
        behind_dot = start
        end, dot = dialogue.scanner.scan(data, start, len(data))
        if dot is Dot.ODD:
            behind_dot = end
            end, dot = dialogue.scanner.scan(data, end, len(data))
        self._pass_on(data, start, end, passed)
        if dot is Dot.END:
            self.unsettled = b""
            dialogue.state = State.COMMAND
            if not dialogue.answered_early:
                dialogue.owed.append(Kind.CONTENT)
        elif dialogue.scanner.odd_dot:
            self._keep(data[behind_dot:end])
        return end

    def _read_answer(self, data: bytes, start: int, passed: bool) -> int:
        """Follow the one line that answers an AUTH challenge."""
        end = data.find(b"\n", start) + 1
        self._pass_on(data, start, end or len(data), passed)
        if end:
            self._dialogue.owed.append(Kind.AUTH)
            self._dialogue.state = State.UNSETTLED
        return end or len(data)

    def _read_unsettled(self, data: bytes, start: int, passed: bool) -> int:
        self._pass_on(data, start, len(data), passed)
        self._keep(data[start:])
        return len(data)

    def _keep(self, data: bytes) -> None:
        """Keep a copy of what passed and can't be understood yet, within bounds."""
        if len(self.unsettled) + len(data) <= MAX_UNSETTLED_OCTETS:
            self.unsettled += data
        elif self._dialogue.state is State.CONTENT:
            # Surely content: no client sends so many commands behind a lone dot.
            self._dialogue.scanner.odd_dot, self.unsettled = False, b""
        else:
            self.give_up()


DECIDED_BY_REPLY: Final = (Kind.DATA, Kind.AUTH, Kind.STARTTLS)

_READERS: Final[dict[State, Callable[[RelaxedReader, bytes, int, bool], int]]] = {
    State.COMMAND: RelaxedReader._read_commands,
    State.CONTENT: RelaxedReader._read_content,
    State.ANSWER: RelaxedReader._read_answer,
    State.CHUNK: RelaxedReader._read_chunk,
    State.UNSETTLED: RelaxedReader._read_unsettled,
}
