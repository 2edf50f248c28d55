"""The shortcut for ordinary packets, and why it is safe.

Most packets are one command, one reply or some content, and pass unchanged.  For these,
``Guard.pass_command`` and ``Guard.pass_reply`` cost a fraction of what parsing costs.

**The rule** is what ``Guard.from_client`` and ``Guard.from_backend`` do (strict.py, relaxed.py and
backend_replies.py).  **The shortcut** makes no decision of its own.  It uses only cheap checks to
prove that the rule would do exactly two things: forward the packet unchanged, and add or remove at
most one entry of the queue of owed replies, with the change of state that follows from that entry.
Where it cannot prove this, it does nothing, and the rule must read the packet.  **The twin test**,
tests/property/test_passing.py, runs a guard with the shortcut next to one without it, and
compares everything that the two know.

**A command.**  No bytes are held and no line has begun, so the packet starts a line.  Its only LF
is its last byte, so it is exactly that line.  It starts with a verb of four letters and then a
space, CR or LF, so ``verb_of`` would find that verb, and the table of verbs says where it leads.
We leave out the verbs that are always refused, and BDAT, whose whole line matters.  While the
session is strict, we also leave out the verbs that may be refused then; lines that are too long,
not plain, or contain a control octet; an EHLO or HELO that has to wait; and everything in a
check-only session.

**Content.**  ``ContentScanner.skim`` searches in the same way as ``scan``.  It accepts only content
without a lone dot, except for a CRLF.CRLF at the very end of the packet.

**A reply.**  No reply has begun, so the packet starts one.  It starts with a code and a space, and
its only LF is its last byte, so it is one line and complete.  The backend owes this reply, none of
our own replies is queued right after it, no bytes from the client are held or waiting to be
reread, and the session is not ending.  We leave out the codes that lead elsewhere, which are
220, 334 and 421 always, and 354 unless it answers DATA.  We also leave out every reply to EHLO.
"""

from typing import Final

from proxyshim.smtp.content import CONTENT_END
from proxyshim.smtp.dialogue import Dialogue, State
from proxyshim.smtp.relaxed import DECIDED_BY_REPLY
from proxyshim.smtp.verbs import VERBS, Kind

# Maps the start of a command to what its reply answers, and to the client's next state.
_Shortcuts = dict[bytes, tuple[Kind, State]]

COMMAND_START_OCTETS: Final = 5
_CANDIDATES = {
    verb + end: row
    for verb, row in VERBS.items()
    if len(verb) == 4 and row.always is None and row.kind is not Kind.BDAT
    for end in (b" ", b"\r", b"\n")
}
RELAXED_COMMANDS: Final[_Shortcuts] = {
    start: (
        row.kind,
        State.UNDECIDED if row.kind in DECIDED_BY_REPLY else State.COMMAND,
    )
    for start, row in _CANDIDATES.items()
}
STRICT_COMMANDS: Final[_Shortcuts] = {
    start: (row.kind, State.UNDECIDED if row.waits else State.COMMAND)
    for start, row in _CANDIDATES.items()
    # The name in a HELO is kept (strict.py), so the rule reads that line.
    if row.strict is None and row.kind is not Kind.HELO
}

# Maps the start of a one-line reply to its code.
REPLY_START_OCTETS: Final = 4
REPLY_CODES: Final[dict[bytes, int]] = {
    b"%d " % code: code for code in range(200, 600) if code not in (220, 334, 421)
}


def pass_content(dialogue: Dialogue, data: bytes) -> bool:
    """Return True if all of *data* is ordinary content, perhaps with its end as the last bytes.

    True means that the end was noted.  False means that nothing was done.
    """
    if dialogue.screening or not dialogue.scanner.skim(data):
        return False
    dialogue.forwarded += len(data)
    if data.endswith(CONTENT_END):
        dialogue.end_content()
    return True
