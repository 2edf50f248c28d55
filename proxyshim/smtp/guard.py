"""The guard: both directions of a dialogue in, verdicts out.

The backend lets *us* say who the client is.  The guard keeps the client from speaking with that
authority, in one of two modes: *strict* (strict.py) and *relaxed* (relaxed.py).

**The invariant.** While the backend may still obey an XCLIENT on this connection, no octets that
it could read as one, or as a BDAT or STARTTLS behind which we could not see one, are sent on.

**The argument.** A session begins strict and stays so until the backend proves that it judged
the client by its own address and dropped the right: its reply to the client's own EHLO is a 250
of two lines or more that offers no XCLIENT.  While strict,

1. a server executes whole lines, and lines end at LF; so we send on whole lines only, each
   checked: no control octets, a bounded length, the verb read as the most lenient server would;
2. what is not a command is content (behind 354) or an AUTH answer (behind 334).  Answers are
   checked like commands.  Content passes unchecked only while two things are certain: that the
   354 answers *our* DATA, and that the server has not ended the content before we think so;
3. the first holds while replies can be counted: a line that stands in the table, and in a form in
   which every server finds the same verb, is answered once by each of them.  The second holds
   until an odd dot (content.py) passes.  From the first other line and from the first odd dot on,
   the guard is *unsure*: it checks the lines of content too, for the rest of the session, and
   takes no reply for a proof any more;
4. the proof can't be another command's reply: an EHLO is sent on only when no reply is owed,
   nothing passes behind it until its reply is complete, and an unsure guard accepts none.

A reply that no command of the client's can have led to (220 is what an XCLIENT is answered with)
ends a strict session at once, whatever the cause.

When the right is gone the session is relaxed: there the rule is to do no harm, and the guard goes
on following for what a drain and the statistics need.

**How the two directions are coupled.** Through a ``Dialogue`` (dialogue.py): commands put into
its queue who owes a reply, replies take from it and decide what the client's next octets are.
"""

from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.content import CONTENT_END
from proxyshim.smtp.dialogue import MAX_OWED, Dialogue, Mode, State, Transaction
from proxyshim.smtp.extensions import hide, read_keywords
from proxyshim.smtp.passing import (
    COMMAND_START_OCTETS,
    RELAXED_COMMANDS,
    REPLY_CODES,
    REPLY_START_OCTETS,
    STRICT_COMMANDS,
)
from proxyshim.smtp.relaxed import RelaxedReader
from proxyshim.smtp.replies import MAX_REPLY_LINE_OCTETS, Reply, ReplyParser
from proxyshim.smtp.strict import Rules, StrictReader
from proxyshim.smtp.verbs import HIDDEN_ALWAYS, Kind

__all__ = ["MAX_HELD_OCTETS", "Guard", "Mode", "Rules", "Transaction"]

MAX_HELD_OCTETS: Final = 65_536  # of the client's; at the bound it is not read


