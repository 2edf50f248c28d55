"""Answers a health check in place of the backend: EHLO, HELO, NOOP, RSET and QUIT.

It is for a proxy on a unix socket, which has no address that could be conveyed.  Source: RFC 5321,
4.1.1.
"""

from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.lines import MAX_COMMAND_OCTETS, verb_of
from proxyshim.smtp.verbs import UNKNOWN, VERBS, Kind, Refusal

_GREETINGS: Final = (Kind.EHLO, Kind.HELO)


class CheckAnswers:
    """The answers to one check."""

    __slots__ = ("_name", "_refusal", "_unread", "end_reason", "is_finished")

    def __init__(self, refusal: Refusal, name: str) -> None:
        """Refuse all other commands with *refusal*; our host's *name* is in replies to EHLO."""
        self._refusal = refusal
        self._name = name.encode("ascii")
        self._unread = b""
        self.is_finished = False
        self.end_reason: Reason | None = None  # why it is finished, unless with QUIT

    def read(self, data: bytes) -> bytes:
        """Read what the client sent; return the replies."""
        lines = (self._unread + data).split(b"\n")
        self._unread = lines.pop()
        answers = b""
        for line in lines:
            if not self.is_finished:
                answers += self._answer(line + b"\n")
        if not self.is_finished and len(self._unread) >= MAX_COMMAND_OCTETS:
            answers += self._end(Reason.COMMAND_TOO_LONG, replies.LINE_TOO_LONG)
        return answers

    def _answer(self, line: bytes) -> bytes:
        row = VERBS.get(verb_of(line), UNKNOWN)
        refusal = row.always or (None if row.in_check else self._refusal)
        if refusal is not None:
            return self._end(refusal.reason, refusal.reply)
        if row.kind is Kind.QUIT:
            self.is_finished = True
            return replies.CHECK_CLOSING
        if row.kind in _GREETINGS:
            return b"250 %b\r\n" % self._name
        return replies.CHECK_OK

    def _end(self, reason: Reason, reply: bytes) -> bytes:
        self.is_finished, self.end_reason = True, reason
        return reply
