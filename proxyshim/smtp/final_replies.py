"""The final reply: the backend's reply to a whole message, which must not be lost.

A client that does not get the 250 to its message sends the message again.  So the relay ends no
session while the backend owes such a reply, or may owe one.

It is *certain* that one is owed once the last octet of a final dot, or of the last BDAT chunk, has
reached the backend's socket.  It is *possible* after a lone dot that is not CRLF.CRLF, because only
some servers take that for the end of content; and while the client's octets are ahead of the reply
that decides what they are.  An opaque stream is judged by time alone (``session/timing.py``).
"""

import re
from enum import Enum, auto
from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp.content import CONTENT_END
from proxyshim.smtp.dialogue import FINAL_KINDS, Dialogue, Mode, State
from proxyshim.smtp.relaxed import RelaxedReader
from proxyshim.smtp.verbs import Kind

# What may end a message in octets that were not read yet: any lone dot, or a last chunk.
_MAY_END: Final = re.compile(rb"(?i)\n\.[ \t\v\f\r\0]*\n|BDAT[^\n]*LAST")


class FinalReply(Enum):
    """Whether the backend owes the reply to a message."""

    NONE = auto()
    POSSIBLE = auto()
    CERTAIN = auto()


class FinalReplies:
    """The final replies of one session: a view of its dialogue."""

    __slots__ = ("_dialogue", "_relaxed")

    def __init__(self, dialogue: Dialogue, relaxed: RelaxedReader) -> None:
        """Look at the two, which the guard owns."""
        self._dialogue = dialogue
        self._relaxed = relaxed

    @property
    def owed(self) -> FinalReply:
        """Return whether one is owed; in an opaque stream, NONE."""
        dialogue = self._dialogue
        if not (dialogue.owed or dialogue.odd_dot_end or self._relaxed.kept_copy):
            return FinalReply.NONE
        if any(kind in FINAL_KINDS for kind in dialogue.complete_owed):
            return FinalReply.CERTAIN
        ahead = self._find_end_ahead()
        if ahead is FinalReply.NONE and (
            dialogue.odd_dot_end or Kind.ODD_DOT in dialogue.owed
        ):
            return FinalReply.POSSIBLE
        return ahead

    @property
    def has_news(self) -> bool:
        """Return True if the backend has sent a final reply, or its 221 or 421."""
        return self._dialogue.milestone is not None

    @property
    def final_parts(self) -> int:
        """Return how many parts of ``to_client`` end with the last final reply; 0 without one."""
        return self._dialogue.milestone or 0

    def take_news(self) -> int:
        """Return ``final_parts``, and forget the news."""
        parts, self._dialogue.milestone = self.final_parts, None
        return parts

    @property
    def is_ahead(self) -> bool:
        """Return True if something was unanswered when the stream became opaque."""
        return self._dialogue.unanswered

    def stop_client(self, unsent: int, reason: Reason, reply: bytes) -> str | None:
        """Take nothing more from the client, and end the session after the last final reply.

        The last *unsent* octets that the guard has put out did not reach the backend, and never
        will.  Replies after the last final one are not waited for.  Return what is cut by this,
        for the log.

        The session does not end yet while octets are ahead of the reply that decides what they
        are.  Call this again after that reply, with nothing *unsent*.
        """
        dialogue = self._dialogue
        self._forget_unsent(unsent)
        dialogue.held = None
        if self._find_end_ahead() is not FinalReply.NONE:
            return None
        last = dialogue.last_certain(dialogue.forwarded)
        if dialogue.end_reason is not None and Kind.ODD_DOT in dialogue.owed:
            return None  # our own last reply is in its place already
        dropped = dialogue.owed[last:]
        del dialogue.owed[last:]
        own = [each for each in dropped if isinstance(each, bytes)]
        if dialogue.end_reason is None:
            cut = self._name_cut(dropped, is_last=last == 0)
            dialogue.end(reason, reply)
            return cut
        if own:
            dialogue.answer(own[-1])
        return None

    def _forget_unsent(self, unsent: int) -> None:
        dialogue, relaxed = self._dialogue, self._relaxed
        dialogue.forwarded -= unsent
        if unsent and relaxed.kept_copy is not None:
            relaxed.kept_copy.drop_last(unsent)
        if dialogue.odd_dot_end > dialogue.forwarded:
            dialogue.odd_dot_end = 0
            if Kind.ODD_DOT in dialogue.owed:
                dialogue.owed.remove(Kind.ODD_DOT)

    def _find_end_ahead(self) -> FinalReply:
        """Look for the end of a message in what was forwarded before it could be read."""
        copy = self._relaxed.kept_copy
        if not copy or self._dialogue.state is not State.UNDECIDED:
            return FinalReply.NONE
        kept = b"\r\n" + copy.peek()
        if Kind.DATA in self._dialogue.owed and CONTENT_END in kept:
            return FinalReply.CERTAIN
        return FinalReply.POSSIBLE if _MAY_END.search(kept) else FinalReply.NONE

    def _name_cut(self, dropped: list[Kind | bytes], *, is_last: bool) -> str | None:
        """Return which state of a transaction ends here without a reply."""
        dialogue = self._dialogue
        if dialogue.mode is Mode.OPAQUE or dialogue.odd_dot_end:
            return None
        if dialogue.state in (State.CONTENT, State.CHUNK) or any(
            kind in FINAL_KINDS for kind in dropped
        ):
            return "content"
        if Kind.MAIL in dropped or (is_last and dialogue.mail_accepted):
            return "envelope"
        return None
