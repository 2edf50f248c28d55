"""The client's own address: the backend sees a connection from the client.

That works with any server, because the server learns the client as always, from its socket.  It
needs a capability, policy routes, and a backend whose answers pass through this host
(docs/how-to/source-address.md).  A backend's address serves clients of its own IP version only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from proxyshim.addresses import Address, Endpoint
from proxyshim.backend.address import BackendAddress
from proxyshim.backend.dial import Dial
from proxyshim.config import Listener
from proxyshim.conveyance.contract import (
    Answered,
    Examined,
    GetNames,
    Need,
    Relayed,
    Warn,
)
from proxyshim.conveyance.judgement import judge_first_greeting
from proxyshim.conveyance.source_check import examine
from proxyshim.conveyance.source_socket import connect_from
from proxyshim.conveyance.source_test import begin_test
from proxyshim.errors import BackendError, BackendTimeout, Reason
from proxyshim.identity import Identity
from proxyshim.net.fiber import run_in_task
from proxyshim.net.reactor import Reactor
from proxyshim.net.stream import Stream
from proxyshim.smtp.replies import Reply


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """The conveyance ``convey = "source-address"``."""

    mark: int

    needs_names: ClassVar[bool] = False
    leaves_right: ClassVar[bool] = False
    first_octets_s: ClassVar[float | None] = None
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ANY_SOURCE})

    @classmethod
    def for_listener(cls, listener: Listener) -> "SourceAddress":
        """Return the conveyance with the *listener*'s ``source_mark``."""
        return cls(listener.settings.source_mark)

    def begin(self, dial: Dial) -> None:
        """Test each address of the backend."""
        for address in dial.addresses.current:
            begin_test(dial, address, self.mark)

    async def open(
        self,
        client: Stream | None,
        dial: Dial,
        identity: Identity,
        get_names: GetNames,
        warn: Warn,
    ) -> Relayed | Answered:
        """Open a connection from the client's address; see the contract."""
        source = identity.client
        if source is None:
            return await self._greet_check(dial)
        approach = _Approach(source, self.mark)
        try:
            backend = await dial.open(approach)
        except BackendTimeout as error:
            if error.reason is Reason.BACKEND_UNREACHABLE:
                await self._find_cause(dial, approach)
            raise
        except BackendError as error:
            if identity.check_only and error.reason is Reason.NO_BACKEND_FOR_FAMILY:
                # Its proxy is of the other IP version; the clients that it names may not be.
                return await self._greet_check(dial)
            raise
        assert backend.greeted_with is not None
        return Relayed(
            backend.stream,
            backend.greeted_with,
            backend.take_rest(),
            address=backend.address,
        )

    async def _find_cause(self, dial: Dial, approach: "_Approach") -> None:
        """After a connection that was not answered: raise BackendError if routes are missing."""
        suspects = list(filter(approach.fits, dial.addresses.current))
        for address in suspects:
            begin_test(dial, address, self.mark)
        for address in suspects:
            proof = address.source_proof(self.mark)
            await run_in_task(dial.reactor.loop, proof.has_result.wait())
            if proof.fault is not None:
                raise BackendError(proof.fault.reason, proof.fault.detail)

    async def _greet_check(self, dial: Dial) -> Answered:
        """Return the backend's greeting for a health check, to a connection of our own."""
        backend = await dial.open()
        backend.quit()
        assert backend.greeted_with is not None
        return Answered(backend.greeted_with)

    async def is_up(self, dial: Dial) -> bool:
        """Return True if the backend greets us, and its answers to clients come back."""
        if (fault := dial.addresses.source_fault(self.mark)) is not None:
            raise BackendError(fault.reason, fault.detail)
        backend = await dial.open()
        backend.quit()
        return True

    async def examine(
        self, dial: Dial, listeners: Sequence[Listener], clients: Sequence[Address]
    ) -> Examined:
        """Find out whether the backend answers to other hosts' addresses, and why not."""
        return await examine(self, self.mark, dial, listeners, clients)


class _Approach:
    """The approach to a backend in a session."""

    def __init__(self, client: Endpoint, mark: int) -> None:
        self._client = client
        self._mark = mark

    def fits(self, address: BackendAddress) -> bool:
        ip = address.ip
        return ip is not None and ip.version == self._client.address.version

    def prepare(self, address: BackendAddress) -> None:
        if (fault := address.source_proof(self._mark).fault) is not None:
            raise BackendError(fault.reason, fault.detail)

    async def connect(self, reactor: Reactor, address: BackendAddress) -> Stream:
        return await connect_from(reactor, address, self._client, self._mark)

    def judge_greeting(self, greeting: Reply) -> None:
        judge_first_greeting(greeting)
