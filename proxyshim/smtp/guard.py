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
from proxyshim.smtp.dialogue import MAX_OWED, Dialogue, Mode, State, Transaction
from proxyshim.smtp.extensions import hide, read_extensions
from proxyshim.smtp.relaxed import RelaxedReader
from proxyshim.smtp.replies import Reply, ReplyParser
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
        return self._dialogue.mode is Mode.OPAQUE

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

    def from_client(self, data: bytes) -> None:
        """Take what the client sent."""
        dialogue = self._dialogue
        if dialogue.end_reason is not None:
            return
        if dialogue.held:
            data, dialogue.held = dialogue.held + data, b""
        if dialogue.mode is Mode.STRICT:
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

    def from_backend(self, data: bytes) -> None:
        """Take what the backend sent.

        Raises BackendError when it is not made of replies.
        """
        if self.is_opaque:
            self.to_client.append(data)
            return
        self._replies.feed(data)
        # Behind our last word nothing is delivered.
        while not self.finished and (reply := self._replies.next()) is not None:
            self._read_reply(reply)
            if self._dialogue.held:
                self.from_client(b"")  # that may be what it waited for
            if self.is_opaque:
                break
        self._release_reply()

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
        if kind is Kind.EHLO and reply.code == 250:
            self._read_offer(reply)
        else:
            self.to_client.append(reply.raw)
        self._note_outcome(kind, reply)
        while dialogue.owed and isinstance(own := dialogue.owed[0], bytes):
            del dialogue.owed[0]
            dialogue.deliver_own(own)
        self._go_on(kind, reply)

    def _read_offer(self, reply: Reply) -> None:
        """Deliver the reply to the client's own EHLO, and let it decide the mode."""
        dialogue = self._dialogue
        was_relaxed = dialogue.mode is Mode.RELAXED
        offered = read_extensions(reply)
        self.extensions = frozenset(offered)
        if b"XCLIENT" in offered:
            dialogue.mode = Mode.STRICT
        elif offered and self._can_relax and not dialogue.unsure:
            dialogue.mode = Mode.RELAXED
        hidden = HIDDEN_ALWAYS
        if dialogue.mode is Mode.STRICT:
            hidden = self._strict.take_offer(offered)
        nothing = hidden.isdisjoint(offered)
        self.to_client.append(reply.raw if nothing else hide(reply, hidden))
        if was_relaxed and dialogue.mode is Mode.STRICT:
            self._take_relaxed_back()

    def _take_relaxed_back(self) -> None:
        """The right is back; what passed since the EHLO was not judged by its rules."""
        dialogue = self._dialogue
        dialogue.unsure = True
        at_command = dialogue.state is State.COMMAND and not self._relaxed.is_ahead
        if dialogue.owed or not at_command:
            dialogue.end(Reason.REPLY_OUT_OF_PLACE, replies.OUT_OF_STEP)

    def _note_outcome(self, kind: Kind, reply: Reply) -> None:
        """Follow what a reply means for the transaction."""
        dialogue = self._dialogue
        if kind is Kind.MAIL:
            dialogue.mail_accepted |= reply.positive
        elif kind in _FINAL:
            dialogue.messages_accepted += reply.positive
            dialogue.mail_accepted = False
        elif kind in _RESETTING and reply.positive:
            dialogue.mail_accepted = False

    def _go_on(self, kind: Kind, reply: Reply) -> None:
        """Go where a reply leads."""
        dialogue = self._dialogue
        if _LEADS_TO.get(reply.code, kind) is not kind:
            self._lose_step()
        elif dialogue.state is State.UNSETTLED and not dialogue.owed:
            self._settle(kind, reply)

    def _settle(self, kind: Kind, reply: Reply) -> None:
        """The reply that was waited for is here: what follows its command is known now."""
        dialogue = self._dialogue
        if reply.code == 354:
            dialogue.begin_content()
        elif reply.code == 334:
            dialogue.state = State.ANSWER
        elif kind is Kind.STARTTLS and reply.code == 220:
            self._relaxed.give_up()  # while strict, no STARTTLS is sent on
        else:
            dialogue.state = State.COMMAND
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
            self._note_outcome(Kind.CONTENT, reply)
            self._relaxed.reread()
        elif dialogue.mode is Mode.STRICT:
            own = b"" if self.backend_quitting else replies.OUT_OF_STEP
            dialogue.end(Reason.REPLY_UNASKED, own)
        elif dialogue.state is State.CONTENT and not reply.positive:
            # The server swallows the rest, up to the dot, and says no more.
            dialogue.answered_early = True
            dialogue.mail_accepted = False


_CLOSING: Final = (221, 421)
_FINAL: Final = (Kind.CONTENT, Kind.BDAT_LAST)
_RESETTING: Final = (Kind.HELO, Kind.EHLO, Kind.RSET)
# What changes what the client may send next has one command that leads to it.
_LEADS_TO: Final = {220: Kind.STARTTLS, 334: Kind.AUTH, 354: Kind.DATA}
