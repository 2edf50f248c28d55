"""STARTTLS by ourselves: what the guard does where we end the client's TLS, and the MTA does not.

Before TLS we remove what the MTA offers in its place, and add our own keyword; the command STARTTLS
is never forwarded.  What arrives in the clear after it ends the session, so that nobody can put
commands into the client's session inside TLS (CVE-2011-0411 is the famous case).

After the handshake nothing said before may count (RFC 3207, 4.2).  The caller opens a new
connection to the MTA if anything was forwarded before that an EHLO does not undo (``left_state``),
or if the MTA may refuse a second EHLO, as OpenSMTPD does.  Otherwise the MTA's connection stays,
and until it has answered an EHLO or HELO, only commands pass that need none.

Source: RFC 3207 (STARTTLS), RFC 4954, 4 (AUTH), RFC 8689 (REQUIRETLS: we cannot promise it).
"""

from typing import Final

from proxyshim.errors import Reason
from proxyshim.smtp import replies
from proxyshim.smtp.verbs import Kind, Refusal, Verb

KEYWORD: Final = b"STARTTLS"
_HIDDEN: Final = frozenset({KEYWORD, b"REQUIRETLS"})
_HIDDEN_WITH_AUTH: Final = _HIDDEN | {b"AUTH"}

_BEFORE_TLS: Final = frozenset({b"STARTTLS", b"AUTH"})
_ALWAYS: Final = frozenset({b"STARTTLS"})

_AUTH: Final = Refusal(replies.TLS_REQUIRED, Reason.TLS_REQUIRED)
_AGAIN: Final = Refusal(replies.TLS_ACTIVE, Reason.TLS_OUT_OF_ORDER)
_PARAMETER: Final = Refusal(replies.STARTTLS_SYNTAX, Reason.TLS_OUT_OF_ORDER)
_GREET_FIRST: Final = Refusal(replies.GREET_FIRST, Reason.TLS_OUT_OF_ORDER)


class OwnTls:
    """How far a session is with our TLS."""

    __slots__ = (
        "_allow_plaintext_auth",
        "is_inside",
        "is_wanted",
        "left_state",
        "must_greet",
        "offers",
    )

    def __init__(
        self, *, is_inside: bool, offers: bool, allow_plaintext_auth: bool
    ) -> None:
        """Begin *is_inside* TLS, or before it; a session before it *offers* STARTTLS, or does not.

        *allow_plaintext_auth* lets AUTH pass before TLS.
        """
        self.is_inside = is_inside
        self.offers = offers and not is_inside
        self._allow_plaintext_auth = allow_plaintext_auth
        self.is_wanted = False  # the client has sent STARTTLS, and nothing after it
        self.left_state = False  # something was forwarded that an EHLO does not undo
        self.must_greet = False  # the MTA has not heard an EHLO or HELO since TLS began

    def begin(self) -> None:
        """Note that TLS has begun, and that the MTA's connection stays."""
        self.is_inside, self.is_wanted, self.offers = True, False, False
        self.must_greet = True

    @property
    def withholds_auth(self) -> bool:
        """Return True if a password must not pass now."""
        return not (self.is_inside or self._allow_plaintext_auth)

    @property
    def hidden_keywords(self) -> frozenset[bytes]:
        """Return which keywords of the MTA the client must not see."""
        return _HIDDEN_WITH_AUTH if self.withholds_auth else _HIDDEN

    @property
    def caught_verbs(self) -> frozenset[bytes]:
        """Return the verbs that a relaxed session must not forward unread."""
        return _BEFORE_TLS if self.withholds_auth else _ALWAYS

    @property
    def reads_every_command(self) -> bool:
        """Return True if the guard's shortcut for commands would miss something."""
        return not self.is_inside or self.must_greet

    def catches(self, row: Verb) -> bool:
        """Return True if the command is ours to act on or to refuse."""
        return (
            row.kind is Kind.STARTTLS
            or (row.kind is Kind.AUTH and self.withholds_auth)
            or (self.must_greet and not row.in_check)
        )

    def refusal_of(self, row: Verb, line: bytes) -> Refusal | None:
        """Return how to refuse a command that ``catches`` names; None begins TLS."""
        if row.kind is Kind.STARTTLS:
            if not self.offers:
                return _AGAIN
            has_parameter = line.strip().upper() != KEYWORD
            return _PARAMETER if has_parameter else None
        if self.must_greet:
            return _GREET_FIRST
        return _AUTH

    def note_forwarded(self, row: Verb) -> None:
        """Note a command that was forwarded."""
        if not row.in_check:
            self.left_state = True

    def note_greeted(self) -> None:
        """Note that the MTA has taken an EHLO or HELO."""
        self.must_greet = False
