"""Does a backend obey a second PROXY header?  We ask before the first client does.

A server that obeys a PROXY header at any time lets a client name another client: in a message's
content or inside TLS, where no guard sees it.  So a conveyance by header uses an address of the
backend only after our own connection has shown that a second header is refused there.  We test at
the first use, again after a reload, and hourly; meanwhile the last result stands.

Servers differ in how they refuse, so the judgement is written for any.  A 5yz, 221 or 421 or a
close refuses the second header.  A 220, which is a new greeting, or silence while the server still
answers NOOP, obeys it.  Anything else shows nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from proxyshim.addresses import Endpoint
from proxyshim.backend.address import BackendAddress, HeaderProof, SecondHeader
from proxyshim.backend.dial import PLAIN, Dial
from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.errors import BackendError, Reason
from proxyshim.net.closing import close_in_background
from proxyshim.net.fiber import run_in_task
from proxyshim.net.reactor import Reactor
from proxyshim.net.stream import Stream
from proxyshim.smtp.replies import Reply

TESTED_FOR_S: Final = 3_600.0
# A server that is going to answer the second header has done so by then.
SILENCE_S: Final = 1.0
# How many replies to one header we read: one for each of its lines.
_MAX_REPLIES: Final = 20

# What we name ourselves on a unix socket; a server may refuse port 0.
_OUR_ADDRESS_UNKNOWN: Final = Endpoint(ip_address("127.0.0.1"), 49_152)
_QUITTING: Final = (221, 421)
# Replies to a command after a header that was not understood: RFC 5321, 4.2.4 for the first two.
# A server that expected another header may answer 503 to every command.
NOT_UNDERSTOOD: Final = (500, 502, 503)

# Writes the header that names a client, given our own end of the connection.
WriteHeader = Callable[[Endpoint], bytes]


def prove(
    dial: Dial, address: BackendAddress, version: int, write: WriteHeader
) -> Awaitable[None] | None:
    """Return None if *address* refuses a second header of that *version*; else a test to await.

    The test raises BackendError unless the address then is known to refuse it.
    """
    proof = address.header_proofs.setdefault(version, HeaderProof())
    loop = dial.reactor.loop
    is_due = loop.time() - proof.tested_at >= TESTED_FOR_S
    if is_due and proof.test is None:
        proof.test = loop.create_task(_test(dial, address, write, proof))
        proof.test.add_done_callback(lambda done: _note_end(proof, done))
    if proof.verdict in (SecondHeader.REFUSED, SecondHeader.CLOSED_AT):
        return None
    return _wait(loop, proof)


async def _wait(loop: asyncio.AbstractEventLoop, proof: HeaderProof) -> None:
    if proof.test is not None and proof.verdict is None:
        await run_in_task(loop, _finish(proof.test))
    if proof.verdict is SecondHeader.OBEYED:
        raise BackendError(
            Reason.SECOND_HEADER_OBEYED,
            "it obeys a second PROXY header, so a client could name another one",
        )
    if proof.verdict is None:
        raise BackendError(
            Reason.SECOND_HEADER_UNKNOWN,
            "its answer to a second PROXY header is neither a refusal nor a greeting",
        )


async def _finish(test: asyncio.Task[None]) -> None:
    """Wait for the *test*, which other sessions wait for too.  Raises BackendError."""
    await asyncio.shield(test)


def _note_end(proof: HeaderProof, test: asyncio.Task[None]) -> None:
    proof.test = None
    if not test.cancelled():
        test.exception()  # seen: those who wait get it, and without them nobody needs it


async def _test(
    dial: Dial, address: BackendAddress, write: WriteHeader, proof: HeaderProof
) -> None:
    verdict = await judge_second_header(dial, address, write)
    if verdict is not None:
        proof.verdict = verdict
        proof.tested_at = dial.reactor.loop.time()


async def judge_second_header(
    dial: Dial, address: BackendAddress, write: WriteHeader
) -> SecondHeader | None:
    """Send two headers to *address* and judge its answers; None if they show nothing.

    Raises BackendError if it does not even take the first one.
    """
    backend = await dial.open(OwnHeader(write, address))
    try:
        await _expect_understood(backend)
        backend.stream.send(write(own_endpoint(backend.stream)))
        return await _judge(backend)
    finally:
        if backend.stream.closed or backend.stream.ended:
            backend.stream.close()
        else:
            backend.stream.send(b"QUIT\r\n")
            close_in_background(backend.stream)


async def _expect_understood(backend: BackendDialogue) -> None:
    """Raise BackendError if the server took our first header for a command."""
    early = backend.take_rest()
    reply = None if early else await backend.command(b"NOOP\r\n")
    if reply is None or reply.code in NOT_UNDERSTOOD:
        said = repr(early[:60]) if reply is None else reply.excerpt()
        raise BackendError(
            Reason.HEADER_NOT_UNDERSTOOD, f"answered the PROXY header with: {said}"
        )


async def _judge(backend: BackendDialogue) -> SecondHeader | None:
    is_refused = False
    for _ in range(_MAX_REPLIES):
        reply = await _next_reply(backend)
        if reply is None:
            break
        if reply.code == 220:
            return SecondHeader.OBEYED
        if reply.code in _QUITTING:
            return SecondHeader.CLOSED_AT
        if reply.code < 500:
            return None
        is_refused = True
    if backend.stream.ended:
        return SecondHeader.CLOSED_AT
    if is_refused:
        return SecondHeader.REFUSED
    return await _judge_silence(backend)


async def _next_reply(backend: BackendDialogue) -> Reply | None:
    """Return the next reply; None if there is none within SILENCE_S, or a close."""
    with suppress(BackendError):
        return await backend.greeting(SILENCE_S)
    return None


async def _judge_silence(backend: BackendDialogue) -> SecondHeader | None:
    try:
        reply = await backend.command(b"NOOP\r\n")
    except BackendError as error:
        is_closed = error.reason is Reason.BACKEND_CLOSED
        return SecondHeader.CLOSED_AT if is_closed else None
    return SecondHeader.OBEYED if reply.code == 250 else None


def own_endpoint(stream: Stream) -> Endpoint:
    """Return our own end of a connection; on a unix socket, servers take us for 127.0.0.1."""
    return stream.local_endpoint() or _OUR_ADDRESS_UNKNOWN


class OwnHeader:
    """The approach to a backend with a header that names ourselves as the client."""

    def __init__(self, write: WriteHeader, only: BackendAddress | None = None) -> None:
        """Use *only* that address, if one is given."""
        self._write = write
        self._only = only

    def fits(self, address: BackendAddress) -> bool:
        """Return True for the one address, or for all."""
        return self._only is None or address is self._only

    def prepare(self, address: BackendAddress) -> None:
        """Do nothing: what we do as ourselves needs no proof."""

    async def connect(self, reactor: Reactor, address: BackendAddress) -> Stream:
        """Connect, and send the header.  Raises OSError."""
        stream = await PLAIN.connect(reactor, address)
        self.send_header(stream)
        return stream

    def send_header(self, stream: Stream) -> None:
        """Send the header that names our end of the connection."""
        stream.send(self._write(own_endpoint(stream)))

    def judge_greeting(self, greeting: Reply) -> None:
        """Raise BackendError unless it is 220."""
        PLAIN.judge_greeting(greeting)
