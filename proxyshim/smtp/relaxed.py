"""The client's direction while relaxed: everything passes unchanged, except what is always refused.

We hold back only the start of a line that may become a refused command, and whatever arrives while
``MAX_OWED`` replies are owed.  Where only a reply can decide what the client's bytes are (after
DATA, AUTH, STARTTLS or an odd dot), we forward them at once and keep a copy.  When the reply
arrives, we read the copy to learn what the client's state is.  If that is not possible, we stop
tracking the session (``Mode.OPAQUE``).
"""

from collections.abc import Callable
from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.content import Dot
from proxyshim.smtp.dialogue import MAX_OWED, Dialogue, Mode, State
from proxyshim.smtp.lines import MAX_COMMAND_OCTETS, count_leading_blanks, verb_of
from proxyshim.smtp.verbs import (
    REFUSED_ALWAYS,
    UNKNOWN,
    VERBS,
    Kind,
    Verb,
    may_become_refused,
    read_bdat,
)
from proxyshim.smtp.waiting import Waiting

# If a client sends more than this after DATA without waiting for the reply, we stop tracking the
# session.
MAX_KEPT_OCTETS: Final = 262_144
# How often we may begin again to read one copy, because a reply decides only what its next part
# is.  A client that pipelines beyond so many replies is not tracked either.
_MAX_REREADS: Final = 100
# Blanks that we hold because a refused verb may follow them.  After more blanks than this we do
# not look for a verb, however the line was split into packets.
_MAX_BLANKS: Final = 512


