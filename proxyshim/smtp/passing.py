"""Whole packets that pass as they came: what a table tells of them, and why that is enough.

Most of a session is one command, or one reply, in a packet of its own, that goes on octet for
octet.  ``Guard.pass_command`` and ``Guard.pass_reply`` take those at a fraction of the price of
reading them.  They decide nothing anew: what ``from_client`` and ``from_backend`` do is the rule,
and these tell, by what is cheap to look at, that all it would come to is to send the packet on
and to take or add one entry of what is owed.  Where that is not certain they do nothing.

**Commands.**  Nothing is held or begun, so the packet starts a line; its only LF is its last
octet, so it is that line, whole.  A verb of four letters with a blank, CR or LF behind it is the
verb that ``verb_of`` finds, and the table of verbs says what it leads to.  Left out are those that
are always refused, and BDAT, whose line says more than its verb.  While strict, too: those that
may be refused then; any line too long, not plain or with a control octet; an EHLO or HELO that
has to wait; and all of a check-only session.

**Content.**  ``ContentScanner.skim`` uses the search of ``scan`` and finds no dot to tell of but
the end, which is the end of the packet.

**Replies.**  No reply is begun, so the packet starts one; code and blank, and a LF only as the
last octet: it is one line, and whole.  The backend owes it and behind it none of ours is owed,
nothing waits for it, neither held nor to be read again, and no end was decided on.  Left out are
the codes that lead elsewhere: 220 and 334 always, 354 but to DATA; and what EHLO is answered.
"""

from typing import Final

from proxyshim.smtp.dialogue import State
from proxyshim.smtp.relaxed import DECIDED_BY_REPLY
from proxyshim.smtp.verbs import VERBS, Kind

# How a command starts -> whose reply is owed, and where the client stands then.
_Passages = dict[bytes, tuple[Kind, State]]

COMMAND_START_OCTETS: Final = 5
_PLAIN = {
    verb + end: row
    for verb, row in VERBS.items()
    if len(verb) == 4 and row.always is None and row.kind is not Kind.BDAT
    for end in (b" ", b"\r", b"\n")
}
RELAXED_COMMANDS: Final[_Passages] = {
    start: (
        row.kind,
        State.UNSETTLED if row.kind in DECIDED_BY_REPLY else State.COMMAND,
    )
    for start, row in _PLAIN.items()
}
STRICT_COMMANDS: Final[_Passages] = {
    start: (row.kind, State.UNSETTLED if row.waits else State.COMMAND)
    for start, row in _PLAIN.items()
    if row.strict is None
}

# How a reply of one line starts -> its code.
REPLY_START_OCTETS: Final = 4
REPLY_CODES: Final[dict[bytes, int]] = {
    b"%d " % code: code for code in range(200, 600) if code not in (220, 334)
}
