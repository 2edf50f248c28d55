"""What a reason leads to: outcome, our reply, log event and level, metrics.  One table for all.

``ENDINGS`` has a row for every ``Reason``.  ``reports.py`` applies the rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from proxyshim.addresses import Endpoint
from proxyshim.errors import Reason
from proxyshim.session.record import Outcome
from proxyshim.smtp import replies


@dataclass(frozen=True, slots=True)
class Ending:
    """One row of the table."""

    outcome: Outcome
    # What we send.  A function is called with the client's address, or
    # the peer's if no client is known.  None means that the guard or
    # the MTA has replied.
    reply: bytes | Callable[[str], bytes] | None = None
    event: str | None = None  # None means that session_closed is enough
    level: Literal["info", "warning", "error"] = "warning"
    hint: str | None = None
    is_refusal: bool = False  # counted in proxyshim_refusals_total
    is_backend_failure: bool = False  # counted in proxyshim_backend_failures_total


def _header(
    reply: bytes | Callable[[str], bytes] = replies.HEADER_REFUSED,
    level: Literal["info", "warning"] = "warning",
) -> Ending:
    return Ending(Outcome.REFUSED, reply, "header_refused", level, is_refusal=True)


def _backend(
    hint: str | None = None, reply: bytes = replies.BACKEND_UNAVAILABLE
) -> Ending:
    return Ending(
        Outcome.BACKEND_FAILED,
        reply,
        "backend_failed",
        "error",
        hint,
        is_refusal=True,
        is_backend_failure=True,
    )


def _check_only(hint: str) -> Ending:
    return Ending(Outcome.REFUSED, event="command_refused", hint=hint, is_refusal=True)


_COMMAND: Final = Ending(
    Outcome.REFUSED, event="command_refused", level="info", is_refusal=True
)
_DIALOGUE: Final = Ending(Outcome.REFUSED, is_refusal=True)
_SHED: Final = Ending(
    Outcome.REFUSED, replies.TOO_MANY, "connection_shed", "error", is_refusal=True
)

ENDINGS: Final[Mapping[Reason, Ending]] = MappingProxyType(
    {
        # The PROXY header.
        Reason.HEADER_TIMEOUT: _header(replies.HEADER_TIMED_OUT),
        Reason.HEADER_INCOMPLETE: _header(level="info"),  # nobody needs to act on it
        Reason.HEADER_UNRECOGNISED: _header(),
        Reason.HEADER_MALFORMED: _header(),
        Reason.HEADER_TOO_LONG: _header(),
        Reason.HEADER_BAD_VERSION: _header(),
        Reason.HEADER_BAD_FAMILY: _header(),
        Reason.HEADER_BAD_LENGTH: _header(),
        Reason.HEADER_BAD_TLV: _header(),
        Reason.HEADER_BAD_CHECKSUM: _header(),
        Reason.HEADER_FORBIDDEN: _header(replies.header_forbidden),
        # Who the client is: commands that a check-only session must not send.
        Reason.NO_CLIENT_ADDRESS: _check_only(
            "mail from a proxy that names no client: chained? See docs/runbook.md"
        ),
        Reason.CLAIM_NOT_BELIEVED: _check_only(
            "mail from a proxy that names no believable client: chained or"
            " address-translating? If haproxy_hosts holds the claimed address: let the"
            " outer proxy send a PROXY header (send-proxy), list the proxies singly"
            " instead of their network, or, if clients really share that network, write"
            " it into believed_claims. See docs/runbook.md"
        ),
        Reason.CLIENT_DENIED: Ending(
            Outcome.REFUSED,
            replies.client_denied,
            "client_denied",
            "info",
            is_refusal=True,
        ),
        # The SMTP dialogue.  The guard answers; most of these do not end a session.
        Reason.XCLIENT_INJECTED: _COMMAND,
        Reason.XFORWARD_INJECTED: _COMMAND,
        Reason.PROXY_INJECTED: _COMMAND,
        Reason.BDAT_REFUSED: _COMMAND,
        Reason.STARTTLS_WITHHELD: _COMMAND,
        Reason.AUTH_WITHHELD: _COMMAND,
        Reason.VERB_IN_AUTH: _COMMAND,
        Reason.VERB_IN_CONTENT: _COMMAND,
        Reason.COMMAND_TOO_LONG: _DIALOGUE,
        Reason.CONTROL_OCTET: _DIALOGUE,
        Reason.TLS_REQUIRED: _COMMAND,
        Reason.TLS_OUT_OF_ORDER: _COMMAND,
        Reason.PLAINTEXT_AFTER_STARTTLS: Ending(
            Outcome.REFUSED, replies.PLAINTEXT_AFTER_STARTTLS, is_refusal=True
        ),
        Reason.TLS_HANDSHAKE_FAILED: _DIALOGUE,
        Reason.TOO_MANY_REFUSALS: _DIALOGUE,
        Reason.REPLY_UNASKED: _DIALOGUE,
        Reason.REPLY_OUT_OF_PLACE: _DIALOGUE,
        Reason.CLIENT_IDLE: Ending(Outcome.IDLE),
        # The backend.
        Reason.BACKEND_UNREACHABLE: _backend(),
        Reason.BACKEND_UNRESOLVED: _backend(),
        Reason.BACKEND_TIMEOUT: _backend(),
        Reason.BACKEND_CLOSED: _backend(),
        Reason.BACKEND_GREETING: _backend(),
        Reason.BACKEND_BAD_REPLY: _backend(),
        Reason.XCLIENT_NOT_OFFERED: _backend(),
        Reason.XCLIENT_REFUSED: _backend(),
        # An operator has to act, but the clients of the other IP version are served: the backend is
        # not failing, and nobody is called at night.
        Reason.CLIENT_FAMILY_REFUSED: Ending(
            Outcome.BACKEND_FAILED,
            replies.BACKEND_UNAVAILABLE,
            "backend_failed",
            hint="the mail server takes no clients of this IP version: with Postfix, set"
            " inet_protocols = all, and with postfix-pass list it in families. See"
            " docs/runbook.md",
            is_refusal=True,
        ),
        Reason.HEADER_NOT_UNDERSTOOD: _backend(
            "the backend takes the PROXY header for a command: let this service expect"
            " the header, or set another convey. See docs/runbook.md"
        ),
        Reason.SECOND_HEADER_OBEYED: _backend(
            'clients could pose as others on this backend: set convey = "xclient", or'
            " use a server that takes one PROXY header only. See docs/runbook.md"
        ),
        Reason.SECOND_HEADER_UNKNOWN: _backend(
            "a backend gets clients after it has refused a second PROXY header in a test:"
            " run proxyshim check. See docs/runbook.md"
        ),
        # As CLIENT_FAMILY_REFUSED: the clients of the other IP version are served.
        Reason.NO_BACKEND_FOR_FAMILY: Ending(
            Outcome.BACKEND_FAILED,
            replies.BACKEND_UNAVAILABLE,
            "backend_failed",
            hint="a client can be served from its own address only by an address of the"
            " same IP version: add one to backend. See docs/runbook.md",
            is_refusal=True,
        ),
        Reason.SOURCE_FORBIDDEN: _backend(
            "the service may not connect from other hosts' addresses: it needs"
            " proxyshim.service.d/source-address.conf. See docs/runbook.md"
        ),
        Reason.SOURCE_UNROUTED: _backend(
            "the backend's answers to clients' addresses do not come back to this host:"
            " start proxyshim-routes.service, and run proxyshim check as root. See"
            " docs/runbook.md"
        ),
        Reason.PASS_BUSY: _backend(
            "all smtpd processes of the service are taken: raise its limit in master.cf."
            " See docs/runbook.md",
            replies.ALL_BUSY,
        ),
        Reason.PASS_REFUSED: _backend(
            "is Postfix running, has its master.cf the service of the type pass, and may"
            " proxyshim enter the directory of its socket? Run proxyshim check. See"
            " docs/runbook.md",
            replies.ALL_BUSY,
        ),
        Reason.PASS_DOWN: _backend(
            "Postfix takes connections, and serves none: its log says why. See"
            " docs/runbook.md",
            replies.ALL_BUSY,
        ),
        Reason.CLIENT_REFUSED: Ending(Outcome.CLIENT_REFUSED),
        # Limits.  The first two refuse a connection before it is a session.
        Reason.TOO_MANY_SESSIONS: _SHED,
        Reason.TOO_MANY_CONNECTIONS: _SHED,
        Reason.TOO_MANY_FROM_CLIENT: Ending(
            Outcome.REFUSED, replies.TOO_MANY, "client_limited", is_refusal=True
        ),
        Reason.CLIENT_PORTS_EXHAUSTED: Ending(
            Outcome.REFUSED, replies.TOO_MANY, "client_limited", is_refusal=True
        ),
        # Ourselves.  Out of something: towards the backend; a connection that is shed for it has no
        # session, and its own event.
        Reason.OUT_OF_DESCRIPTORS: _backend(),
        Reason.OUT_OF_RESOURCES: _backend(),
        Reason.SHUTDOWN: Ending(Outcome.SHUTDOWN, replies.SHUTTING_DOWN),
        Reason.INTERNAL_ERROR: Ending(
            Outcome.FAILED, replies.FAILED, "session_failed", "error"
        ),
    }
)


def reply_for(reason: Reason, peer: Endpoint | None) -> bytes:
    """Return our own reply to a *peer*; empty where the guard or the MTA replies."""
    reply = ENDINGS[reason].reply
    if callable(reply):
        assert (
            peer is not None
        )  # a peer on a unix socket is listed, and never forbidden
        return reply(peer.host)
    return reply or b""
