"""One session: admit, convey, relay, close.

Every wait has a time limit, and each end has one outcome, one reply and one log
line (``ending.py``).  No path leads from a failure to a relay: a client that was not admitted, or
whose identity the backend did not take, gets a 421 or the MTA's own reply, and nothing else.
"""

import asyncio
import time
from collections.abc import Callable

from proxyshim.addresses import Endpoint
from proxyshim.conveyance.contract import (
    Answered,
    ClientRefused,
    GetNames,
    HandedOff,
    HandOffFailed,
    Relayed,
    no_names,
)
from proxyshim.errors import BackendError, PeerError, Reason
from proxyshim.identity import Identity
from proxyshim.net.closing import close_gently, close_in_background
from proxyshim.net.fiber import Fiber
from proxyshim.net.stream import Stream
from proxyshim.session.admission import Admission, PeerLeft
from proxyshim.session.answering import CHECK_ONLY, answer_check
from proxyshim.session.departure import ClientLeft, DepartureWatch
from proxyshim.session.record import Outcome, Phase, SessionRecord
from proxyshim.session.relay import End, Relay
from proxyshim.session.shared import Shared
from proxyshim.session.shares import (
    LINGERING,
    MAX_LINGERING,
    TURNED_AWAY,
    share_of,
)
from proxyshim.session.timing import RelayLimits
from proxyshim.smtp import replies
from proxyshim.smtp.guard import Guard, Rules


