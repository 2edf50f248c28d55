"""A PROXY header to the backend: the first octets of the connection name the client.

The header is written from the identity, never copied, and sent in one write, because several
servers read it with one read.  The MTA then greets the client as if it had connected directly, so
its first greeting is relayed, and a refusal in its place too.

A server that does not expect a header greets us all the same, answers the header as an unknown
command, and serves on as if we were the client, which may relay.  So the guard lets one harmless
command pass first, and its answer shows whether the header was understood (``smtp/proving.py``).
Only where an unexpected v2 header closes the connection is that not needed.

Source: PROXY spec, 2; docs/explanation/security.md.
"""

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Final, Self

from proxyshim.addresses import Address, Endpoint
from proxyshim.backend.address import BackendAddress, SecondHeader
from proxyshim.backend.dial import PLAIN, Dial
from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.config import Listener
from proxyshim.conveyance.contract import (
    Answered,
    Examined,
    GetNames,
    Need,
    Relayed,
    Warn,
)
from proxyshim.conveyance.header_check import examine
from proxyshim.conveyance.judgement import judge_first_greeting
from proxyshim.conveyance.second_header import OwnHeader, prove
from proxyshim.errors import BackendError, Reason
from proxyshim.identity import Identity, TlsFacts
from proxyshim.net.reactor import Reactor
from proxyshim.net.stream import Stream
from proxyshim.proxy_header.tlv import Tlv
from proxyshim.proxy_header.write import ssl_tlv, tlvs_to_pass_on, write_v1, write_v2
from proxyshim.smtp.replies import Reply

_V1: Final = 1
_V2: Final = 2


@dataclass(frozen=True, slots=True)
class HeaderConveyance:
    """The conveyances ``convey = "proxy-v1"`` and ``"proxy-v2"``."""

    version: int
    with_checksum: bool
    with_tlvs: bool
    with_ssl: bool

    needs_names: ClassVar[bool] = False
    leaves_right: ClassVar[bool] = False
    first_octets_s: ClassVar[float | None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()

    @classmethod
    def v1(cls, listener: Listener) -> Self:
        """Return the conveyance that sends v1 headers, which carry nothing but addresses."""
        return cls(_V1, with_checksum=False, with_tlvs=False, with_ssl=False)

    @classmethod
    def v2(cls, listener: Listener) -> Self:
        """Return the conveyance that sends v2 headers, as the *listener*'s settings want them."""
        settings = listener.settings
        return cls(
            _V2,
            settings.header_checksum,
            settings.header_tlvs,
            settings.header_ssl_tlv,
        )

    def write(
        self,
        source: Endpoint,
        *destinations: Endpoint | None,
        tlvs: Iterable[Tlv] = (),
        tls: TlsFacts | None = None,
    ) -> bytes:
        """Return the header that names *source* as the client, and says that *tls* protects it."""
        if self.version == _V1:
            return write_v1(source, *destinations)
        if not self.with_tlvs:
            tlvs = ()
        passed = tlvs_to_pass_on(tlvs, with_ssl=self.with_ssl and tls is None)
        if tls is not None:
            passed = chain([ssl_tlv(tls)], passed)
        return write_v2(
            source, *destinations, tlvs=passed, with_checksum=self.with_checksum
        )

    def write_own(self, own: Endpoint) -> bytes:
        """Return the header that names ourselves, at both ends."""
        return self.write(own, own)

    def begin(self, dial: Dial) -> None:
        """Do nothing: the first session finds out."""

    async def open(
        self,
        client: Stream | None,
        dial: Dial,
        identity: Identity,
        get_names: GetNames,
        warn: Warn,
    ) -> Relayed | Answered:
        """Open a connection that runs as the client; see the contract."""
        source = identity.client
        if source is None:
            return await self._greet_check(dial)
        backend = await dial.open(_Approach(self, dial, client, source, identity))
        if early := backend.take_rest():
            backend.stream.close()
            raise BackendError(
                Reason.HEADER_NOT_UNDERSTOOD,
                f"answered the PROXY header with: {early[:60]!r}",
            )
        assert backend.greeted_with is not None
        is_proven = self._is_closed_at(backend)
        return Relayed(
            backend.stream,
            backend.greeted_with,
            is_proven=is_proven,
            address=backend.address,
        )

    async def _greet_check(self, dial: Dial) -> Answered:
        """Return the backend's greeting for a health check, after a header that names us."""
        backend = await dial.open(OwnHeader(self.write_own))
        backend.quit()
        assert backend.greeted_with is not None
        return Answered(backend.greeted_with)

    def _is_closed_at(self, backend: BackendDialogue) -> bool:
        """Return True if the server closes the connection at a v2 header it does not expect."""
        assert backend.address is not None
        proof = backend.address.header_proofs[self.version]
        return self.version == _V2 and proof.verdict is SecondHeader.CLOSED_AT

    async def is_up(self, dial: Dial) -> bool:
        """Return True if the backend greets us after a header that names ourselves."""
        backend = await dial.open(OwnHeader(self.write_own))
        backend.quit()
        return True

    async def examine(
        self, dial: Dial, listeners: Sequence[Listener], clients: Sequence[Address]
    ) -> Examined:
        """Ask whether the backend understands the header, and whether others may send one."""
        return await examine(self, dial, clients, self.write_own)


class _Approach:
    """The approach to a backend in a session."""

    def __init__(
        self,
        conveyance: HeaderConveyance,
        dial: Dial,
        client: Stream | None,
        source: Endpoint,
        identity: Identity,
    ) -> None:
        self._conveyance = conveyance
        self._dial = dial
        own = client.local_endpoint() if client is not None else None
        self._header = conveyance.write(
            source,
            identity.destination,
            own,
            tlvs=identity.tlvs,
            tls=identity.tls,
        )

    def fits(self, address: BackendAddress) -> bool:
        return True

    def prepare(self, address: BackendAddress) -> Awaitable[None] | None:
        conveyance = self._conveyance
        return prove(self._dial, address, conveyance.version, conveyance.write_own)

    async def connect(self, reactor: Reactor, address: BackendAddress) -> Stream:
        stream = await PLAIN.connect(reactor, address)
        stream.send(self._header)
        return stream

    def judge_greeting(self, greeting: Reply) -> None:
        judge_first_greeting(greeting)
