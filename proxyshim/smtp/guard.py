"""The guard: it follows both directions of a session and decides what may pass.

The backend trusts proxyshim to say who the client is, by an XCLIENT command on the client's own
connection.  The guard keeps the client from ever using this trust itself.

**The invariant.**  As long as the backend may obey an XCLIENT on this connection, we never
forward bytes that it could execute as one.  Nor do we forward bytes that it could execute as BDAT
or STARTTLS, because an XCLIENT could hide from us in the payload or inside TLS.  The same rules
stop XFORWARD and PROXY.

**When the danger is over.**  Every session begins *strict*.  It becomes *relaxed* when the backend
proves that it has dropped our right to XCLIENT, because it now judges the client by the client's
own address.  The proof is its reply to the client's own EHLO: a 250 that offers at least one
extension, but neither XCLIENT nor XFORWARD.  This relies on one property of the backend: if it
would obey an XCLIENT or XFORWARD from this client, it also offers it.  Each later EHLO decides
again.  A client that never sends EHLO gets no such reply.  So before its first STARTTLS or AUTH,
outside a transaction, we send one EHLO in its name, and do not deliver the reply, which decides in
the same way.

**The argument.**  A server executes an XCLIENT only if it reads it as a command.  So whatever a
strict guard forwards must either be checked as a command, or certainly be read as something else:

1. *Commands are checked.*  Servers execute whole lines, and every line ends at LF.  We forward
   only whole lines, and check each of them first: it is not so long that a server might split it,
   it contains no control octets except TAB, and its verb, read as the most lenient server would
   read it, is not a forbidden one.
2. *Everything else is checked too, or is certainly content.*  What is not a command is content,
   after a 354, or an answer to AUTH, after a 334.  Answers are checked like commands.  Content
   passes unchecked only while it is certain that the server is in content, too: it was when it
   sent the 354, and it has not ended the content before we think so.
3. *Content is checked as soon as that is uncertain.*  A server leaves content only at a line that
   consists of a dot.  CRLF.CRLF ends content on all servers, so both sides leave together.  An
   *odd dot* is one that only some servers take for the end (content.py), or any dot that we
   forward as a command or an answer while our count of replies may be wrong (step 4): then the
   server may be in content because of an earlier DATA.  After the first odd dot, the guard checks
   every line of content (*screening*) and accepts no proof, for the rest of the session.  Before
   it, a 354 shows that the server is in content, even if our count is wrong: we forwarded nothing
   with which the server could have left it since it sent that 354.
4. *No other reply can pass for the proof.*  We forward an EHLO only when no reply is owed, and
   nothing after it until its reply is complete.  So the next reply must be the one to the EHLO,
   unless our count of replies is wrong.  It is right as long as every command gets exactly one
   reply.  Every server answers a command exactly once if its verb is in our table and its form is
   one in which all servers find the same verb.  After any other command the guard is *unsure*, and
   accepts no proof for the rest of the session, with one exception.  An unknown verb that was
   sent while no reply was owed, and was answered with 500 or 502, leaves it only *in doubt*: the
   server might answer it again.  If so, it answers with such a code again, and before it answers
   the next command, which we send alone.  So if the next known command is answered with any
   other code, there is no second answer, and all is certain again; otherwise the guard is unsure.
5. *If we are wrong all the same, the session ends.*  It ends at the first reply that no forwarded
   command can have caused, for example a 220, which is the reply to XCLIENT.

In a relaxed session there is nothing left to protect, so the rule there is to do no harm.  We
still refuse XCLIENT, XFORWARD and PROXY, but only where the backend is certainly waiting for a
command.  The guard still follows the session, for a drain and the statistics.  Where we never had a
right (the backend judges the client by the client's own address, and refuses a second PROXY
header), a session begins relaxed; or *unproven* after a header of ours (proving.py).

**How the two directions are coupled.**  They share a ``Dialogue`` (dialogue.py).  The client's
(strict.py, relaxed.py, proving.py) appends to its queue of owed replies.  The backend's
(backend_replies.py) removes from it, and decides what the client's next bytes are.
"""