class RelaxedReader:
    """Forwards what the client sends, and follows it."""

    __slots__ = (
        "_chunk_left",
        "_dialogue",
        "_refused",
        "_rereads",
        "kept_copy",
        "line_start",
    )

    def __init__(
        self, dialogue: Dialogue, refused: frozenset[bytes] = REFUSED_ALWAYS
    ) -> None:
        """Begin at a command; commands with a *refused* verb do not pass."""
        self._dialogue = dialogue
        self._refused = refused
        # The start of a command line that was forwarded in part; shortened if it is long.
        self.line_start = b""
        # A copy of what was forwarded before a reply could decide what it is.
        self.kept_copy: Waiting | None = None
        self._rereads = 0  # of this copy
        self._chunk_left = 0  # octets of a BDAT's payload that are still to come

    @property
    def is_ahead(self) -> bool:
        """Return True if bytes were forwarded that we have not read as whole commands yet."""
        return bool(self.line_start) or self.kept_copy is not None

    def read(self, data: bytes, position: int, *, forwarded: bool = False) -> None:
        """Follow data[position:], and forward all of it except refused commands.

        If it was *forwarded* already, we read it only to follow the dialogue.
        """
        dialogue = self._dialogue
        while (
            position < len(data)
            and dialogue.mode is Mode.RELAXED
            and dialogue.end_reason is None
        ):
            position = _READERS[dialogue.state](self, data, position, forwarded)
        if dialogue.mode is Mode.OPAQUE and not forwarded and position < len(data):
            dialogue.to_backend.append(data[position:])  # not counted any more

    def read_kept_copy(self) -> None:
        """Read what was forwarded before we could know what it is."""
        copy, self.kept_copy = self.kept_copy, None
        if copy is None:
            return
        self._rereads += 1
        if self._rereads > _MAX_REREADS:
            self.stop_tracking()
            return
        data, position = copy.take()
        dialogue = self._dialogue
        counted = dialogue.forwarded
        dialogue.forwarded -= (
            len(data) - position
        )  # so that ends are found where they are
        self.read(data, position, forwarded=True)
        dialogue.forwarded = counted
        if self.kept_copy is None:
            self._rereads = 0

    def stop_tracking(self) -> None:
        """Make the session opaque, which is safe only because it is relaxed.

        Before our own TLS it ends instead, because the backend's must not begin in its place.
        """
        dialogue = self._dialogue
        if dialogue.tls is not None and not dialogue.tls.is_inside:
            self.kept_copy, self.line_start = None, b""
            dialogue.state = State.UNDECIDED  # for good: a QUIT of ours may be content
            dialogue.end(Reason.REPLY_OUT_OF_PLACE, replies.OUT_OF_STEP)
            return
        dialogue.mode = Mode.OPAQUE
        dialogue.odd_dot_end = 0
        dialogue.unanswered = self.is_ahead or any(
            isinstance(owed, Kind) for owed in dialogue.owed
        )
        self.kept_copy, self.line_start = None, b""
        # Our own replies have lost their place in the queue, except those that are first.
        dialogue.deliver_first()
        dialogue.owed.clear()

    def _forward(self, data: bytes, start: int, end: int, forwarded: bool) -> None:
        self._dialogue.forwarded += end - start
        if not forwarded and start < end:
            self._dialogue.to_backend.append(data[start:end])

    # Each of these reads until the state changes, or to the end, and returns how far it read.

    def _read_commands(self, data: bytes, start: int, forwarded: bool) -> int:
        dialogue = self._dialogue
        position = unsent = start
        while position < len(data) and self._reads_commands:
            end = data.find(b"\n", position) + 1
            if not end or len(dialogue.owed) >= MAX_OWED:
                self._forward(data, unsent, position, forwarded)
                if end:
                    self._pause(data, position, forwarded)
                else:
                    self._begin_line(data[position:], forwarded)
                return len(data)
            line = self.line_start + data[position:end]
            verb = verb_of(line)
            row = VERBS.get(verb, UNKNOWN)
            if verb in self._caught_verbs and self._can_hold(line, forwarded):
                self._forward(data, unsent, position, forwarded)
                unsent = end
                if not self._act_on_caught(row, line, is_last=end == len(data)):
                    self._pause(data, position, forwarded)
                    return len(data)
            else:
                self.line_start = b""
                if row.kind is Kind.BDAT:  # the message may end here
                    self._forward(data, unsent, end, forwarded)
                    unsent = end
                self._note_command(row, line)
            position = end
        self._forward(data, unsent, position, forwarded)
        return position

    @property
    def _reads_commands(self) -> bool:
        dialogue = self._dialogue
        return (
            dialogue.state is State.COMMAND
            and dialogue.mode is Mode.RELAXED
            and dialogue.end_reason is None
            and not (dialogue.tls is not None and dialogue.tls.is_wanted)
        )

    @property
    def _caught_verbs(self) -> frozenset[bytes]:
        tls = self._dialogue.tls
        return self._refused if tls is None else self._refused | tls.caught_verbs

    def _act_on_caught(self, row: Verb, line: bytes, *, is_last: bool) -> bool:
        """Refuse a command, or act on STARTTLS; return False if that has to wait for replies."""
        dialogue, refusal = self._dialogue, row.always
        if refusal is None:
            assert dialogue.tls is not None
            refusal = dialogue.tls.refusal_of(row, line)
        if refusal is not None:
            dialogue.refuse(refusal)
        elif dialogue.owed:
            return False  # our reply is the last one in the clear
        else:
            dialogue.want_tls(is_last=is_last)
        return True

    def _can_hold(self, line: bytes, forwarded: bool) -> bool:
        """Return True if no part of *line* has passed, so that we may hold or refuse it."""
        is_unsent = not (forwarded or self.line_start)
        return is_unsent and count_leading_blanks(line) <= _MAX_BLANKS

    def _begin_line(self, start: bytes, forwarded: bool) -> None:
        """Read the start of a line, or more of it; its end has not arrived yet."""
        if self._can_hold(start, forwarded) and may_become_refused(
            start, self._caught_verbs
        ):
            # We need no more of a longer line, because we are going to refuse it.
            self._dialogue.held = Waiting(
                start[:MAX_COMMAND_OCTETS], 0, for_reply=False
            )
            return
        self._forward(start, 0, len(start), forwarded)
        if len(self.line_start) < MAX_COMMAND_OCTETS:
            self.line_start = (self.line_start + start)[:MAX_COMMAND_OCTETS]

    def _pause(self, data: bytes, position: int, forwarded: bool) -> None:
        """Read no further while so many replies are owed."""
        if forwarded:
            self.stop_tracking()
        else:
            self._dialogue.held = Waiting(data, position, for_reply=True)

    def _note_command(self, row: Verb, line: bytes) -> None:
        """Record a command that is forwarded."""
        if self._dialogue.tls is not None:
            self._dialogue.tls.note_forwarded(row)
        if row.kind is Kind.BDAT:
            self._begin_chunk(line)
            return
        self._dialogue.owed.append(row.kind)
        if row.kind in DECIDED_BY_REPLY:
            self._dialogue.state = State.UNDECIDED

    def _begin_chunk(self, line: bytes) -> None:
        chunk = read_bdat(line)
        if chunk is None:
            self.stop_tracking()  # only the server knows where the payload ends
            return
        self._chunk_left, last = chunk
        self._dialogue.owed.append(Kind.BDAT_LAST if last else Kind.BDAT)
        if self._chunk_left:
            self._dialogue.state = State.CHUNK
        elif last:
            self._dialogue.note_message_end()

    def _read_chunk(self, data: bytes, start: int, forwarded: bool) -> int:
        end = min(len(data), start + self._chunk_left)
        self._forward(data, start, end, forwarded)
        self._chunk_left -= end - start
        if not self._chunk_left:
            self._dialogue.state = State.COMMAND
            if self._dialogue.owed[-1:] == [Kind.BDAT_LAST]:
                self._dialogue.note_message_end()
        return end

    def _read_content(self, data: bytes, start: int, forwarded: bool) -> int:
        """Follow content to its end, and keep a copy of what follows an odd dot."""
        dialogue = self._dialogue
        after_odd_dot = start
        end, dot = dialogue.scanner.scan(data, start, len(data))
        if dot is Dot.ODD:
            after_odd_dot = end
            dialogue.odd_dot_end = (
                dialogue.odd_dot_end or dialogue.forwarded + end - start
            )
            end, dot = dialogue.scanner.scan(data, end, len(data))
        self._forward(data, start, end, forwarded)
        if dot is Dot.END:
            self.kept_copy = None
            dialogue.end_content()
        elif dialogue.scanner.odd_dot:
            self._keep(data, after_odd_dot)
        return end

    def _read_answer(self, data: bytes, start: int, forwarded: bool) -> int:
        """Follow the one line that answers an AUTH challenge."""
        end = data.find(b"\n", start) + 1
        self._forward(data, start, end or len(data), forwarded)
        if end:
            self._dialogue.owed.append(Kind.AUTH)
            self._dialogue.state = State.UNDECIDED
        return end or len(data)

    def _read_undecided(self, data: bytes, start: int, forwarded: bool) -> int:
        self._forward(data, start, len(data), forwarded)
        self._keep(data, start)
        return len(data)

    def _keep(self, data: bytes, start: int) -> None:
        """Keep a copy of what was forwarded and cannot be read yet, within bounds."""
        copy = self.kept_copy
        if len(data) - start + (0 if copy is None else len(copy)) <= MAX_KEPT_OCTETS:
            if copy is None:
                self.kept_copy = Waiting(data, start, for_reply=True)
            else:
                copy.add(data[start:])
        elif self._dialogue.state is State.CONTENT:
            # It must be content, because no client sends so many commands after a lone dot.
            self._dialogue.scanner.odd_dot, self.kept_copy = False, None
        else:
            self.stop_tracking()


DECIDED_BY_REPLY: Final = (Kind.DATA, Kind.AUTH, Kind.STARTTLS)

_READERS: Final[dict[State, Callable[[RelaxedReader, bytes, int, bool], int]]] = {
    State.COMMAND: RelaxedReader._read_commands,
    State.CONTENT: RelaxedReader._read_content,
    State.ANSWER: RelaxedReader._read_answer,
    State.CHUNK: RelaxedReader._read_chunk,
    State.UNDECIDED: RelaxedReader._read_undecided,
}
