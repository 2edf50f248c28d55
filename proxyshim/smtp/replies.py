"""Replies: a parser for the backend's, and the text of every reply that we send ourselves.

``ReplyParser.next`` has three outcomes: a whole reply, None if more bytes are needed, or a
BackendError.
Source: RFC 5321, 4.2 (grammar) and RFC 3463 (enhanced codes).
"""

import re
from typing import Final, NamedTuple

from proxyshim.errors import BackendError, Reason
from proxyshim.smtp.lines import split_lines

# RFC 5321 allows 512, but servers that list many things in one line send more.
MAX_REPLY_LINE_OCTETS: Final = 16_384
MAX_REPLY_OCTETS: Final = 262_144

_REPLY_LINE = re.compile(rb"[2-5][0-9]{2}(-| |\r?\n)")
# Any number of lines with "-", then one without.  The pattern cannot backtrack badly.  Do not use
# the possessive "*+": in Python 3.11.2 it wrongly matches "2500 ok".
_WHOLE_REPLY = re.compile(
    rb"(?:[2-5][0-9]{2}-[^\n]*\n)*([2-5][0-9]{2})(?: [^\n]*|\r?)\n"
)


class Reply(NamedTuple):
    """A whole reply: its code, and its unchanged bytes, including all line ends."""

    code: int
    raw: bytes

    @property
    def positive(self) -> bool:
        """Return True if the command was completed: 2yz (RFC 5321, 4.2.1)."""
        return 200 <= self.code <= 299

    @property
    def lines(self) -> list[bytes]:
        """Return the text of each line, without code, separator and line end."""
        return [line[4:].rstrip(b"\r\n") for line in split_lines(self.raw)]

    def excerpt(self, max_characters: int = 200) -> str:
        """Return the reply as one printable line for a log, cut at *max_characters*."""
        text = b" / ".join(self.raw.splitlines()).decode("ascii", "backslashreplace")
        printable = "".join(c if c.isprintable() else "?" for c in text)
        return printable[:max_characters]

    def quoted(self) -> str:
        """Return a short excerpt in double quotes, for a sentence."""
        return f'"{self.excerpt(120)}"'


class ReplyParser:
    """Splits what the backend sends into replies."""

    __slots__ = ("_scanned", "unread")

    def __init__(self) -> None:
        """Start at a reply boundary."""
        # Was fed, but not yet returned by ``next``.  If more than one packet is needed for a
        # reply, or more than one reply comes in a packet, it is a bytearray: adding to its end
        # and removing its start take no longer if it is long.
        self.unread: bytes | bytearray = b""
        self._scanned = 0  # where in ``unread`` the next line to be parsed starts

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        if not self.unread:
            self.unread = data
            return
        if isinstance(self.unread, bytes):
            self.unread = bytearray(self.unread)
        self.unread += data

    @property
    def at_boundary(self) -> bool:
        """Return True if everything fed was returned by ``next``."""
        return not self.unread

    def next(self) -> Reply | None:
        """Return the next whole reply, or None while more bytes are needed.

        Raises BackendError if a line is not a reply line, or if a line or the reply is too long.
        """
        buffer = self.unread
        if not buffer:
            return None
        # Most replies are short and arrive whole, so one search is enough for all their lines.
        if not self._scanned and buffer.endswith(b"\n"):
            found = _WHOLE_REPLY.match(buffer)
            if found and (end := found.end()) <= MAX_REPLY_LINE_OCTETS:
                return self._take(end, int(found[1]))
        while (end := buffer.find(b"\n", self._scanned) + 1) > 0:
            start, self._scanned = self._scanned, end
            separator = _read_line(buffer, start, end)
            if separator != b"-":
                return self._take(end, int(buffer[start : start + 3]))
        if len(buffer) - self._scanned > MAX_REPLY_LINE_OCTETS:
            raise _bad(f"reply line exceeds {MAX_REPLY_LINE_OCTETS} octets")
        if len(buffer) > MAX_REPLY_OCTETS:
            raise _bad(f"reply exceeds {MAX_REPLY_OCTETS} octets")
        return None

    def take_rest(self) -> bytes:
        """Return and forget what was not parsed, because no further reply is expected."""
        rest, self.unread, self._scanned = bytes(self.unread), b"", 0
        return rest

    def _take(self, end: int, code: int) -> Reply:
        """Return the reply that ends at *end*."""
        buffer, self._scanned = self.unread, 0
        if end == len(buffer):
            self.unread = b""
            return Reply(code, bytes(buffer))
        raw = bytes(buffer[:end])
        if isinstance(buffer, bytes):
            self.unread = buffer = bytearray(buffer)
        del buffer[:end]
        return Reply(code, raw)


