"""After a PROXY header: one command, whose reply shows whether the backend took the header.

A server that does not expect a header greets us, answers the header as it answers any unknown
command, and serves on as if proxyshim were the client, which may relay.  So only the client's first
EHLO or HELO passes, and nothing after it until its one reply is complete.  If the client says
anything else first, we send a NOOP before it.  If the header was taken for a command, the first
reply is the one to it: 500 or 502 (RFC 5321, 4.2.4), or 503 from a server that expected another
header and refuses every command.  A reply that nobody asked for shows the same.  Then the session
ends with our own 421, and nothing but a greeting or a NOOP was said in our name.
"""

from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.dialogue import Dialogue, State
from proxyshim.smtp.lines import MAX_COMMAND_OCTETS, has_control_octet, verb_of
from proxyshim.smtp.verbs import UNKNOWN, VERBS, Kind
from proxyshim.smtp.waiting import Waiting

HEADER_NOT_UNDERSTOOD: Final = (500, 502, 503)

_INTRODUCES: Final = (Kind.EHLO, Kind.HELO)


def read_first(dialogue: Dialogue, data: bytes, position: int) -> None:
    """Forward the first line of data[position:], or a NOOP, and hold the rest."""
    if position < len(data) and not dialogue.owed:
        end = data.find(b"\n", position, position + MAX_COMMAND_OCTETS) + 1
        if not end and len(data) - position < MAX_COMMAND_OCTETS:
            dialogue.held = Waiting(data, position, for_reply=False)
            return
        position += _send_first(dialogue, data[position:end])
    if position < len(data):
        dialogue.held = Waiting(data, position, for_reply=True)


def _send_first(dialogue: Dialogue, line: bytes) -> int:
    """Send *line* or a NOOP; return how many of the client's octets were forwarded."""
    kind = VERBS.get(verb_of(line), UNKNOWN).kind
    dialogue.state = State.UNDECIDED
    if kind in _INTRODUCES and not has_control_octet(line):
        dialogue.forward(line)
        dialogue.owed.append(kind)
        return len(line)
    dialogue.forward(b"NOOP\r\n")
    dialogue.owed.append(Kind.OWN_NOOP)
    return 0


def end_unproven(dialogue: Dialogue) -> None:
    """End the session, because the backend did not take the header."""
    dialogue.owed.clear()
    dialogue.end(Reason.HEADER_NOT_UNDERSTOOD, replies.BACKEND_UNAVAILABLE)
