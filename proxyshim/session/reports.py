"""What the sessions of a listener count and log, by the rows of ``ending.py``.

It is the only place that counts refusals and backend failures, and it keeps repeated log lines to
one a minute and source.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from proxyshim.errors import PeerError, Reason, place_of
from proxyshim.limits import client_key
from proxyshim.metrics import Metrics
from proxyshim.net.stream import Stream
from proxyshim.session.ending import ENDINGS, reply_for
from proxyshim.session.record import Outcome, SessionRecord
from proxyshim.throttle import About, Throttle

# The source of events about a limit that applies to all clients together.
ALL_CLIENTS: Final = "all"
# Reasons about one client: log lines are limited together, whichever proxy it came through.
_ABOUT_THE_CLIENT: Final = (
    Reason.CLIENT_DENIED,
    Reason.CLIENT_PORTS_EXHAUSTED,
    Reason.TLS_HANDSHAKE_FAILED,
)


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
        metrics.messages_accepted += record.messages_accepted
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
        if ending.event == "connection_shed":
            details["sessions"] = self.metrics.sessions_open
        log = getattr(self._bound(record), ending.level)
        log(ending.event, reason=reason, **details)