class Guard:
    """Follows one session.

    Feed it with ``from_client`` and ``from_backend``; after each, send what it put into
    ``to_backend`` and ``to_client`` and empty them.  Stop reading the client while
    ``wants_client`` is False.  ``refused`` collects the reasons of refused commands.  When
    ``finished`` turns True everything owed has been put out: close.

    Cheaper is to offer what was received to ``pass_command`` and ``pass_reply`` first, and to
    feed only what those don't take.
    """

    __slots__ = (
        "_can_relax",
        "_client_gone",
        "_dialogue",
        "_relaxed",
        "_replies",
        "_strict",
        "backend_quitting",
        "extensions",
        "refused",
        "to_backend",
        "to_client",
    )

    def __init__(self, rules: Rules) -> None:
        """Begin strict, behind the greeting."""
        self._dialogue = Dialogue()
        self._strict = StrictReader(self._dialogue, rules)
        self._relaxed = RelaxedReader(self._dialogue)
        self._replies = ReplyParser()
        self._can_relax = rules.check_only is None
        self._client_gone = False
        self.to_backend = self._dialogue.to_backend
        self.to_client = self._dialogue.to_client
        self.refused = self._dialogue.refused
        # It said 221 or 421: its end of file is no surprise.
        self.backend_quitting = False
        self.extensions: frozenset[bytes] = frozenset()  # offered to the client's EHLO

    # What the session asks.

    @property
    def mode(self) -> Mode:
        """Tell how the session is watched."""
        return self._dialogue.mode

    @property
    def is_opaque(self) -> bool:
        """Tell whether octets pass unread from here on."""
        return self._dialogue.mode is _OPAQUE

    @property
    def transaction(self) -> Transaction:
        """Tell where the client's transaction stands."""
        return self._dialogue.transaction

    @property
    def messages_accepted(self) -> int:
        """Tell how many messages the backend took."""
        return self._dialogue.messages_accepted

    @property
    def last_code(self) -> int:
        """Tell the code of the last reply, whoever gave it; 0 when there was none."""
        return self._dialogue.last_code

    @property
    def end_reason(self) -> Reason | None:
        """Tell why the session is ended; None while it is not."""
        return self._dialogue.end_reason

    @property
    def finished(self) -> bool:
        """Tell whether an end was decided on, and all that is owed before it is out."""
        return self._dialogue.end_reason is not None and not self._dialogue.owed

    @property
    def wants_client(self) -> bool:
        """Tell whether more from the client may be fed."""
        dialogue = self._dialogue
        return (
            dialogue.end_reason is None
            and len(dialogue.owed) < MAX_OWED
            and len(dialogue.held) < MAX_HELD_OCTETS
        )

    @property
    def client_drained(self) -> bool:
        """Tell whether all has been sent on of a client that reached its end of file."""
        return self._client_gone and b"\n" not in self._dialogue.held

    @property
    def awaits_backend(self) -> bool:
        """Tell whether the backend owes a reply."""
        return bool(self._dialogue.owed)

    @property
    def can_quit(self) -> bool:
        """Tell whether the backend stands at a command, so that a QUIT means QUIT."""
        dialogue = self._dialogue
        return (
            dialogue.state is State.COMMAND
            and not self.is_opaque
            and not self._relaxed.is_ahead
            and not any(isinstance(owed, Kind) for owed in dialogue.owed)
        )

    # The client's direction.

    def pass_command(self, data: bytes) -> bool:
        """Take *data* if it is one thing of the client's that goes on as it is: see passing.py.

        True: noted, so send *data*; nothing was put out, and neither ``finished`` nor
        ``wants_client`` changed.  False: nothing was done; feed it.
        """
        dialogue = self._dialogue
        if dialogue.held or dialogue.end_reason is not None:
            return False
        mode = dialogue.mode
        if mode is _OPAQUE:
            return True
        if dialogue.state is not _COMMAND:
            return dialogue.state is _IN_CONTENT and self._pass_content(data)
        passages = RELAXED_COMMANDS if mode is _RELAXED else STRICT_COMMANDS
        passage = passages.get(data[:COMMAND_START_OCTETS].upper())
        if (
            passage is None
            or data.find(b"\n") != len(data) - 1
            or self._relaxed.line_start
            or len(dialogue.owed) >= MAX_OWED - 1  # behind the last it is not read
            or (mode is _STRICT and not self._strict.passes(data, passage[0]))
        ):
            return False
        kind, dialogue.state = passage
        dialogue.owed.append(kind)
        return True

    def _pass_content(self, data: bytes) -> bool:
        """Take content that is nothing else, up to its end at most."""
        dialogue = self._dialogue
        if dialogue.unsure or not dialogue.scanner.skim(data):
            return False
        if data.endswith(CONTENT_END):
            if dialogue.mode is _STRICT:
                dialogue.state = _UNSETTLED
                dialogue.owed.append(_CONTENT)
            else:
                dialogue.state = _COMMAND
                if not dialogue.answered_early:
                    dialogue.owed.append(_CONTENT)
        return True

    def from_client(self, data: bytes) -> None:
        """Take what the client sent."""
        dialogue = self._dialogue
        if dialogue.end_reason is not None:
            return
        if dialogue.held:
            data, dialogue.held = dialogue.held + data, b""
        if dialogue.mode is _STRICT:
            self._strict.read(data)
        else:
            self._relaxed.read(data)
            self._release_reply()

    def client_closed(self) -> None:
        """Note the client's end of file: an unfinished command is never sent on."""
        self._client_gone = True

    def end(self, reason: Reason, reply: bytes = b"") -> None:
        """End the session: read no more, deliver what is owed, then *reply*."""
        self._dialogue.end(reason, reply)

    def abandon(self, reason: Reason, reply: bytes) -> None:
        """End at once, for what is owed will not come; *reply* stands for all of it."""
        dialogue = self._dialogue
        own = [owed for owed in dialogue.owed if isinstance(owed, bytes)]
        dialogue.owed.clear()
        if dialogue.end_reason is None:
            dialogue.end(reason, reply)
        elif own:
            dialogue.deliver_own(own[-1])

    # The backend's direction.

    def pass_reply(self, data: bytes) -> bool:
        """Take *data* if it is one reply that goes on as it is: see passing.py.

        True: noted, so send *data*; nothing was put out, and neither ``finished`` nor
        ``wants_client`` changed.  False: nothing was done; feed it.
        """
        dialogue = self._dialogue
        if dialogue.mode is _OPAQUE:
            return True
        code = REPLY_CODES.get(data[:REPLY_START_OCTETS])
        owed = dialogue.owed
        if (
            code is None
            or not 0 < len(owed) < MAX_OWED
            or data.find(b"\n", 0, MAX_REPLY_LINE_OCTETS) != len(data) - 1
            or dialogue.held
            or dialogue.end_reason is not None
            or self._replies.unread
            or self._relaxed.unsettled
            or (len(owed) > 1 and isinstance(owed[1], bytes))
        ):
            return False
        kind = owed[0]
        assert isinstance(kind, Kind)
        if kind is _EHLO or (code == 354 and kind is not _DATA):
            return False
        del owed[0]
        dialogue.last_code = code
        if code in _CLOSING:
            self.backend_quitting = True
        self._note_outcome(kind, positive=code < 300)
        if not owed and dialogue.state is _UNSETTLED:
            if code == 354:
                dialogue.begin_content()
            else:
                dialogue.state = _COMMAND
        return True

    def from_backend(self, data: bytes) -> None:
        """Take what the backend sent.

        Raises BackendError when it is not made of replies.
        """
        dialogue = self._dialogue
        if dialogue.mode is _OPAQUE:
            self.to_client.append(data)
            return
        self._replies.feed(data)
        # Behind our last word nothing is delivered.
        while not self.finished and (reply := self._replies.next()) is not None:
            self._read_reply(reply)
            if dialogue.held:
                self.from_client(b"")  # that may be what it waited for
            if self.is_opaque:
                self._release_reply()
                break

    def backend_closed(self) -> None:
        """Note the backend's end of file."""
        dialogue = self._dialogue
        # Behind the client's own end it closes as a mail server does.
        took_leave = self.backend_quitting or (self._client_gone and not dialogue.owed)
        if dialogue.end_reason is not None or not (took_leave or self.is_opaque):
            self.abandon(Reason.BACKEND_CLOSED, replies.BACKEND_LOST)

    def _release_reply(self) -> None:
        """Let the start of a reply go that is none, once nothing is followed any more."""
        if self.is_opaque and (rest := self._replies.take_rest()):
            self.to_client.append(rest)

    def _read_reply(self, reply: Reply) -> None:
        dialogue = self._dialogue
        dialogue.last_code = reply.code
        if reply.code in _CLOSING:
            self.backend_quitting = True
        if not dialogue.owed:
            self._read_unasked(reply)
            return
        kind = dialogue.owed.pop(0)
        assert isinstance(kind, Kind)  # ours leave the head at once
        if kind is _EHLO and reply.code == 250:
            self._read_offer(reply)
        else:
            self.to_client.append(reply.raw)
        self._note_outcome(kind, positive=reply.positive)
        while dialogue.owed and isinstance(own := dialogue.owed[0], bytes):
            del dialogue.owed[0]
            dialogue.deliver_own(own)
        self._go_on(kind, reply)

    def _read_offer(self, reply: Reply) -> None:
        """Deliver the reply to the client's own EHLO, and let it decide the mode."""
        dialogue = self._dialogue
        was_relaxed = dialogue.mode is _RELAXED
        offered = self.extensions = read_keywords(reply)
        if b"XCLIENT" in offered:
            dialogue.mode = _STRICT
        elif offered and self._can_relax and not dialogue.unsure:
            dialogue.mode = _RELAXED
        hidden = HIDDEN_ALWAYS
        if dialogue.mode is _STRICT:
            hidden = self._strict.take_offer(offered)
        nothing = hidden.isdisjoint(offered)
        self.to_client.append(reply.raw if nothing else hide(reply, hidden))
        if was_relaxed and dialogue.mode is _STRICT:
            self._take_relaxed_back()

    def _take_relaxed_back(self) -> None:
        """The right is back; what passed since the EHLO was not judged by its rules."""
        dialogue = self._dialogue
        dialogue.unsure = True
        at_command = dialogue.state is State.COMMAND and not self._relaxed.is_ahead
        if dialogue.owed or not at_command:
            dialogue.end(Reason.REPLY_OUT_OF_PLACE, replies.OUT_OF_STEP)

    def _note_outcome(self, kind: Kind, *, positive: bool) -> None:
        """Follow what a reply means for the transaction."""
        dialogue = self._dialogue
        if kind is _MAIL:
            dialogue.mail_accepted |= positive
        elif kind is _CONTENT or kind is _BDAT_LAST:
            dialogue.messages_accepted += positive
            dialogue.mail_accepted = False
        elif positive and kind in _RESETTING:
            dialogue.mail_accepted = False

    def _go_on(self, kind: Kind, reply: Reply) -> None:
        """Go where a reply leads."""
        dialogue = self._dialogue
        if _LEADS_TO.get(reply.code, kind) is not kind:
            self._lose_step()
        elif dialogue.state is _UNSETTLED and not dialogue.owed:
            self._settle(kind, reply)

    def _settle(self, kind: Kind, reply: Reply) -> None:
        """The reply that was waited for is here: what follows its command is known now."""
        dialogue = self._dialogue
        if reply.code == 354:
            dialogue.begin_content()
        elif reply.code == 334:
            dialogue.state = State.ANSWER
        elif reply.code == 220 and kind is Kind.STARTTLS:
            self._relaxed.give_up()  # while strict, no STARTTLS is sent on
        else:
            dialogue.state = _COMMAND
        if dialogue.end_reason is None:
            self._relaxed.reread()

    def _lose_step(self) -> None:
        """The backend asks for something that no command of the client's leads to."""
        if self._dialogue.mode is Mode.STRICT:
            self._dialogue.state = State.UNSETTLED  # and stays so
            self._dialogue.end(Reason.REPLY_OUT_OF_PLACE, replies.OUT_OF_STEP)
        else:
            self._relaxed.give_up()

    def _read_unasked(self, reply: Reply) -> None:
        """Deliver a reply that answers no command as we count them."""
        dialogue = self._dialogue
        self.to_client.append(reply.raw)
        if reply.code in _LEADS_TO:
            self._lose_step()
        elif dialogue.state is State.CONTENT and dialogue.scanner.odd_dot:
            # The server took the odd dot for the end: what followed it are commands.
            dialogue.state = State.COMMAND
            self._note_outcome(Kind.CONTENT, positive=reply.positive)
            self._relaxed.reread()
        elif dialogue.mode is Mode.STRICT:
            own = b"" if self.backend_quitting else replies.OUT_OF_STEP
            dialogue.end(Reason.REPLY_UNASKED, own)
        elif dialogue.state is State.CONTENT and not reply.positive:
            # The server swallows the rest, up to the dot, and says no more.
            dialogue.answered_early = True
            dialogue.mail_accepted = False


# By names of their own, for in Python 3.11 an Enum's attributes are slow to look up.
_STRICT: Final = Mode.STRICT
_RELAXED: Final = Mode.RELAXED
_OPAQUE: Final = Mode.OPAQUE
_COMMAND: Final = State.COMMAND
_IN_CONTENT: Final = State.CONTENT
_UNSETTLED: Final = State.UNSETTLED
_EHLO: Final = Kind.EHLO
_MAIL: Final = Kind.MAIL
_DATA: Final = Kind.DATA
_CONTENT: Final = Kind.CONTENT
_BDAT_LAST: Final = Kind.BDAT_LAST

_CLOSING: Final = (221, 421)
_RESETTING: Final = (Kind.HELO, Kind.EHLO, Kind.RSET)
# What changes what the client may send next has one command that leads to it.
_LEADS_TO: Final = {220: Kind.STARTTLS, 334: Kind.AUTH, 354: Kind.DATA}
