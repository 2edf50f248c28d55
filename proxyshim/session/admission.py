"""Admission: who is the client?  A PROXY header is required of a listed peer, forbidden to others.

Outcomes: an Identity; ``PeerLeft`` when nobody is left to answer; or a PeerError for a header
that is malformed, late, or from a peer that is not listed.

We cannot make an unlisted client wait for its greeting just because it might send PROXY.  So its
first octets are checked as they come, until they can no longer be the start of a header: we
check here what has already arrived, and the relay checks the rest with ``watch``.
"""

import contextlib
from typing import Final, NoReturn

from proxyshim.errors import ProxyHeaderError, Reason
from proxyshim.identity import Identity
from proxyshim.net.stream import Stream
from proxyshim.proxy_header import ProxyHeader, read_header
from proxyshim.proxy_header.watch import HeaderWatch
from proxyshim.session.record import SessionRecord
from proxyshim.session.shared import Shared
from proxyshim.session.trust import identify_claim, identify_peer

# A load balancer's check often disconnects right after its header.  We wait this long, so that
# the MTA does not see such a check; one that waits for the greeting does not notice.
_CHECK_GRACE_S: Final = 0.05
_PEEK_OCTETS: Final = 65_536  # more than the longest header


class PeerLeft(Exception):  # noqa: N818
    """The peer has disconnected, so nobody is left to answer."""


class Admission:
    """Admits one peer."""

    __slots__ = ("_client", "_record", "_shared", "early", "watch")

    def __init__(self, shared: Shared, client: Stream, record: SessionRecord) -> None:
        """Prepare for the *client* end of an accepted connection."""
        self._shared = shared
        self._client = client
        self._record = record
        self.early = b""  # received, and not yet seen by the guard
        # Set for an unlisted peer while its first octets may still be the start of a header.
        self.watch: HeaderWatch | None = None

    async def run(self) -> Identity:
        """Return the identity.  Raises PeerError and PeerLeft."""
        shared, record, client = self._shared, self._record, self._client
        headers = shared.reports.metrics.headers
        grace_s = shared.conveyance.first_octets_s
        if not shared.is_listed(record.peer):
            if grace_s is None:
                self.watch = HeaderWatch()
                self.check_first_octets()
            else:
                await self._await_first_octets(grace_s)
            headers["none"] += 1
            return identify_peer(record.peer, client.local_endpoint())
        read = self._read_header if grace_s is None else self._read_header_only
        record.header = header = await read()
        headers[f"v{header.version}"] += 1
        identity = identify_claim(
            header, record.peer, client.local_endpoint, shared.trust.believes
        )
        if identity.check_only is not None:
            await self._wait_for_check_to_leave()
        return identity

    @property
    def is_undecided(self) -> bool:
        """True while the octets of an unlisted peer may still become a PROXY header."""
        return self.watch is not None and self.watch.undecided

    def check_first_octets(self) -> None:
        """Check what an unlisted peer has sent so far, without waiting for more.

        Raises PeerError if it is a PROXY header, PeerLeft if the peer has disconnected.
        """
        if self.watch is None:
            return
        data = self._receive_now()
        if data is not None:
            self.early += self.watch.admit(data) if self.watch.undecided else data

    async def _read_header(self) -> ProxyHeader:
        """Read the header of a listed peer, and keep what came after it."""
        data = self._receive_now() or b""  # a proxy sends it with the connection
        found = self._parse(data) if data else None
        if found is None:
            data, found = await self._wait_for_header(data)
        header, length = found
        self._record.header_octets = length
        self.early = data[length:]
        return header

    async def _wait_for_header(
        self, data: bytes
    ) -> tuple[bytes, tuple[ProxyHeader, int]]:
        """Return everything received, *data* first, and the header at its start."""
        timeout_s = self._shared.listener.settings.header_timeout_s
        try:
            with self._client.reactor.limit(timeout_s):
                while True:
                    chunk = await self._receive()
                    if not chunk:
                        self._note_end(data)
                    data += chunk
                    if (found := self._parse(data)) is not None:
                        return data, found
        except TimeoutError:
            raise self._timed_out(data, timeout_s) from None

    # Where the backend gets the client's socket, we must not read what is meant for it.

    async def _read_header_only(self) -> ProxyHeader:
        """Read the header of a listed peer, and not one octet of what came after it."""
        client, data = self._client, b""
        timeout_s = self._shared.listener.settings.header_timeout_s
        try:
            with client.reactor.limit(timeout_s):
                while True:
                    chunk = self._peek()
                    if chunk is None:
                        await client.wait_readable()
                        continue
                    found = self._parse(data + chunk) if chunk else None
                    # An incomplete header is consumed as it comes, because all of it is header.
                    length = found[1] - len(data) if found else len(chunk)
                    if not chunk:
                        self._note_end(data)
                    data += client.receive_now(length) or b""
                    if found is not None:
                        self._record.header_octets = len(data)
                        return found[0]
        except TimeoutError:
            raise self._timed_out(data, timeout_s) from None

    async def _await_first_octets(self, grace_s: float) -> None:
        """Give an unlisted peer a moment to show that it sends a header.

        Raises PeerError if it does, PeerLeft if it has disconnected.
        """
        client = self._client
        with contextlib.suppress(TimeoutError), client.reactor.limit(grace_s):
            while True:
                data = self._peek()
                if data == b"":
                    raise PeerLeft
                watch = HeaderWatch()
                watch.admit(data or b"")
                if not watch.undecided or client.ended:
                    return
                await client.wait_readable()

    def _peek(self) -> bytes | None:
        try:
            return self._client.peek(_PEEK_OCTETS)
        except OSError:
            raise PeerLeft from None

    def _note_end(self, data: bytes) -> NoReturn:
        """Raise what the end of the stream after *data* comes to."""
        if not data:
            raise PeerLeft
        raise ProxyHeaderError(
            Reason.HEADER_INCOMPLETE, f"closed {len(data)} octets into the PROXY header"
        )

    def _timed_out(self, data: bytes, timeout_s: float) -> ProxyHeaderError:
        return ProxyHeaderError(
            Reason.HEADER_TIMEOUT,
            f"{len(data)} octets of a PROXY header within {timeout_s:g} s",
        )

    def _parse(self, data: bytes) -> tuple[ProxyHeader, int] | None:
        return read_header(data, self._shared.listener.settings.header_max_octets)

    def _receive_now(self) -> bytes | None:
        """Return what has arrived; None for nothing yet.  Raises PeerLeft at the end."""
        try:
            data = self._client.receive_now()
        except OSError:
            raise PeerLeft from None
        if data == b"":
            raise PeerLeft
        return data

    async def _receive(self) -> bytes:
        try:
            return await self._client.receive()
        except OSError:
            raise PeerLeft from None

    async def _wait_for_check_to_leave(self) -> None:
        with (
            contextlib.suppress(TimeoutError),
            self._client.reactor.limit(_CHECK_GRACE_S),
        ):
            data = await self._receive()
            if not data:
                raise PeerLeft
            self.early += data
