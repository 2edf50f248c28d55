"""Model backends, one for each way in which real servers differ.

A model executes the bytes that reach it and replies as such a server would.  ``Backend.abused``
records the XCLIENT, XFORWARD and PROXY commands that it executed while it still trusted our
address.  It must always be empty.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

_WHITE: Final = b" \t\v\f\r"

# Lone dots that end content: the end of the line before, and the line of the dot.
EXACT: Final = frozenset({(b"\r\n", b".\r\n")})
ALL_BUT_NUL: Final = EXACT | {
    (b"\n", b".\n"),
    (b"\n", b".\r\n"),
    (b"\r\n", b".\n"),
    (b"\r\n", b".\r\r\n"),
}
EVERY_DOT: Final = ALL_BUT_NUL | {
    (b"\r\n", b".\0\r\n"),
    (b"\n", b".\0\r\n"),
    (b"\n", b".\r\r\n"),
}


class Bdat(Enum):
    """What a server does with the payload of a BDAT."""

    TAKE = auto()  # read it as a chunk; if the BDAT is refused, discard it
    RUN = auto()  # refuse the BDAT, and execute the payload as commands


@dataclass(frozen=True, slots=True)
class Kind:
    """How a server differs from the others."""

    name: str
    keeps_right: bool = True
    login_drops_right: bool = False
    skips_blanks: bool = False  # before the verb
    separators: bytes = b" "  # what ends a verb, apart from the end of the line
    cuts_at_nul: bool = False
    dots: frozenset[tuple[bytes, bytes]] = EXACT
    lf_counts_if_first: bool = False  # a bare LF ends lines if it ended the first line
    code_at_odd_dot: int = 250
    bdat: Bdat = Bdat.TAKE
    splits_at: int = 0  # executes a longer line as several commands; 0 means never
    cuts_at: int = 0  # discards the rest of a longer line; 0 means never
    replies_to_unknown: int = 1
    unknown_looks_good: bool = True  # if it echoes: with a 250, and not with a 500
    commands_in_auth: bool = False
    echoes: bool = False  # the client's text, in 250 replies of several lines
    needs_recipient: bool = True  # before DATA

    def __str__(self) -> str:
        """Return the name that a failing test shows."""
        return self.name


_POSTFIX: Final = Kind(
    "Postfix",
    skips_blanks=True,
    separators=_WHITE,
    cuts_at_nul=True,
    dots=ALL_BUT_NUL,
    cuts_at=2048,
)
KINDS: Final = (
    replace(_POSTFIX, name="Postfix, which dropped the right", keeps_right=False),
    replace(_POSTFIX, name="Postfix, which lists the client"),
    Kind("Dovecot", login_drops_right=True, bdat=Bdat.RUN),
    Kind("a stricter server"),
    Kind("Haraka", dots=ALL_BUT_NUL, code_at_odd_dot=451, commands_in_auth=True),
    Kind(
        "Haraka, which dropped the right",
        keeps_right=False,
        dots=ALL_BUT_NUL,
        code_at_odd_dot=451,
        bdat=Bdat.RUN,
        commands_in_auth=True,
    ),
    Kind("Exim", separators=_WHITE, lf_counts_if_first=True, splits_at=16_384),
    Kind("OpenSMTPD", dots=EVERY_DOT - {(b"\r\n", b".\r\r\n")}, cuts_at_nul=True),
    Kind("Sendmail", skips_blanks=True, cuts_at_nul=True, bdat=Bdat.RUN),
    Kind("answers unknown verbs twice", replies_to_unknown=2, echoes=True),
    Kind(
        "answers unknown verbs twice, with a 500",
        replies_to_unknown=2,
        unknown_looks_good=False,
        echoes=True,
    ),
    Kind(
        "answers unknown verbs three times, with a 500, and reads everything",
        skips_blanks=True,
        separators=_WHITE,
        cuts_at_nul=True,
        dots=EVERY_DOT,
        bdat=Bdat.RUN,
        replies_to_unknown=3,
        unknown_looks_good=False,
        commands_in_auth=True,
        echoes=True,
        needs_recipient=False,
    ),
    Kind("does not answer unknown verbs", replies_to_unknown=0, echoes=True),
    Kind(
        "answers unknown verbs twice and skips blanks",
        replies_to_unknown=2,
        echoes=True,
        skips_blanks=True,
        dots=EVERY_DOT,
    ),
    Kind(
        "echoes the client's text", echoes=True, dots=EVERY_DOT, needs_recipient=False
    ),
    Kind(
        "all oddities at once",
        login_drops_right=False,
        skips_blanks=True,
        separators=_WHITE,
        cuts_at_nul=True,
        dots=EVERY_DOT,
        bdat=Bdat.RUN,
        splits_at=16_384,
        replies_to_unknown=2,
        commands_in_auth=True,
        echoes=True,
        needs_recipient=False,
    ),
    Kind(
        "all oddities at once, without answering unknown verbs",
        skips_blanks=True,
        separators=_WHITE,
        cuts_at_nul=True,
        dots=EVERY_DOT,
        bdat=Bdat.RUN,
        splits_at=16_384,
        replies_to_unknown=0,
        commands_in_auth=True,
        echoes=True,
        needs_recipient=False,
    ),
)
# These answer each line exactly once, as ordinary clients need it.
ORDERLY: Final = tuple(kind for kind in KINDS if kind.replies_to_unknown == 1)


class _State(Enum):
    COMMAND = auto()
    CONTENT = auto()
    AUTH = auto()
    CHUNK = auto()


class Backend:
    """One connection to a model server, after our own XCLIENT."""

    def __init__(self, kind: Kind) -> None:
        """Begin after the greeting."""
        self.kind = kind
        self.has_right = kind.keeps_right
        self.abused: list[bytes] = []
        self.executed: list[bytes] = []  # the verb of every command
        self.messages: list[bytes] = []
        self.replies: list[bytes] = []  # sent, and not yet taken by the network
        self.closed = False
        self.tls = False
        self._input = b""
        self._state = _State.COMMAND
        self._sender = self._recipient = False
        self._content = b""
        self._chunk_left = 0
        self._chunk_is_last = self._chunk_is_refused = False
        self._answers_left = 0

    def feed(self, octets: bytes) -> None:
        """Read what the network delivers."""
        self._input += octets
        while not self.closed and self._read_one():
            pass

    def _read_one(self) -> bool:
        if self._state is _State.CHUNK:
            return self._read_chunk()
        end = self._input.find(b"\n") + 1
        if not end:
            return False
        line, self._input = self._input[:end], self._input[end:]
        if self._state is _State.CONTENT:
            self._read_content(line)
            return True
        step = self.kind.splits_at or len(line)
        for start in range(0, len(line), step):
            self._read_line(line[start : start + step])
        return True

    # Content.

    def _read_content(self, line: bytes) -> None:
        before = b"\r\n" if self._content[-2:] in (b"", b"\r\n") else b"\n"
        if (before, line) not in self._dots():
            self._content += line
            return
        self._state = _State.COMMAND
        self.messages.append(self._content)
        self._sender = self._recipient = False
        exact = (before, line) in EXACT
        self._reply(250 if exact else self.kind.code_at_odd_dot, b"queued")

    def _dots(self) -> frozenset[tuple[bytes, bytes]]:
        first = self._content[: self._content.find(b"\n") + 1]
        if self.kind.lf_counts_if_first and first and not first.endswith(b"\r\n"):
            return self.kind.dots | {(b"\n", b".\n"), (b"\n", b".\r\n")}
        return self.kind.dots

    # Commands.

    def _read_line(self, line: bytes) -> None:
        if self.kind.cuts_at:
            line = line[: self.kind.cuts_at]
        if self.kind.cuts_at_nul:
            line = line.partition(b"\0")[0]
        text = line.rstrip(b"\n").removesuffix(b"\r")
        if self.kind.skips_blanks:
            text = text.lstrip(_WHITE)
        verb = text
        for separator in self.kind.separators:
            verb = verb.partition(bytes([separator]))[0]
        verb = verb.upper()
        if self._state is _State.AUTH:
            known = verb in _COMMANDS or verb in _ABUSIVE
            if not (self.kind.commands_in_auth and known):
                self._read_answer(text)
                return
        self._run(verb, text)

    def _run(self, verb: bytes, text: bytes) -> None:
        if verb:
            self.executed.append(verb)
        if verb in _ABUSIVE:
            self._be_abused(verb, text)
        elif verb in _COMMANDS:
            getattr(self, "_run_" + verb.decode("ascii").lower())(text)
        elif not text:
            self._reply(500, b"empty")
        else:
            for _ in range(self.kind.replies_to_unknown):
                self._reply(500, text, multi=self.kind.unknown_looks_good)

    def _be_abused(self, verb: bytes, text: bytes) -> None:
        if self.has_right:
            self.abused.append(text)
            self._reply(220, b"as you say")
        else:
            self._reply(550, b"not you")

    def _run_ehlo(self, text: bytes) -> None:
        offered = [b"PIPELINING", b"SIZE 1000000", b"CHUNKING", b"AUTH PLAIN LOGIN"]
        if self.has_right:
            offered.insert(1, b"XCLIENT NAME ADDR")
            offered.append(b"XFORWARD NAME ADDR")
        if not self.tls:
            offered.append(b"STARTTLS")
        lines = [b"mx Hello " + text, *offered]
        raw = b"".join(b"250-%s\r\n" % line for line in lines[:-1])
        self.replies.append(raw + b"250 %s\r\n" % lines[-1])
        self._sender = self._recipient = False

    def _run_helo(self, text: bytes) -> None:
        self._sender = self._recipient = False
        self._reply(250, text)

    def _run_rset(self, text: bytes) -> None:
        self._sender = self._recipient = False
        self._reply(250, text)

    def _run_mail(self, text: bytes) -> None:
        code = 503 if self._sender else 250
        self._sender = True
        self._reply(code, text)

    def _run_rcpt(self, text: bytes) -> None:
        code = 250 if self._sender else 503
        self._recipient = self._sender
        self._reply(code, text)

    def _run_noop(self, text: bytes) -> None:
        self._reply(250, text)

    _run_vrfy = _run_expn = _run_help = _run_etrn = _run_noop

    def _run_quit(self, text: bytes) -> None:
        self._reply(221, text)
        self.closed = True

    def _run_data(self, text: bytes) -> None:
        if self.kind.needs_recipient and not self._recipient:
            self._reply(503, text)
            return
        self._reply(354, b"go on")
        self._state = _State.CONTENT
        self._content = b""

    def _run_starttls(self, text: bytes) -> None:
        if self.tls:
            self._reply(503, text)
            return
        self.tls = True  # we read everything that follows as if TLS had decrypted it
        self._reply(220, b"go on")

    def _run_auth(self, text: bytes) -> None:
        words = text.upper().split()
        if len(words) > 2:
            self._end_auth(good=True)
        elif words[1:] in ([b"PLAIN"], [b"LOGIN"]):
            self._state = _State.AUTH
            self._answers_left = 1 if words[1] == b"PLAIN" else 2
            self._reply(334, b"VXNlcm5hbWU6")
        else:
            self._reply(504, text)

    def _read_answer(self, text: bytes) -> None:
        self._answers_left -= 1
        if text == b"*":
            self._end_auth(good=False)
        elif self._answers_left:
            self._reply(334, b"UGFzc3dvcmQ6")
        else:
            self._end_auth(good=text == GOOD_ANSWER)

    def _end_auth(self, *, good: bool) -> None:
        self._state = _State.COMMAND
        if good and self.kind.login_drops_right:
            self.has_right = False
        self._reply(235 if good else 535, b"so be it")

    def _run_bdat(self, text: bytes) -> None:
        words = text.upper().split()
        if self.kind.bdat is Bdat.RUN or len(words) < 2 or not words[1].isdigit():
            self._reply(500, text)
            return
        self._chunk_left = int(words[1]) % 2**32
        self._chunk_is_last = words[2:] == [b"LAST"]
        self._chunk_is_refused = not self._recipient
        self._state = _State.CHUNK

    def _read_chunk(self) -> bool:
        if self._chunk_left and not self._input:
            return False
        taken = self._input[: self._chunk_left]
        self._input = self._input[len(taken) :]
        self._chunk_left -= len(taken)
        if not self._chunk_is_refused:
            self._content += taken
        if not self._chunk_left:
            self._end_chunk()
        return True

    def _end_chunk(self) -> None:
        self._state = _State.COMMAND
        if self._chunk_is_refused:
            self._reply(503, b"no")
            return
        if self._chunk_is_last:
            self.messages.append(self._content)
            self._content = b""
            self._sender = self._recipient = False
        self._reply(250, b"taken")

    # Replies.

    def _reply(self, code: int, text: bytes, *, multi: bool = False) -> None:
        """Reply with *text*.  A server that echoes makes it look like a list of extensions."""
        text = bytes(octet for octet in text[:200] if octet not in b"\r\n")
        if self.kind.echoes and (code == 250 or multi):
            self.replies.append(b"250-%s\r\n250-SIZE\r\n250 %s\r\n" % (text, text))
        else:
            self.replies.append(b"%d %s\r\n" % (code, text))


GOOD_ANSWER: Final = b"Z29vZA=="
_ABUSIVE: Final = (b"XCLIENT", b"XFORWARD", b"PROXY")
_COMMANDS: Final = frozenset(
    name.removeprefix("_run_").upper().encode("ascii")
    for name in vars(Backend)
    if name.startswith("_run_")
)
