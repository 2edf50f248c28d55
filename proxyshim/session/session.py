"""One session: admit, convey, relay, close.

Every wait has a time limit, and each end has one outcome, one reply and one log
line (``ending.py``).  No path leads from a failure to a relay: a client that was not admitted, or
whose identity the backend did not take, gets a 421 or the MTA's own reply, and nothing else.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from proxyshim.addresses import Endpoint
from proxyshim.conveyance.contract import (
    Answered,
    ClientRefused,
    HandedOff,
    HandOffFailed,
    Relayed,
)
from proxyshim.errors import BackendError, PeerError, Reason
from proxyshim.identity import Identity
from proxyshim.net.closing import close_gently, close_in_background
from proxyshim.net.fiber import Fiber
from proxyshim.net.stream import Stream
from proxyshim.session.admission import Admission, PeerLeft
from proxyshim.session.answering import CHECK_ONLY, answer_check
from proxyshim.session.client_names import look_up_names
from proxyshim.session.client_tls import (
    await_first_octets,
    await_line,
    begin_tls,
    refuse_plaintext,
    shake_hands,
)
from proxyshim.session.departure import ClientLeft, DepartureWatch
from proxyshim.session.record import End, Outcome, Phase, SessionRecord
from proxyshim.session.relay import Relay
from proxyshim.session.relaying import judge_end, make_guard
from proxyshim.session.shared import Shared, count_for_client
from proxyshim.session.shares import (
    LINGERING,
    MAX_LINGERING,
    TURNED_AWAY,
)
from proxyshim.session.timing import RelayLimits
from proxyshim.smtp import replies
from proxyshim.smtp.guard import Guard


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
                self._share = count_for_client(self._shared, record, identity)
            if self._shared.listener.settings.tls == "implicit":
                identity = await self._begin_inside_tls(identity)
            record.phase = Phase.OPEN
            match await self._convey(identity):
                case Relayed() as backend:
                    self._backend = backend.stream
                    record.phase = Phase.RELAY
                    if reports.failing:
                        reports.backend_recovered(record)
                    relay = self._begin_relay(identity, backend)
                    # Early data is passed on by now, and not kept for the session's life.
                    del backend
                    if (end := await relay.wait()) is End.STARTTLS:
                        relay = await self._go_on_inside_tls(identity)
                        end = await relay.wait()
                    self._backend_closed = end is End.BACKEND_CLOSED
                    judge_end(end, relay, record, self._client, self._shared)
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
            if record.header is None and self._shared.is_listed(record.peer):
                self._shared.silent.note(record, reports)
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
                    look_up_names(shared, self._record, identity),
                    self._warn,
                )
        except BackendError:
            # An unlisted peer that has sent a PROXY header gets that refusal, not a backend error.
            # One whose first octets were no header may wait for our reply, its own side shut down.
            if self._admission is not None and self._admission.is_undecided:
                self._admission.check_first_octets()
            raise

    def _warn(self, event: str, detail: str) -> None:
        self._shared.reports.warn(self._record, event, detail)

    # Relay: until both directions are done.

    def _begin_relay(
        self, identity: Identity, backend: Relayed, *, greets: bool = True
    ) -> Relay:
        """Begin to relay; it *greets* the client first, but not a second time."""
        record, shared = self._record, self._shared
        if self._draining:
            raise asyncio.CancelledError
        admission, self._admission = self._admission, None
        early, watch = b"", None
        if admission is not None:
            if admission.is_undecided:
                admission.check_first_octets()
            early = admission.early
            watch = admission.watch if admission.is_undecided else None
        record.guard = make_guard(shared, identity, backend)
        record.backend_port = backend.local_port
        if backend.address is not None and len(shared.dial.addresses.current) > 1:
            record.backend = backend.address.socket_name
        if greets:
            self._client.send(backend.greeting.raw)
            shared.reports.metrics.greeting_s.observe(record.age_s)
        relay = self._make_relay(backend.stream, record.guard)
        relay.begin(early, backend.early, watch)
        return relay

    def _make_relay(self, backend: Stream, guard: Guard) -> Relay:
        shared = self._shared
        self._relay = relay = Relay(
            self._client,
            backend,
            guard,
            RelayLimits.from_listener(shared.listener),
            self._refuse_command,
            self._refuse_header,
            shared.dial.last_reply,
        )
        return relay

    def _refuse_command(self, reason: Reason) -> None:
        self._shared.reports.command_refused(self._record, reason)

    def _refuse_header(self, error: PeerError) -> bytes:
        return self._shared.reports.peer_refused(self._record, error)

    # Our own TLS.

    async def _begin_inside_tls(self, identity: Identity) -> Identity:
        """Begin TLS before anything else."""
        admission = self._admission
        assert admission is not None
        await await_first_octets(self._shared, self._client, admission)
        early, admission.early = admission.early, b""
        return await self._shake_hands(identity, early)

    async def _shake_hands(self, identity: Identity, early: bytes) -> Identity:
        self._client = stream = begin_tls(self._shared, self._client, early)
        await shake_hands(self._shared, stream, self._record)
        self._record.identity = identity = replace(identity, tls=self._record.tls)
        return identity

    async def _go_on_inside_tls(self, identity: Identity) -> Relay:
        """Begin TLS after STARTTLS, and then to relay inside it."""
        guard, backend = self._record.guard, self._backend
        assert guard is not None
        assert guard.tls is not None
        assert backend is not None
        self._relay = None  # a drain ends the session between the two relays
        if self._draining:
            raise asyncio.CancelledError
        refuse_plaintext(self._client)
        self._client.send(replies.READY_FOR_TLS)
        self._client.flush()
        identity = await self._shake_hands(identity, b"")
        # A server that takes XCLIENT also takes a second EHLO, which resets it; others may refuse
        # that, and a PROXY header has to report TLS.
        if guard.tls.left_state or not self._shared.conveyance.leaves_right:
            return await self._begin_again(identity, guard)
        guard.begin_tls()
        relay = self._make_relay(backend, guard)
        relay.begin(b"", b"", None)
        return relay

    async def _begin_again(self, identity: Identity, guard: Guard) -> Relay:
        """Let the backend forget what was said before TLS: with a new connection.

        The old one ends first, so that the client is not counted twice.
        """
        record = self._record
        record.messages_before += guard.messages_accepted
        record.guard, record.phase = None, Phase.OPEN
        assert self._backend is not None
        self._backend.send(b"QUIT\r\n")
        await close_gently(self._backend)
        self._backend = None
        try:
            backend = await self._convey(identity)
        except BackendError:
            await await_line(self._client, self._shared)  # which is answered with it
            raise
        assert isinstance(backend, Relayed)
        self._backend, record.phase = backend.stream, Phase.RELAY
        return self._begin_relay(identity, backend, greets=False)

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
