"""What a reason leads to: outcome, our reply, log event and level, metrics.  One table for all.

``ENDINGS`` has a row for every ``Reason``.  ``Reports`` applies the rows: it is the only place
that counts refusals and backend failures, and it keeps repeated log lines to one a minute and
source.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

import structlog

from proxyshim.addresses import Endpoint
from proxyshim.errors import PeerError, Reason, place_of
from proxyshim.limits import client_key
from proxyshim.metrics import Metrics
from proxyshim.net.stream import Stream
from proxyshim.session.record import Outcome, SessionRecord
from proxyshim.smtp import replies
from proxyshim.throttle import About, Throttle


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


# The source of events about a limit that applies to all clients together.
ALL_CLIENTS: Final = "all"
# Reasons about one client: its log lines are limited together, whichever proxy it came through.
_ABOUT_THE_CLIENT: Final = (Reason.CLIENT_DENIED, Reason.CLIENT_PORTS_EXHAUSTED)

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


@dataclass(frozen=True, slots=True)
class Reports:
    """What the sessions of a listener count and log."""

    listener: str
    backend: str
    metrics: Metrics
    throttle: Throttle = field(default_factory=Throttle)
    log: Any = field(default_factory=structlog.get_logger().bind)
    # How the backend has failed since it last served a session, as far as that was logged.
    failing: set[Reason] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)

    # How a session ends.

    def peer_refused(self, record: SessionRecord, error: PeerError) -> bytes:
        """Record that we refuse the peer; return our reply."""
        self._end(record, error.reason, error.detail)
        record.refused += (error.reason,)
        source, about = self._source_of(record, error.reason)
        if self.throttle.admits(error.reason, source, time.monotonic(), about):
            self._write(record, error.reason, detail=error.detail, **record.claim())
        else:
            record.is_quiet = True
        return reply_for(error.reason, record.client or record.peer)

    def backend_failed(
        self, record: SessionRecord, reason: Reason, detail: str | None
    ) -> bytes:
        """Record that the backend failed the session; return our reply.

        One failure is the client's own doing, and then the log names the client, not the backend.
        """
        if reason is Reason.CLIENT_PORTS_EXHAUSTED:
            return self.peer_refused(record, PeerError(reason, detail or ""))
        self._end(record, reason, detail)
        now = time.monotonic()
        if self.throttle.admits(reason, self.listener, now, About.OURSELVES):
            if ENDINGS[reason].is_backend_failure:
                self.failing.add(reason)
            detail = detail or "closed in the middle of a session"
            self._write(record, reason, backend=self.backend, detail=detail)
        return reply_for(reason, record.peer)

    def relay_ended(
        self, record: SessionRecord, reason: Reason, detail: str | None
    ) -> None:
        """Record that the guard ended the relay for *reason*; it has sent the reply.

        *detail* is what was wrong with the backend, if anything was.
        """
        if ENDINGS[reason].is_backend_failure:
            self.backend_failed(record, reason, detail)
            record.detail = None
        else:
            self._end(record, reason, record.detail)

    def ended(self, record: SessionRecord, reason: Reason) -> bytes:
        """Record an end that is nobody's fault, or ours; return our reply."""
        self._end(record, reason, None)
        return reply_for(reason, record.peer)

    def _end(self, record: SessionRecord, reason: Reason, detail: str | None) -> None:
        record.outcome, record.reason = ENDINGS[reason].outcome, reason
        record.detail = detail
        if reason not in record.refused:
            self.count(reason)

    def count(self, reason: Reason) -> None:
        """Count a refusal of a peer, a client or a command; a backend's failure as well."""
        ending = ENDINGS[reason]
        if ending.is_refusal:
            self.metrics.count_refusal(reason)
        if ending.is_backend_failure:
            self.metrics.backend_failures[reason] += 1

    # What happens before the end.

    def command_refused(self, record: SessionRecord, reason: Reason) -> None:
        """Count a command that was not forwarded; log it once per session and reason."""
        self.count(reason)
        if reason in record.refused:
            return
        record.refused += (reason,)
        if ENDINGS[reason].hint is not None:
            self._write(record, reason, **record.claim())
        elif record.client is not None:
            self._write(record, reason, client=str(record.client))
        else:
            self._write(record, reason)

    def backend_recovered(self, record: SessionRecord) -> None:
        """Note that the backend, which was failing, took a client."""
        self.failing.clear()
        self._bound(record).info("backend_recovered", backend=self.backend)

    def warn(self, record: SessionRecord, event: str, detail: str) -> None:
        """Warn of something that does not fail the session; once a minute."""
        if self.throttle.admits(
            event, self.listener, time.monotonic(), About.OURSELVES
        ):
            self._bound(record).warning(event, detail=detail)

    def warn_once(self, record: SessionRecord, event: str, hint: str) -> None:
        """Warn of the backend's set-up: once, until a reload."""
        if event not in self._warned:
            self._warned.add(event)
            self._bound(record).warning(event, hint=hint)

    def defect(self, record: SessionRecord, error: BaseException) -> None:
        """Record that the session ended with an exception that nobody expected."""
        detail = record.detail or type(error).__name__  # a refusal's detail says more
        self._end(record, Reason.INTERNAL_ERROR, detail)
        place, now = place_of(error), time.monotonic()
        reason = Reason.INTERNAL_ERROR
        if self.throttle.admits(reason, place, now, About.OURSELVES):
            # A traceback takes memory.
            shown = None if isinstance(error, MemoryError) else error
            self._bound(record).error("session_failed", place=place, exc_info=shown)

    # The last line.

    def closed(self, record: SessionRecord, client: Stream) -> None:
        """Count the session, and write its ``session_closed``."""
        metrics, duration_s = self.metrics, record.age_s
        metrics.sessions[self.listener, record.outcome] += 1
        metrics.octets["from_client"] += client.octets_received
        metrics.octets["to_client"] += client.octets_sent
        metrics.session_s.observe(duration_s)
        if record.guard is not None:
            metrics.messages_accepted += record.guard.messages_accepted
        outcome = record.outcome
        of_a_check = record.is_check and outcome is not Outcome.REFUSED
        story = record.story(client, duration_s)
        if record.is_quiet or of_a_check or outcome is Outcome.PROBED:
            self.log.debug("session_closed", **story)
        elif outcome is Outcome.CUT:
            self.log.warning("session_closed", **story)
        else:
            self.log.info("session_closed", **story)

    def _source_of(self, record: SessionRecord, reason: Reason) -> tuple[str, About]:
        """Return whose log lines are limited together, and in which table."""
        if reason is Reason.TOO_MANY_CONNECTIONS:
            return ALL_CLIENTS, About.OURSELVES
        if reason is Reason.TOO_MANY_FROM_CLIENT and record.share is not None:
            return record.share, About.STRANGER
        if reason in _ABOUT_THE_CLIENT and record.client is not None:
            return client_key(record.client.address), About.STRANGER
        source = client_key(record.peer.address) if record.peer else "unix"
        is_stranger = reason is Reason.HEADER_FORBIDDEN
        return source, About.STRANGER if is_stranger else About.PROXY

    def _bound(self, record: SessionRecord) -> Any:
        return self.log.bind(**record.bindings())

    def _write(
        self, record: SessionRecord, reason: Reason, **details: str | int
    ) -> None:
        """Write the event of the reason's row."""
        ending = ENDINGS[reason]
        if ending.event is None:
            return
        if ending.hint is not None:
            details["hint"] = ending.hint
        if ending is _SHED:
            details["sessions"] = self.metrics.sessions_open
        log = getattr(self._bound(record), ending.level)
        log(ending.event, reason=reason, **details)
