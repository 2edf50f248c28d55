"""One connection's life, phase by phase: admit, open, relay, close.

Whatever happens in a phase leads to one of a few ends, and each end has one outcome, one reply and
one log line.  No path leads from a failure to a relay: a client that was not admitted, or whose
identity the backend did not take, hears a 421 (or the MTA's own word) and nothing else.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import structlog

from proxyshim.addresses import Endpoint
from proxyshim.backend.dialogue import (
    BackendLimits,
    ClientRefused,
    GetNames,
    NamesRefused,
    OpenBackend,
    no_names,
    open_backend,
)
from proxyshim.config import Listener
from proxyshim.errors import BackendError, PeerError, ProxyHeaderError, Reason
from proxyshim.identity import Identity
from proxyshim.limits import Shares, client_key
from proxyshim.metrics import Metrics
from proxyshim.names import Resolver
from proxyshim.net.connection import Connection
from proxyshim.net.deadlines import Limit
from proxyshim.net.fiber import Strand
from proxyshim.proxy_header import ProxyHeader, read_header
from proxyshim.proxy_header.watch import HeaderWatch
from proxyshim.session.relay import FINAL_REPLY_S, End, Relay, RelayLimits
from proxyshim.session.trust import Trust, identify_claim, identify_peer
from proxyshim.smtp import replies
from proxyshim.smtp.guard import Guard, Mode, Rules
from proxyshim.smtp.verbs import Refusal
from proxyshim.throttle import Throttle

# A load balancer's check is often gone as soon as its header is out; the MTA need not see it.
# One that waits for the greeting does not notice.
_CHECK_GRACE_S: Final = 0.05

_CHECK_ONLY: Final = {
    Reason.NO_CLIENT_ADDRESS: Refusal(
        replies.NO_CLIENT_ADDRESS, Reason.NO_CLIENT_ADDRESS, ends=True
    ),
    Reason.CLAIM_NOT_BELIEVED: Refusal(
        replies.CLAIM_NOT_BELIEVED, Reason.CLAIM_NOT_BELIEVED, ends=True
    ),
}


class Phase(StrEnum):
    """Where a session is, or was when it ended."""

    ADMIT = "admit"
    OPEN = "open"
    RELAY = "relay"


class Outcome(StrEnum):
    """How a session ended: the metric's label."""

    COMPLETED = "completed"  # the backend or the client took leave
    CHECKED = "checked"  # a health check, and nothing but
    PROBED = "probed"  # gone without a word of its own
    REFUSED = "refused"  # by us, for what the peer did
    CLIENT_REFUSED = "client_refused"  # by the MTA, in answer to XCLIENT
    BACKEND_FAILED = "backend_failed"
    CLIENT_LOST = "client_lost"
    IDLE = "idle"
    SHUTDOWN = "shutdown"
    CUT = "cut"  # by a shutdown's deadline, in the middle of something
    FAILED = "failed"  # a defect of ours


@dataclass(frozen=True, slots=True)
class Service:
    """What the sessions of a listener share; a reload makes a new one."""

    listener: Listener
    trust: Trust
    metrics: Metrics
    resolver: Resolver | None = None  # None: no names are looked up
    shares: Shares = field(default_factory=Shares)
    sessions_per_client: int = 0  # 0: any number
    throttle: Throttle = field(default_factory=Throttle)
    log: Any = field(default_factory=structlog.get_logger().bind)
    # How the backend failed, since it last served.
    failing: set[Reason] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)

    def report_failure(self, log: Any, reason: Reason, detail: str) -> None:
        """Log that the backend failed a session: once a minute, while it does."""
        name = self.listener.settings.name
        self.failing.add(reason)
        if self.throttle.admits(reason, name, time.monotonic()):
            backend = str(self.listener.backend)
            log.error("backend_failed", reason=reason, backend=backend, detail=detail)

    def note_success(self, log: Any) -> None:
        """Note that the backend, which was failing, took a client: its next failure is news."""
        name = self.listener.settings.name
        for reason in self.failing:
            self.throttle.forget(reason, name)
        self.failing.clear()
        log.info("backend_recovered", backend=str(self.listener.backend))

    def warn_once(self, log: Any, event: str, **details: str) -> None:
        """Warn of what is wrong with the backend's set-up, not with a session."""
        if event not in self._warned:
            self._warned.add(event)
            log.warning(event, **details)

    def is_listed(self, peer: Endpoint | None) -> bool:
        """Tell whether *peer* is a proxy; on a unix socket the file's mode said so."""
        return peer is None or self.listener.allowlist.is_listed(peer.address)