class Session:
    """A session, from accept to close, with both of its sockets."""

    __slots__ = (
        "_admission",
        "_backend",
        "_backend_closed",
        "_client",
        "_draining",
        "_fiber",
        "_on_end",
        "_record",
        "_relay",
        "_share",
        "_shared",
    )

    def __init__(
        self,
        shared: Shared,
        client: Stream,
        peer: Endpoint | None,
        number: str,
        on_end: Callable[["Session"], None],
    ) -> None:
        """Take over an accepted connection; *peer* is None on a unix socket.

        *on_end* is called at the end.
        """
        self._shared = shared
        self._client = client
        self._record = SessionRecord(number, shared.listener.settings.name, peer)
        self._admission: Admission | None = None
        self._backend: Stream | None = None  # while it has to be closed
        self._backend_closed = False
        self._relay: Relay | None = None
        self._share: str | None = None
        self._draining = False
        self._on_end = on_end
        # While a drain may interrupt it.
        self._fiber: Fiber | None = Fiber(self._run(), self._finish)

    def start(self) -> None:
        """Serve the peer until the end."""
        assert self._fiber is not None
        self._fiber.wake()

    def drain(self) -> None:
        """End the session as soon as that can no longer cut, duplicate or lose a message."""
        if self._draining:
            return
        self._draining = True
        if self._relay is not None:
            self._relay.drain()
        elif self._fiber is not None and not self._fiber.is_running:
            self._fiber.interrupt(asyncio.CancelledError())

    def _finish(self, error: BaseException | None) -> None:
        try:
            if error is not None:
                self._note_defect(error)
        finally:
            self._on_end(self)

    def _note_defect(self, error: BaseException) -> None:
        if isinstance(error, MemoryError):
            self._client.reactor.memory.note_error()
        self._shared.reports.defect(self._record, error)

    async def _run(self) -> None:
        metrics = self._shared.reports.metrics
        metrics.sessions_open += 1
        try:
            farewell = await self._serve()
            self._fiber = None  # a drain does not shorten the close
            await self._close(farewell)
        except Exception as error:  # noqa: BLE001 - a defect ends one session, not all
            self._note_defect(error)
            if self._record.guard is None:
                self._client.send(replies.FAILED)
        finally:
            metrics.sessions_open -= 1
            self._give_everything_back()

    def _give_everything_back(self) -> None:
        failure: Exception | None = None
        for step in (self._client.close, self._close_backend, self._report_end):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - it must not keep the other steps from us
                failure = error
        # Break the reference cycle session <-> relay, so that both are freed without a pass of
        # the garbage collector.
        self._relay = None
        if failure is not None:
            raise failure

    def _report_end(self) -> None:
        if self._share is not None:
            self._shared.shares.give_back(self._share)
        self._shared.reports.closed(self._record, self._client)

    async def _serve(self) -> bytes:
        """Go through the phases; return what is still to be sent to the client."""
        record, reports = self._record, self._shared.reports
        try:
            self._admission = Admission(self._shared, self._client, record)
            record.identity = identity = await self._admission.run()
            self._shared.denied.check(identity)
            if self._shared.are_clients_limited:
                self._count_for_client(identity)
            record.phase = Phase.OPEN
            match await self._convey(identity):
                case Relayed() as backend:
                    self._backend = backend.stream
                    record.phase = Phase.RELAY
                    if reports.failing:
                        reports.backend_recovered(record)
                    self._relay = self._begin_relay(identity, backend)
                    # Early data is passed on by now, and not kept for the session's life.
                    del backend
                    self._judge_end(await self._relay.wait(), self._relay)
                case HandedOff(receipt_s):
                    record.outcome = Outcome.HANDED_OVER
                    reports.metrics.handover_s.observe(receipt_s)
                    if reports.failing:
                        reports.backend_recovered(record)
                case Answered(greeting):
                    assert identity.check_only is not None
                    refusal = CHECK_ONLY[identity.check_only]
                    self._client.send(greeting.raw)
                    early, self._admission = self._admission.early, None
                    await answer_check(
                        self._client, early, refusal, self._shared, record
                    )
            return b""
        except PeerLeft:
            record.outcome = Outcome.PROBED
            return b""
        except PeerError as error:
            return reports.peer_refused(record, error)
        except ClientRefused as error:
            reports.ended(record, error.reason)
            return error.reply.raw
        except BackendError as error:
            if isinstance(error, HandOffFailed):
                reports.metrics.handover_failures[error.cause] += 1
            return reports.backend_failed(record, error.reason, error.detail)
        except ClientLeft:
            is_check = record.is_check
            record.outcome = Outcome.CHECKED if is_check else Outcome.CLIENT_LOST
            return b""
        except asyncio.CancelledError:
            if not self._draining:
                raise
            return reports.ended(record, Reason.SHUTDOWN)

    def _count_for_client(self, identity: Identity) -> None:
        """Count the session for its client.  Raises PeerError if that is over a limit."""
        shared, record = self._shared, self._record
        share = share_of(identity, record.header, record.peer)
        if share is None:
            return
        record.share = share
        if record.header is not None:
            # An unlisted peer was counted when it was accepted.
            shared.rates.check(share, time.monotonic())
        limit = shared.sessions_per_client
        if not limit:
            return
        if not shared.shares.take(share, limit):
            raise PeerError(
                Reason.TOO_MANY_FROM_CLIENT, f"more than {limit} sessions of one client"
            )
        self._share = share

    # Convey: the backend learns who the client is.

    async def _convey(self, identity: Identity) -> Relayed | HandedOff | Answered:
        shared = self._shared
        assert self._fiber is not None
        try:
            with DepartureWatch(self._client, self._record, self._fiber.interrupt):
                return await shared.conveyance.open(
                    self._client,
                    shared.dial,
                    identity,
                    self._look_up_names(identity),
                    self._warn,
                )
        except BackendError:
            # An unlisted peer that has sent a PROXY header gets that refusal, not a backend error.
            # One whose first octets were no header may wait for our reply, its own side shut down.
            assert self._admission is not None
            if self._admission.is_undecided:
                self._admission.check_first_octets()
            raise

    def _look_up_names(self, identity: Identity) -> GetNames:
        """Begin to look up the client's names, while the backend is being opened."""
        shared = self._shared
        if (
            shared.resolver is None
            or not shared.conveyance.needs_names
            or identity.client is None
            or identity.check_only
        ):
            return no_names
        timeout_s = shared.listener.settings.resolve_timeout_s
        question = shared.resolver.ask(identity.client.address, timeout_s)
        self._record.question = question
        return question.answer

    def _warn(self, event: str, detail: str) -> None:
        self._shared.reports.warn(self._record, event, detail)

    # Relay: until both directions are done.

    def _begin_relay(self, identity: Identity, backend: Relayed) -> Relay:
        record, settings = self._record, self._shared.listener.settings
        if self._draining:
            raise asyncio.CancelledError
        admission, self._admission = self._admission, None
        assert admission is not None
        if admission.is_undecided:
            admission.check_first_octets()
        check_only = identity.check_only
        record.guard = guard = Guard(
            Rules(
                check_only=CHECK_ONLY[check_only] if check_only else None,
                allow_plaintext_auth=settings.allow_plaintext_auth,
                starttls_offered=backend.starttls_offered,
                client_literal=_literal_of(identity.client),
                follows_only=not self._shared.conveyance.leaves_right,
                unproven=not backend.is_proven,
            )
        )
        limits = RelayLimits(
            settings.idle_timeout_s,
            settings.drain_timeout_s,
            settings.drain_opaque_timeout_s,
        )
        relay = Relay(
            self._client,
            backend.stream,
            guard,
            limits,
            self._refuse_command,
            self._refuse_header,
            self._shared.dial.last_reply,
        )
        record.backend_port = backend.local_port
        if backend.address is not None and len(self._shared.dial.addresses.current) > 1:
            record.backend = backend.address.socket_name
        self._client.send(backend.greeting.raw)
        self._shared.reports.metrics.greeting_s.observe(record.age_s)
        watch = admission.watch if admission.is_undecided else None
        relay.begin(admission.early, backend.early, watch)
        return relay

    def _refuse_command(self, reason: Reason) -> None:
        self._shared.reports.command_refused(self._record, reason)

    def _refuse_header(self, error: PeerError) -> bytes:
        return self._shared.reports.peer_refused(self._record, error)

    def _judge_end(self, end: End, relay: Relay) -> None:
        """Record how the relay ended."""
        record, reports = self._record, self._shared.reports
        guard = record.guard
        assert guard is not None
        self._backend_closed = end is End.BACKEND_CLOSED
        if relay.cut_in is not None:
            record.outcome, record.reason = Outcome.CUT, guard.end_reason
            record.detail = f"drain_timeout_s expired during: {relay.cut_in}"
        elif guard.end_reason is not None:
            detail = relay.failure.detail if relay.failure else guard.farewell
            reports.relay_ended(record, guard.end_reason, detail)
        elif record.is_check:
            record.outcome = Outcome.CHECKED
        elif record.is_client_silent(self._client) and (
            self._client.ended or end is End.CLIENT_LOST
        ):
            record.outcome = Outcome.PROBED
        elif end is End.CLIENT_LOST:
            record.outcome = Outcome.CLIENT_LOST
        else:
            record.outcome = Outcome.COMPLETED
        if self._shared.conveyance.leaves_right and b"XFORWARD" in guard.extensions:
            reports.warn_once(
                record,
                "xforward_offered",
                "proxyshim may still use XFORWARD, so clients could forge what is logged:"
                " sessions stay strict, without STARTTLS; add to the backend's service in"
                " master.cf: -o smtpd_authorized_xforward_hosts=",
            )

    # Close: both sides read our last reply.

    async def _close(self, farewell: bytes) -> None:
        self._client.send(farewell)
        if self._record.reason in TURNED_AWAY and not self._may_linger():
            self._client.flush()
            return
        self._quit_backend()
        final_octets = self._relay.final_octets if self._relay is not None else 0
        await close_gently(self._client, final_octets=final_octets)

    def _may_linger(self) -> bool:
        """Return True if a client that we turned away may still wait for a careful close.

        Otherwise a flood that we refuse would fill ``sessions`` all the same.
        """
        if not self._shared.shares.take(LINGERING, MAX_LINGERING):
            return False
        self._share = LINGERING
        return True

    def _quit_backend(self) -> None:
        if self._backend is not None:
            guard = self._record.guard
            # What the backend has not taken must not complete a message after the session, and a
            # client that is lost must not complete one at all.
            is_cut = (
                self._backend.backlog_octets > 0
                or self._record.outcome is Outcome.CLIENT_LOST
            ) and self._backend.drop_unsent() > 0
            if guard is None or not (
                is_cut or guard.backend_quitting or not guard.can_quit
            ):
                self._backend.send(b"QUIT\r\n")
            self._close_backend()

    def _close_backend(self) -> None:
        backend, self._backend = self._backend, None
        if backend is None:
            return
        if self._backend_closed:
            backend.close()
        else:
            close_in_background(backend)


def _literal_of(client: Endpoint | None) -> bytes:
    """Return a client's address literal (RFC 5321, 4.1.3); empty without an address."""
    if client is None:
        return b""
    tag = "IPv6:" if client.address.version == 6 else ""
    return f"[{tag}{client.host}]".encode("ascii")