from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.backend_replies import BackendReader
from proxyshim.smtp.dialogue import MAX_OWED, Dialogue, Mode, State, Transaction
from proxyshim.smtp.final_replies import FinalReplies
from proxyshim.smtp.passing import (
    COMMAND_START_OCTETS,
    RELAXED_COMMANDS,
    REPLY_CODES,
    REPLY_START_OCTETS,
    STRICT_COMMANDS,
    pass_content,
)
from proxyshim.smtp.proving import read_first
from proxyshim.smtp.relaxed import RelaxedReader
from proxyshim.smtp.replies import MAX_REPLY_LINE_OCTETS
from proxyshim.smtp.strict import Rules, StrictReader
from proxyshim.smtp.verbs import Kind

__all__ = ["MAX_HELD_OCTETS", "Guard", "Mode", "Rules", "Transaction"]

MAX_HELD_OCTETS: Final = 65_536  # from the client; at this bound we stop reading it


class Guard:
    """The guard of one session.

    Feed it with ``from_client`` and ``from_backend``.  After each call, send what is in
    ``to_backend`` and ``to_client``, log what is in ``refused`` (the reasons of refused commands),
    and empty all three.  Stop reading the client while ``wants_client`` is False.  Close when
    ``finished`` is True.

    For speed, offer each packet to ``pass_command`` or ``pass_reply`` first, and feed it only if
    they return False.
    """

    __slots__ = (
        "_backend",
        "_client_closed",
        "_dialogue",
        "_relaxed",
        "_strict",
        "farewell",
        "finals",
        "refused",
        "tls",
        "to_backend",
        "to_client",
    )

    def __init__(self, rules: Rules) -> None:
        """Begin after the greeting."""
        self._dialogue = dialogue = Dialogue()
        self.tls = dialogue.tls = rules.tls  # how far the session is with our TLS
        self._strict = StrictReader(dialogue, rules)
        self._relaxed = RelaxedReader(dialogue, rules.refused_verbs)
        dialogue.mode = _UNPROVEN if rules.unproven else rules.first_mode
        self._backend = BackendReader(dialogue, self._strict, self._relaxed)
        self._client_closed = False
        self.finals = FinalReplies(dialogue, self._relaxed)
        # The backend's 421, for the log.
        self.farewell: str | None = None
        self.to_backend = dialogue.to_backend
        self.to_client = dialogue.to_client
        self.refused = dialogue.refused

    # What the session asks.

    @property
    def mode(self) -> Mode:
        """Return how closely the session is watched."""
        return self._dialogue.mode

    @property
    def is_opaque(self) -> bool:
        """Return True if everything passes unread from here on."""
        return self._dialogue.mode is _OPAQUE

    @property
    def extensions(self) -> frozenset[bytes]:
        """Return what the backend offered to the client's last EHLO."""
        return self._backend.extensions

    @property
    def transaction(self) -> Transaction:
        """Return how far the client's transaction is."""
        return self._dialogue.transaction

    @property
    def messages_accepted(self) -> int:
        """Return how many messages the backend accepted."""
        return self._dialogue.messages_accepted

    @property
    def last_code(self) -> int:
        """Return the code of the last reply, the backend's or ours; 0 before the first one."""
        return self._dialogue.last_code

    @property
    def backend_quitting(self) -> bool:
        """Return True if the backend sent 221 or 421, so that we expect it to close."""
        return self._dialogue.backend_quitting

    @property
    def end_reason(self) -> Reason | None:
        """Return why the session is ending, or None if it is not."""
        return self._dialogue.end_reason

    @property
    def finished(self) -> bool:
        """Return True if the session is ending and every reply owed was delivered."""
        return self._dialogue.end_reason is not None and not self._dialogue.owed

    @property
    def wants_client(self) -> bool:
        """Return True if more from the client may be fed."""
        dialogue = self._dialogue
        return (
            dialogue.end_reason is None
            and not (self.tls is not None and self.tls.is_wanted)
            and len(dialogue.owed) < MAX_OWED
            and (dialogue.held is None or len(dialogue.held) < MAX_HELD_OCTETS)
        )

    @property
    def client_drained(self) -> bool:
        """Return True if the client closed and all that may still pass was forwarded."""
        held = self._dialogue.held
        return self._client_closed and (held is None or not held.has_line())

    @property
    def awaits_backend(self) -> bool:
        """Return True if the backend owes a reply."""
        return bool(self._dialogue.owed)

    @property
    def can_quit(self) -> bool:
        """Return True if the backend would read a QUIT as QUIT, and not as content or an answer."""
        dialogue = self._dialogue
        return (
            dialogue.state is _COMMAND
            and not self.is_opaque
            and not self._relaxed.is_ahead
            and not any(isinstance(owed, Kind) for owed in dialogue.owed)
        )

    # The client's direction.

    def pass_command(self, data: bytes) -> bool:
        """Return True if *data* is one command, or some content, that passes unchanged.

        True means that the guard has recorded it, so send *data*.  Nothing was put into
        ``to_backend`` or ``to_client``, and neither ``finished`` nor ``wants_client`` changed.
        False means that the guard did nothing, so feed *data*.  ``from_client`` is the rule, and
        this is the shortcut; passing.py explains why it is safe.
        """
        dialogue = self._dialogue
        if dialogue.held is not None or dialogue.end_reason is not None:
            return False
        mode = dialogue.mode
        if mode is _OPAQUE:
            return True
        if mode is _UNPROVEN:
            return False
        if dialogue.state is not _COMMAND:
            return dialogue.state is _IN_CONTENT and pass_content(dialogue, data)
        if self.tls is not None and self.tls.reads_every_command:
            return False
        shortcuts = RELAXED_COMMANDS if mode is _RELAXED else STRICT_COMMANDS
        shortcut = shortcuts.get(data[:COMMAND_START_OCTETS].upper())
        if (
            shortcut is None
            or data.find(b"\n") != len(data) - 1
            or self._relaxed.line_start
            or len(dialogue.owed)
            >= MAX_OWED - 1  # the next one changes ``wants_client``
            or (mode is _STRICT and not self._strict.may_forward(data, shortcut[0]))
        ):
            return False
        kind, dialogue.state = shortcut
        dialogue.owed.append(kind)
        dialogue.forwarded += len(data)
        return True

    def from_client(self, data: bytes) -> None:
        """Read what the client sent."""
        dialogue = self._dialogue
        if dialogue.end_reason is not None:
            return
        held, position = dialogue.held, 0
        if held is not None:
            if data:
                held.add(data)
                if held.for_reply:
                    return
            dialogue.held = None
            data, position = held.take()
        if dialogue.mode is _STRICT:
            self._strict.read(data, position)
        elif dialogue.mode is _UNPROVEN:
            read_first(dialogue, data, position)
        else:
            self._relaxed.read(data, position)
            if dialogue.mode is _OPAQUE:
                self._backend.release_unfinished()

    def client_closed(self) -> None:
        """Record the client's end of file.  An unfinished command is never forwarded."""
        self._client_closed = True

    def end(self, reason: Reason, reply: bytes = b"") -> None:
        """End the session: read no more, deliver the replies that are owed, then *reply*."""
        self._dialogue.end(reason, reply)

    def abandon(self, reason: Reason, reply: bytes) -> None:
        """End the session at once: *reply* replaces all that are owed and will not come."""
        self._dialogue.abandon(reason, reply)

    def begin_tls(self) -> None:
        """Go on inside our TLS, on the same connection to the backend: strict, until an EHLO."""
        assert self.tls is not None
        self.tls.begin()
        self._dialogue.mode = _STRICT

    # The backend's direction.

    def pass_reply(self, data: bytes) -> bool:
        """Return True if *data* is one reply that passes unchanged.

        The result means the same as that of ``pass_command``.  ``from_backend`` is the rule, and
        this is the shortcut; passing.py explains why it is safe.
        """
        dialogue = self._dialogue
        if dialogue.mode is _OPAQUE:
            return True
        code = REPLY_CODES.get(data[:REPLY_START_OCTETS])
        owed = dialogue.owed
        backend = self._backend
        if (
            code is None
            or not 0 < len(owed) < MAX_OWED
            or data.find(b"\n", 0, MAX_REPLY_LINE_OCTETS) != len(data) - 1
            or dialogue.held is not None
            or dialogue.mode is _UNPROVEN
            or dialogue.in_doubt
            or dialogue.end_reason is not None
            or backend.parser.unread
            or self._relaxed.kept_copy is not None
            or (len(owed) > 1 and isinstance(owed[1], bytes))
        ):
            return False
        kind = owed[0]
        if (
            not isinstance(kind, Kind)
            or kind is _EHLO
            or kind is _OWN_EHLO
            or kind is _UNKNOWN
        ):
            return False
        if code == 354 and kind is not _DATA:
            return False
        del owed[0]
        dialogue.note_reply(kind, code)
        if not owed and dialogue.state is _UNDECIDED:
            backend.decide_state(kind, code)
        return True

    def from_backend(self, data: bytes) -> bool:
        """Read what the backend sent.

        Return True if our own reply comes next, and the backend's last one was a 5xx after which
        it may hang up.  If it does not, feed b"" a moment later to deliver our own reply.

        Raises BackendError if the bytes are not replies.
        """
        dialogue, backend = self._dialogue, self._backend
        if dialogue.mode is _OPAQUE:
            self.to_client.append(data)
            return False
        if not data and dialogue.hesitates:
            dialogue.deliver_first()
            if dialogue.held is not None:
                self.from_client(b"")
        backend.parser.feed(data)
        # Once our last reply is delivered, nothing may follow it.
        while not self.finished and backend.read_next():
            if dialogue.held is not None:
                self.from_client(b"")  # it may have waited for this reply
            if self.is_opaque:
                backend.release_unfinished()
                break
        if dialogue.farewell is not None:
            self.farewell = dialogue.farewell.text
        return dialogue.hesitates

    def backend_closed(self, *, by_reset: bool = False) -> None:
        """Record the backend's end of file; end the session if it came unexpectedly.

        A reset means that the backend has not even read what we sent last.
        """
        dialogue = self._dialogue
        # A mail server also closes after the client has closed.
        is_expected = self.backend_quitting or (
            self._client_closed and not dialogue.owed
        )
        judgement = dialogue.judgement(is_expected=is_expected, by_reset=by_reset)
        if judgement is not None and not self.is_opaque:
            dialogue.owed.clear()  # no reply of our own follows the backend's last one
            dialogue.end(judgement)
        elif dialogue.end_reason is not None or not (is_expected or self.is_opaque):
            self.abandon(Reason.BACKEND_CLOSED, replies.BACKEND_LOST)


# Global names, because attributes of an Enum are slow to look up in Python 3.11.
_UNPROVEN: Final = Mode.UNPROVEN
_STRICT: Final = Mode.STRICT
_RELAXED: Final = Mode.RELAXED
_OPAQUE: Final = Mode.OPAQUE
_COMMAND: Final = State.COMMAND
_IN_CONTENT: Final = State.CONTENT
_UNDECIDED: Final = State.UNDECIDED
_EHLO: Final = Kind.EHLO
_OWN_EHLO: Final = Kind.OWN_EHLO
_UNKNOWN: Final = Kind.UNKNOWN
_DATA: Final = Kind.DATA