_OFTEN_UNKNOWN: Final = ("client", "reason", "detail", "backend_port")
_MODE_NAMES: Final = {mode: mode.name.lower() for mode in Mode}

_OUTCOMES: Final = {
    Reason.SHUTDOWN: Outcome.SHUTDOWN,
    Reason.CLIENT_IDLE: Outcome.IDLE,
    Reason.BACKEND_CLOSED: Outcome.BACKEND_FAILED,
    Reason.BACKEND_TIMEOUT: Outcome.BACKEND_FAILED,
    Reason.BACKEND_BAD_REPLY: Outcome.BACKEND_FAILED,
}
ORDINARY: Final = frozenset({Reason.HEADER_INCOMPLETE})  # nobody needs to act on it


class _PeerLeft(Exception):  # noqa: N818
    """The peer is gone, and there is nobody left to answer."""


class Session:
    """A session, from accept to close, both sockets."""

    __slots__ = (
        "_backend",
        "_backend_closed",
        "_backend_port",
        "_bound_log",
        "_client",
        "_detail",
        "_draining",
        "_early",
        "_guard",
        "_header",
        "_identity",
        "_is_quiet",
        "_metrics",
        "_number",
        "_on_end",
        "_opened",
        "_outcome",
        "_peer",
        "_phase",
        "_reason",
        "_refused",
        "_relay",
        "_service",
        "_settings",
        "_share",
        "_strand",
        "_watch",
    )

    def __init__(
        self,
        service: Service,
        client: Connection,
        peer: Endpoint | None,
        number: str,
    ) -> None:
        """Take over an accepted connection; *peer* is None on a unix socket."""
        self._service = service
        self._settings = service.listener.settings
        self._metrics = service.metrics
        self._client = client
        self._peer = peer
        self._header: ProxyHeader | None = None
        self._identity: Identity | None = None
        self._early = b""  # received, and not yet the guard's
        self._watch: HeaderWatch | None = None
        self._backend: OpenBackend | None = None
        self._guard: Guard | None = None
        self._relay: Relay | None = None
        self._phase = Phase.ADMIT
        self._outcome = Outcome.FAILED
        self._reason: Reason | None = None
        self._detail: str | None = None
        self._refused: tuple[Reason, ...] = ()
        self._backend_closed = False
        self._is_quiet = False  # its like was logged a moment ago
        self._share: str | None = None
        self._backend_port: int | None = None
        self._draining = False
        self._opened = time.monotonic()
        self._strand: Strand | None = None  # while a drain may interrupt it
        self._on_end: Callable[[Session], None]
        self._number = number
        self._bound_log: Any = None

    def start(self, on_end: Callable[["Session"], None]) -> None:
        """Serve the peer to the end, of which *on_end* hears."""
        self._on_end = on_end
        self._strand = Strand(self._run(), self._note_end)
        self._strand.resume()

    def _note_end(self, error: BaseException | None) -> None:
        if error is not None:
            self._log.error("session_failed", exc_info=error)
        self._on_end(self)

    @property
    def _log(self) -> Any:
        """The log, bound when it is first needed: most sessions write one line, without."""
        if self._bound_log is None:
            self._bound_log = self._service.log.bind(**self._bindings())
        return self._bound_log

    def _bindings(self) -> dict[str, str]:
        return {
            "session": self._number,
            "listener": self._settings.name,
            "peer": str(self._peer) if self._peer else "unix",
        }

    async def _run(self) -> None:
        self._metrics.sessions_open += 1
        try:
            farewell = await self._serve()
            self._strand = None  # a drain does not hurry the close
            await self._close(farewell)
        except Exception:  # noqa: BLE001 - a defect ends one session, not all
            self._log.exception("session_failed")
            self._outcome, self._reason = Outcome.FAILED, Reason.INTERNAL_ERROR
            if self._guard is None:
                self._client.send(replies.FAILED)
        finally:
            self._client.close()
            if self._backend is not None and not self._backend.connection.closed:
                self._backend.connection.close_in_background()
            if self._share is not None:
                self._service.shares.give_back(self._share)
            self._metrics.sessions_open -= 1
            self._account()
            # The relay knows us: without this only the garbage collector could free us both.
            self._relay = None

    def drain(self) -> None:
        """End as soon as no message is harmed by it."""
        if self._draining:
            return
        self._draining = True
        if self._relay is not None:
            self._relay.drain()
        elif self._strand is not None and not self._strand.is_running:
            self._strand.throw(asyncio.CancelledError())

    async def _serve(self) -> bytes:
        """Go through the phases; return what is still to be said to the client."""
        try:
            self._identity = await self._admit()
            self._take_share(self._identity)
            self._phase = Phase.OPEN
            self._backend = await self._open(self._identity)
            self._phase = Phase.RELAY
            if self._service.failing:
                self._service.note_success(self._log)
            await self._run_relay(self._identity, self._backend)
            return b""
        except _PeerLeft:
            self._outcome = Outcome.PROBED
            return b""
        except PeerError as error:
            return self._refuse(error)
        except ClientRefused as error:
            self._outcome, self._reason = Outcome.CLIENT_REFUSED, error.reason
            return error.reply.raw
        except BackendError as error:
            self._fail(error)
            return replies.BACKEND_UNAVAILABLE
        except asyncio.CancelledError:
            if not self._draining:
                raise
            self._outcome, self._reason = Outcome.SHUTDOWN, Reason.SHUTDOWN
            return replies.SHUTTING_DOWN

    # Admit: PROXY header required, or forbidden.

    async def _admit(self) -> Identity:
        if not self._service.is_listed(self._peer):
            self._watch = HeaderWatch()
            self._look_for_header()
            self._metrics.headers["none"] += 1
            return identify_peer(self._peer, self._client.local_endpoint())
        self._header = await self._read_header()
        self._metrics.headers[f"v{self._header.version}"] += 1
        identity = identify_claim(
            self._header,
            self._peer,
            self._client.local_endpoint,
            self._service.trust.believes,
        )
        if identity.check_only is not None:
            await self._wait_for_check_to_leave()
        return identity

    def _take_share(self, identity: Identity) -> None:
        """Count the session for its client; a health check counts for its proxy."""
        limit = self._service.sessions_per_client
        if not limit or identity.client is None:
            return
        key = client_key(identity.client.address)
        if not self._service.shares.take(key, limit):
            raise PeerError(
                Reason.TOO_MANY_FROM_CLIENT, f"more than {limit} sessions of one client"
            )
        self._share = key

    async def _read_header(self) -> ProxyHeader:
        """Read the header of a listed peer, and keep what came behind it."""
        data = self._receive_now() or b""  # a proxy sends it with the connection
        found = self._parse(data) if data else None
        if found is None:
            data, found = await self._wait_for_header(data)
        header, length = found
        self._early = data[length:]
        return header

    async def _wait_for_header(
        self, data: bytes
    ) -> tuple[bytes, tuple[ProxyHeader, int]]:
        """Return all that was received, *data* first, and the header that it starts with."""
        try:
            with Limit(self._client.deadlines, self._settings.header_timeout_s):
                while True:
                    chunk = await self._receive()
                    if not chunk and not data:
                        raise _PeerLeft
                    if not chunk:
                        raise ProxyHeaderError(
                            Reason.HEADER_INCOMPLETE,
                            f"closed {len(data)} octets into the PROXY header",
                        )
                    data += chunk
                    if (found := self._parse(data)) is not None:
                        return data, found
        except TimeoutError:
            raise ProxyHeaderError(
                Reason.HEADER_TIMEOUT,
                f"{len(data)} octets of a PROXY header within"
                f" {self._settings.header_timeout_s:g} s",
            ) from None

    def _parse(self, data: bytes) -> tuple[ProxyHeader, int] | None:
        return read_header(data, self._settings.header_max_octets)

    def _receive_now(self) -> bytes | None:
        """Return what is there, None for nothing yet; an end is the peer's leave."""
        try:
            data = self._client.receive_now()
        except OSError:
            raise _PeerLeft from None
        if data == b"":
            raise _PeerLeft
        return data

    async def _receive(self) -> bytes:
        try:
            return await self._client.receive()
        except OSError:
            raise _PeerLeft from None

    async def _wait_for_check_to_leave(self) -> None:
        with (
            contextlib.suppress(TimeoutError),
            Limit(self._client.deadlines, _CHECK_GRACE_S),
        ):
            data = await self._receive()
            if not data:
                raise _PeerLeft
            self._early += data

    def _look_for_header(self) -> None:
        """Look at what an unlisted peer has sent so far, without waiting for more."""
        assert self._watch is not None
        data = self._receive_now()
        if data is not None and self._watch.undecided:
            data = self._watch.admit(data)
        self._early += data or b""

    # Open: greeting, EHLO, XCLIENT, fresh greeting.

    async def _open(self, identity: Identity) -> OpenBackend:
        try:
            return await self._open_as(identity, self._ask_for_names(identity))
        except NamesRefused as error:
            self._log.warning("names_refused", detail=error.detail)
            return await self._open_as(identity, no_names)
        except BackendError:
            if self._watch is not None:
                self._look_for_header()  # who may not be here need not hear of the backend
            raise

    def _ask_for_names(self, identity: Identity) -> GetNames:
        """Begin to look the client's names up: the backend is being opened meanwhile."""
        resolver = self._service.resolver
        if resolver is None or identity.client is None or identity.check_only:
            return no_names
        return resolver.ask(
            identity.client.address, self._settings.resolve_timeout_s
        ).answer

    def _open_as(
        self, identity: Identity, get_names: GetNames
    ) -> Awaitable[OpenBackend]:
        listener = self._service.listener
        return open_backend(
            listener.backend,
            BackendLimits.of(listener),
            identity.client,
            identity.destination,
            get_names,
        )

    # Relay: until both directions are done.

    async def _run_relay(self, identity: Identity, backend: OpenBackend) -> None:
        if self._draining:
            raise asyncio.CancelledError
        if self._watch is not None and self._watch.undecided:
            self._look_for_header()
        self._guard = Guard(
            Rules(
                check_only=_CHECK_ONLY[identity.check_only]
                if identity.check_only
                else None,
                allow_plaintext_auth=self._settings.allow_plaintext_auth,
                starttls_offered=backend.starttls_offered,
            )
        )
        self._relay = Relay(
            self._client,
            backend.connection,
            self._guard,
            RelayLimits(self._settings.idle_timeout_s, self._settings.drain_timeout_s),
            self._note_refused,
        )
        if self._watch is not None and self._watch.undecided:
            self._relay.watch_first_octets(self._watch, self._refuse)
        self._backend_port = backend.local_port
        self._client.send(backend.greeting.raw)
        self._metrics.greeting_s.observe(time.monotonic() - self._opened)
        end = await self._relay.run(self._early, backend.early)
        self._judge_end(end, self._guard)

    def _note_refused(self, reason: Reason) -> None:
        """Count a command that was not sent on; say it once a session and reason."""
        self._metrics.refusals[reason] += 1
        if reason in self._refused:
            return
        self._refused += (reason,)
        if reason in _CHECK_ONLY:
            self._log.warning(
                "command_refused",
                reason=reason,
                hint="mail from a proxy that names no believable client: chained or"
                " address-translating? See docs/runbook.md",
                **self._claim(),
            )
        else:
            client = self._client_name()
            story = {"client": client} if client else {}
            self._log.info("command_refused", reason=reason, **story)

    def _judge_end(self, end: End, guard: Guard) -> None:
        """Say how the relay ended."""
        self._backend_closed = end is End.BACKEND_CLOSED
        checked = self._identity is not None and self._identity.check_only is not None
        self._reason = guard.end_reason
        if self._relay is not None and self._relay.cut_in is not None:
            self._outcome = Outcome.CUT
            self._detail = f"drain_timeout_s is over, in: {self._relay.cut_in}"
        elif self._reason is not None:
            self._outcome = _OUTCOMES.get(self._reason, Outcome.REFUSED)
        elif checked:
            self._outcome = Outcome.CHECKED
        elif end is End.CLIENT_LOST:
            self._outcome = Outcome.CLIENT_LOST
        else:
            self._outcome = Outcome.COMPLETED
        if self._outcome is Outcome.BACKEND_FAILED and self._relay is not None:
            self._report_backend(self._reason, self._relay.failure)
        elif self._outcome is Outcome.REFUSED and self._reason not in self._refused:
            self._metrics.refusals[str(self._reason)] += 1
        if b"XFORWARD" in guard.extensions:
            self._service.warn_once(
                self._log,
                "xforward_offered",
                hint="clients could forge log fields inside TLS; give the backend's"
                " service -o smtpd_authorized_xforward_hosts=",
            )

    # Ends.

    def _refuse(self, error: PeerError) -> bytes:
        """Note what the peer did; return the reply to it."""
        self._outcome, self._reason, self._detail = (
            Outcome.REFUSED,
            error.reason,
            error.detail,
        )
        self._metrics.refusals[error.reason] += 1
        self._refused += (error.reason,)
        self._report_refusal(error)
        if error.reason is Reason.TOO_MANY_FROM_CLIENT:
            return replies.TOO_MANY
        if error.reason is Reason.HEADER_FORBIDDEN:
            assert self._peer is not None  # a peer on a unix socket is listed
            return replies.header_forbidden(self._peer.host)
        if error.reason is Reason.HEADER_TIMEOUT:
            return replies.HEADER_TIMED_OUT
        return replies.HEADER_REFUSED

    def _report_refusal(self, error: PeerError) -> None:
        """Log it, once a source and minute: neither a proxy nor a stranger fills the disk."""
        limited = error.reason is Reason.TOO_MANY_FROM_CLIENT
        of = self._identity.client if limited and self._identity else self._peer
        source = client_key(of.address) if of else "unix"
        if not self._service.throttle.admits(error.reason, source, time.monotonic()):
            self._is_quiet = True
            return
        story = {"reason": error.reason, "detail": error.detail, **self._claim()}
        if limited:
            self._log.warning("client_limited", **story)
        elif error.reason in ORDINARY:
            self._log.info("header_refused", **story)
        else:
            self._log.warning("header_refused", **story)

    def _fail(self, error: BackendError) -> None:
        self._outcome, self._reason, self._detail = (
            Outcome.BACKEND_FAILED,
            error.reason,
            error.detail,
        )
        self._report_backend(error.reason, error)

    def _report_backend(
        self, reason: Reason | None, error: BackendError | None
    ) -> None:
        reason = reason or Reason.BACKEND_CLOSED
        self._metrics.refusals[reason] += 1
        self._metrics.backend_failures[reason] += 1
        detail = (
            error.detail if error is not None else "closed in the middle of a session"
        )
        self._service.report_failure(self._log, reason, detail)

    async def _close(self, farewell: bytes) -> None:
        """Take leave of both sides, so that each reads our last words."""
        self._client.send(farewell)
        self._leave_backend()
        may_hold_a_receipt = self._guard is not None and (
            self._guard.messages_accepted > 0 or self._guard.is_opaque
        )
        await self._client.close_gently(
            until_acknowledged_s=FINAL_REPLY_S if may_hold_a_receipt else 0.0
        )

    def _leave_backend(self) -> None:
        if self._backend is None:
            return
        connection = self._backend.connection
        guard = self._guard
        if guard is None or (guard.can_quit and not guard.backend_quitting):
            connection.send(b"QUIT\r\n")
        if self._backend_closed:
            connection.close()
        else:
            connection.close_in_background()

    def _claim(self) -> dict[str, str]:
        """Return whom the header claims to speak for, where it does."""
        source = self._header.source if self._header is not None else None
        return {"claimed": str(source)} if source is not None else {}

    def _account(self) -> None:
        """Count the session, and tell its story in one line."""
        metrics, client = self._metrics, self._client
        duration_s = time.monotonic() - self._opened
        metrics.sessions[self._settings.name, self._outcome] += 1
        metrics.octets["from_client"] += client.octets_received
        metrics.octets["to_client"] += client.octets_sent
        metrics.session_s.observe(duration_s)
        if self._guard is not None:
            metrics.messages_accepted += self._guard.messages_accepted
        check = self._identity is not None and self._identity.check_only is not None
        of_a_check = check and self._outcome is not Outcome.REFUSED
        log, story = self._service.log, self._story(duration_s)
        if self._is_quiet or of_a_check or self._outcome is Outcome.PROBED:
            log.debug("session_closed", **story)
        elif self._outcome is Outcome.CUT:
            log.warning("session_closed", **story)
        else:
            log.info("session_closed", **story)

    def _story(self, duration_s: float) -> dict[str, Any]:
        """Return what there is to be told of the session, and nothing that is unknown."""
        story: dict[str, Any] = {
            **self._bindings(),
            "client": self._client_name(),
            "phase": self._phase,
            "outcome": self._outcome,
            "reason": self._reason,
            "detail": self._detail,
            "duration_s": round(duration_s, 3),
            "octets_in": self._client.octets_received,
            "octets_out": self._client.octets_sent,
            "backend_port": self._backend_port,
        }
        for key in _OFTEN_UNKNOWN:
            if story[key] is None:
                del story[key]
        header, guard = self._header, self._guard
        if header is not None:
            story["header"] = f"v{header.version} {header.command}"
            story.update(header.log_details())
        if guard is not None:
            story["mode"] = _MODE_NAMES[guard.mode]
            story["messages"] = guard.messages_accepted
            if guard.last_code:
                story["last_code"] = guard.last_code
        return story

    def _client_name(self) -> str | None:
        if self._identity is None or self._identity.check_only is not None:
            return None
        return str(self._identity.client) if self._identity.client else None