def _read_line(buffer: bytes | bytearray, start: int, end: int) -> bytes:
    """Return what follows the code of one line; that is "-" if more lines follow."""
    found = _REPLY_LINE.match(buffer, start, end)
    if found is None:
        raise _bad(f"not a reply line: {bytes(buffer[start : min(end, start + 60)])!r}")
    if end - start > MAX_REPLY_LINE_OCTETS:
        raise _bad(f"reply line exceeds {MAX_REPLY_LINE_OCTETS} octets")
    return found[1]


def _bad(detail: str) -> BackendError:
    return BackendError(Reason.BACKEND_BAD_REPLY, detail)


# Our own replies.  None that ends a session because of a fault on our side is a 5yz, because such
# a fault must delay mail and not bounce it.  They give a stranger no more than it needs; the rest
# is in the log.

# About the PROXY header.
HEADER_TIMED_OUT: Final = b"421 4.4.2 PROXY timed out\r\n"
HEADER_REFUSED: Final = b"421 4.7.1 PROXY header expected, closing\r\n"


def header_forbidden(address: str) -> bytes:
    """Return the reply to an unlisted peer at *address* that sent a PROXY header."""
    return b"421 4.7.1 PROXY not allowed from [%s]\r\n" % address.encode("ascii")


def client_denied(address: str) -> bytes:
    """Return the reply to a client at *address* that is in ``denied_clients``."""
    return b"421 4.7.1 Access from [%s] denied\r\n" % address.encode("ascii")


# In check-only sessions.
NO_CLIENT_ADDRESS: Final = b"421 4.7.1 no client address in the PROXY header\r\n"
CLAIM_NOT_BELIEVED: Final = b"421 4.7.1 claimed address not believed\r\n"

# To commands that clients may not send.
NOT_AUTHORIZED: Final = b"550 5.7.0 Error: insufficient authorization\r\n"
PROXY_UNWELCOME: Final = b"421 4.7.1 PROXY not allowed here\r\n"
CHUNKING_UNAVAILABLE: Final = b"502 5.5.1 BDAT not available, closing\r\n"
TLS_UNAVAILABLE: Final = b"454 4.7.0 TLS not available\r\n"
AUTH_UNAVAILABLE: Final = b"454 4.7.0 Authentication not available here\r\n"

# About our own TLS (RFC 3207, 4; RFC 4954, 4).
READY_FOR_TLS: Final = b"220 2.0.0 Ready to start TLS\r\n"
TLS_REQUIRED: Final = b"530 5.7.0 Must issue a STARTTLS command first\r\n"
TLS_ACTIVE: Final = b"503 5.5.1 TLS already active\r\n"
STARTTLS_SYNTAX: Final = b"501 5.5.4 Syntax: STARTTLS\r\n"
GREET_FIRST: Final = b"503 5.5.1 Send EHLO or HELO first\r\n"
PLAINTEXT_AFTER_STARTTLS: Final = b"421 4.7.0 Data after STARTTLS, closing\r\n"

# To errors in the dialogue that end a session.
LINE_TOO_LONG: Final = b"421 4.5.2 Command line too long, closing\r\n"
CONTROL_OCTET: Final = b"421 4.5.2 Control octet in a command, closing\r\n"
TOO_MANY_REFUSALS: Final = b"421 4.7.0 Too many refused commands, closing\r\n"
COMMAND_OUT_OF_PLACE: Final = b"421 4.7.0 Command not allowed here, closing\r\n"
OUT_OF_STEP: Final = b"421 4.3.0 Lost step with the mail server, closing\r\n"

# About the backend and ourselves.
BACKEND_UNAVAILABLE: Final = b"421 4.3.0 Mail server not available, try again later\r\n"
# As Postfix's postscreen says it.
ALL_BUSY: Final = b"421 4.3.2 All server ports are busy\r\n"
# The answers of a health check that the backend cannot answer, because there is no client.
CHECK_OK: Final = b"250 2.0.0 Ok\r\n"
CHECK_CLOSING: Final = b"221 2.0.0 Bye\r\n"
BACKEND_LOST: Final = b"421 4.3.0 Connection to the mail server lost\r\n"
CLIENT_TOO_SLOW: Final = b"421 4.4.2 Timeout exceeded\r\n"
SHUTTING_DOWN: Final = b"421 4.3.2 Service shutting down, try again later\r\n"
TOO_MANY: Final = b"421 4.7.0 Too many connections, try again later\r\n"
FAILED: Final = b"421 4.3.0 Internal error, try again later\r\n"
