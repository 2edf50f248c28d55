"""The backend's direction: which mode its EHLO reply decides, and where each reply leads.

This is the only module that makes a session relaxed, or strict again.  guard.py explains why the
reply to an EHLO may decide that.
"""

from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.dialogue import Dialogue, Mode, State
from proxyshim.smtp.extensions import hide, read_keywords
from proxyshim.smtp.hang_up import read_farewell
from proxyshim.smtp.own_tls import KEYWORD
from proxyshim.smtp.proving import HEADER_NOT_UNDERSTOOD, end_unproven
from proxyshim.smtp.relaxed import RelaxedReader
from proxyshim.smtp.replies import Reply, ReplyParser
from proxyshim.smtp.strict import StrictReader
from proxyshim.smtp.verbs import HIDDEN_ALWAYS, Kind


class BackendReader:
    """Reads the backend's replies, delivers them, and updates the dialogue."""

    __slots__ = (
        "_dialogue",
        "_relaxed",
        "_strict",
        "extensions",
        "parser",
    )

    def __init__(
        self,
        dialogue: Dialogue,
        strict: StrictReader,
        relaxed: RelaxedReader,
    ) -> None:
        """Begin after the greeting."""
        self._dialogue = dialogue
        self._strict = strict
        self._relaxed = relaxed
        self.parser = ReplyParser()
        self.extensions: frozenset[bytes] = frozenset()  # offered to the client's EHLO

    def read_next(self) -> bool:
        """Read one reply of those that ``parser`` was fed.  Return False if none is complete.

        Raises BackendError if the bytes are not a reply.
        """
        reply = self.parser.next()
        if reply is None:
            return False
        self._read(reply)
        return True

    def release_unfinished(self) -> None:
        """Deliver the start of an unfinished reply, because nothing is parsed any more.

        Call it once the session is opaque: what looked like the start of a reply may be
        anything, TLS for example.
        """
        if rest := self.parser.take_rest():
            self._dialogue.to_client.append(rest)

    def decide_state(self, kind: Kind, code: int) -> None:
        """Decide what the client's next bytes are, now that the awaited reply is here."""
        dialogue = self._dialogue
        if dialogue.end_reason is Reason.REPLY_OUT_OF_PLACE:
            return  # we have lost track of what the backend reads
        if code == 354:
            dialogue.begin_content()
        elif code == 334:
            dialogue.state = State.ANSWER
        elif code == 220 and kind is Kind.STARTTLS:
            self._lose_track()  # a strict session never forwards STARTTLS
        else:
            dialogue.state = _COMMAND
        if dialogue.end_reason is None:
            self._relaxed.read_kept_copy()

    def _read(self, reply: Reply) -> None:
        dialogue = self._dialogue
        if dialogue.hesitates:
            dialogue.deliver_first()  # the backend has not hung up
        if not dialogue.owed:
            self._read_unsolicited(reply)
            return
        kind = dialogue.owed.pop(0)
        assert isinstance(kind, Kind)  # our own are delivered as soon as they are first
        if dialogue.mode is _UNPROVEN and not self._accept_proof(kind, reply):
            return
        dialogue.note_reply(kind, reply.code)
        if dialogue.tls is not None and reply.positive and kind in _GREETS:
            dialogue.tls.note_greeted()
        if reply.code == 421:
            dialogue.farewell = read_farewell(reply, client_has_spoken=True)
        if dialogue.mode is _STRICT and (kind is Kind.UNKNOWN or dialogue.in_doubt):
            dialogue.weigh(kind, reply.code)
        if kind is Kind.OWN_EHLO or kind is Kind.OWN_NOOP:
            self._read_reply_to_us(kind, reply)
        elif kind is _EHLO and reply.code == 250:
            self._read_offer(reply)
        else:
            dialogue.to_client.append(reply.raw)
        if dialogue.owed and isinstance(dialogue.owed[0], bytes):
            dialogue.hesitates = reply.code >= 500
            if not dialogue.hesitates:
                dialogue.deliver_first()
        if _ONLY_AFTER.get(reply.code, kind) is not kind:
            self._lose_track()
        elif dialogue.state is _UNDECIDED and all(
            isinstance(owed, bytes) for owed in dialogue.owed
        ):
            self.decide_state(kind, reply.code)

    def _accept_proof(self, kind: Kind, reply: Reply) -> bool:
        """Return True unless the first reply shows that the backend did not take our header."""
        dialogue = self._dialogue
        if (
            reply.code in HEADER_NOT_UNDERSTOOD
            or reply.code in _ONLY_AFTER
            or (kind is Kind.OWN_NOOP and not reply.positive and reply.code != 421)
        ):
            end_unproven(dialogue)
            return False
        if reply.positive:
            dialogue.mode = self._strict.first_mode
        return True

    def _read_offer(self, reply: Reply) -> None:
        """Deliver the reply to the client's own EHLO, and let it decide the mode."""
        dialogue = self._dialogue
        was_relaxed = dialogue.mode is _RELAXED
        offered = self._decide_mode(reply)
        hidden = HIDDEN_ALWAYS
        if dialogue.mode is _STRICT:
            hidden = self._strict.hidden_keywords
        elif self._strict.follows_only:
            hidden = frozenset()
        added = b""
        if dialogue.tls is not None:
            hidden |= dialogue.tls.hidden_keywords
            added = KEYWORD if dialogue.tls.offers else b""
        unchanged = not added and hidden.isdisjoint(offered)
        shown = reply.raw if unchanged else hide(reply, hidden, added)
        dialogue.to_client.append(shown)
        if was_relaxed and dialogue.mode is _STRICT:
            self._return_to_strict()

    def _read_reply_to_us(self, kind: Kind, reply: Reply) -> None:
        """Let the reply to an EHLO in the client's name decide the mode, and do not deliver it.

        If the backend ends the connection with it, the client gets it for its own command.
        """
        if reply.code == 250 and kind is Kind.OWN_EHLO:
            self._decide_mode(reply)
        elif reply.code == 421:
            self._dialogue.to_client.append(reply.raw)
            self._dialogue.held = None

    def _decide_mode(self, reply: Reply) -> frozenset[bytes]:
        """Decide the mode by a 250 to an EHLO; return what it offers."""
        dialogue = self._dialogue
        offered = self.extensions = read_keywords(reply)
        if self._strict.follows_only:
            return offered
        if not _RIGHTS.isdisjoint(offered):
            dialogue.mode = _STRICT
        elif offered and not dialogue.unsure and not self._strict.is_check_only:
            dialogue.mode = _RELAXED
        if dialogue.mode is _STRICT:
            self._strict.note_offer(offered)
        return offered

    def _return_to_strict(self) -> None:
        """End the session if anything that strict rules did not check may still be executed.

        A backend that dropped the right has granted it again, and whatever we forwarded since
        the EHLO was forwarded by the relaxed rules.
        """
        dialogue = self._dialogue
        dialogue.note_odd_dot()  # one may have passed
        at_command = dialogue.state is _COMMAND and not self._relaxed.is_ahead
        if dialogue.owed or not at_command:
            dialogue.end(Reason.REPLY_OUT_OF_PLACE, replies.OUT_OF_STEP)

    def _lose_track(self) -> None:
        """Handle a reply after which we do not know what the backend reads."""
        dialogue = self._dialogue
        if dialogue.mode is _STRICT:
            # From here on we do not know what the backend reads, so the state never changes.
            dialogue.state = _UNDECIDED
            dialogue.odd_dot_end = 0
            dialogue.end(Reason.REPLY_OUT_OF_PLACE, replies.OUT_OF_STEP)
        else:
            self._relaxed.stop_tracking()

    def _read_unsolicited(self, reply: Reply) -> None:
        """Deliver a reply that, by our count, answers no command."""
        dialogue = self._dialogue
        if dialogue.mode is _UNPROVEN and reply.code != 421:
            end_unproven(dialogue)
            return
        if reply.code == 421:
            has_spoken = dialogue.last_code != 0 or dialogue.held is not None
            dialogue.farewell = read_farewell(reply, client_has_spoken=has_spoken)
        dialogue.note_reply(None, reply.code)
        dialogue.to_client.append(reply.raw)
        if reply.code in _ONLY_AFTER:
            self._lose_track()
        elif dialogue.state is State.CONTENT and dialogue.scanner.odd_dot:
            # The server took the odd dot for the end, so what followed it are commands.
            dialogue.state = _COMMAND
            dialogue.note_reply(Kind.CONTENT, reply.code)
            dialogue.milestone = len(dialogue.to_client)
            self._relaxed.read_kept_copy()
        elif dialogue.mode is _STRICT and dialogue.farewell is not None:
            dialogue.end(dialogue.farewell.reason)
        elif dialogue.mode is _STRICT and reply.code >= 500 and not dialogue.unsure:
            dialogue.end(Reason.CLIENT_REFUSED)  # it is about to hang up
        elif dialogue.mode is _STRICT:
            # A failure that nobody asked for is how a server takes its leave.
            own = replies.OUT_OF_STEP if reply.code < 400 else b""
            dialogue.end(Reason.REPLY_UNASKED, own)
        elif dialogue.state is State.CONTENT and reply.positive:
            dialogue.odd_dot_end = 0
        elif dialogue.state is State.CONTENT:
            # The server discards the rest up to the final dot, and does not reply again.
            dialogue.answered_early = True
            dialogue.mail_accepted = False


# Each of these codes changes how the backend reads what follows, and has one command that it
# can answer.
_ONLY_AFTER: Final = {220: Kind.STARTTLS, 334: Kind.AUTH, 354: Kind.DATA}

_GREETS: Final = (Kind.EHLO, Kind.HELO)

# Rights of our own address, which the client must not use.  XFORWARD forges the client in the
# backend's log and in what its filters see.
_RIGHTS: Final = frozenset({b"XCLIENT", b"XFORWARD"})

# Global names, because attributes of an Enum are slow to look up in Python 3.11.
_UNPROVEN: Final = Mode.UNPROVEN
_STRICT: Final = Mode.STRICT
_RELAXED: Final = Mode.RELAXED
_COMMAND: Final = State.COMMAND
_UNDECIDED: Final = State.UNDECIDED
_EHLO: Final = Kind.EHLO
