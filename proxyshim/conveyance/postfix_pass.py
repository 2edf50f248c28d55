"""``convey = "postfix-pass"``: Postfix's smtpd gets the client's socket, and we are gone.

Postfix's own postscreen hands its clients to smtpd in this way: over the unix socket of a service
of the type "pass", with the client's address.  smtpd closes the connection when it has everything,
which is the receipt; then we close our copy of the socket.  Postfix does not promise this
interface, so the documents call it experimental.

The descriptor may reach smtpd even after we have given up.  So a client that gets our 421 has its
connection shut down in both directions, or smtpd would greet it as well.

A health check is never handed over: we answer it ourselves, after smtpd has greeted a probe.
"""

from collections.abc import Iterator, Sequence
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
    HandedOff,
    Need,
    Relayed,
    Warn,
)
from proxyshim.conveyance.judgement import judge_first_greeting
from proxyshim.conveyance.pass_attributes import choose_server, write_attributes
from proxyshim.conveyance.pass_check import examine
from proxyshim.conveyance.pass_probe import (
    ReceiptMissing,
    hand_over,
    note_traffic,
    open_own,
    open_pair,
)
from proxyshim.errors import BackendError, Reason
from proxyshim.identity import Identity
from proxyshim.net.stream import Stream

_IP_VERSIONS = {"ipv4": 4, "ipv6": 6}


@dataclass(frozen=True, slots=True)
class PostfixPass:
    """The conveyance ``convey = "postfix-pass"``; *families* are Postfix's IP versions."""

    families: frozenset[int]
    grace_s: float

    needs_names: ClassVar[bool] = False
    leaves_right: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.UNIX_SOCKET})

    @classmethod
    def for_listener(cls, listener: Listener) -> "PostfixPass":
        """Return the conveyance with the *listener*'s settings."""
        settings = listener.settings
        families = frozenset(_IP_VERSIONS[each] for each in settings.families)
        return cls(families, settings.pass_grace_s)

    @property
    def first_octets_s(self) -> float | None:
        """The setting ``pass_grace_s``; see the contract."""
        return self.grace_s

    def begin(self, dial: Dial) -> None:
        """Probe the service."""
        for address in dial.addresses.current:
            note_traffic(dial, address, self.families, at_once=True)

    async def open(
        self,
        client: Stream | None,
        dial: Dial,
        identity: Identity,
        get_names: GetNames,
        warn: Warn,
    ) -> Relayed | HandedOff | Answered:
        """Hand the client's socket over; see the contract."""
        [address] = dial.addresses.current
        if identity.client is None or identity.check_only:
            return await self._greet_check(dial, address)
        octets = self._attributes(identity, client)
        if client is None:
            return await self._open_for_check(dial, address, octets)
        if (fault := address.pass_proof.fault) is not None:
            raise BackendError(fault.reason, fault.detail)
        began = dial.reactor.time()
        assert client.descriptor is not None
        client.is_shared = True
        limit_s = dial.limits.reply_timeout_s
        try:
            await hand_over(dial, address, client.descriptor, octets, limit_s)
        except ReceiptMissing:
            note_traffic(dial, address, self.families, at_once=True)
            raise
        client.detach().close()
        note_traffic(dial, address, self.families, at_once=False)
        return HandedOff(dial.reactor.time() - began)

    def _attributes(self, identity: Identity, client: Stream | None) -> bytes:
        source = identity.client
        assert source is not None
        version = source.address.version
        if version not in self.families:
            raise BackendError(
                Reason.CLIENT_FAMILY_REFUSED,
                f"an IPv{version} client, and families has no IPv{version}",
            )
        ends = _ends_of_server(identity, client)
        server = choose_server(source, ends, self.families)
        return write_attributes(source, server)

    async def _greet_check(self, dial: Dial, address: BackendAddress) -> Answered:
        """Return smtpd's greeting for a health check, to a session of our own."""
        backend = await open_own(dial, address, self.families)
        try:
            greeting = await backend.greeting()
            judge_first_greeting(greeting)
        finally:
            backend.quit()
        return Answered(greeting)

    async def _open_for_check(
        self, dial: Dial, address: BackendAddress, octets: bytes
    ) -> Relayed:
        """Return a session in a client's name, for ``proxyshim check``."""
        backend = await open_pair(dial, address, octets, dial.limits.reply_timeout_s)
        try:
            greeting = await backend.greeting()
            judge_first_greeting(greeting)
        except BaseException:
            backend.stream.close()
            raise
        return Relayed(backend.stream, greeting, backend.take_rest(), address=address)

    async def is_up(self, dial: Dial) -> bool:
        """Return True if smtpd greets us."""
        [address] = dial.addresses.current
        await self._greet_check(dial, address)
        return True

    async def examine(
        self, dial: Dial, listeners: Sequence[Listener], clients: Sequence[Address]
    ) -> Examined:
        """Hand over probes, and compare the settings with Postfix's."""
        return await examine(self, self.families, dial, clients)


def _ends_of_server(
    identity: Identity, client: Stream | None
) -> Iterator[Endpoint | None]:
    """Yield the destination of the client's connection, then ours if the first will not do."""
    yield identity.destination
    if client is not None:
        yield client.local_endpoint()
