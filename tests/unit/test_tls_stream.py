"""A TLS stream keeps the contract of streams: reading, positions, ends, and what is no TLS."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from proxyshim.net.closing import close_gently
from proxyshim.net.connection import Connection
from proxyshim.net.reactor import Reactor
from proxyshim.net.tls import TlsStream
from proxyshim.net.tls_engine import HandshakeFailed
from tests.certificates import Authority

LIMIT_S = 10
MUCH = bytes(range(256)) * 8_000  # two megabytes: more than a socket's buffer takes


class Peer:
    """The client's side, in memory, so that a test decides which octets travel when."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="mx.test")
        self.sock = sock

    def records(self, octets: bytes = b"") -> bytes:
        """Return what the client would send for *octets*."""
        if octets:
            view = memoryview(octets)
            while view:
                view = view[self.tls.write(view) :]
        return self._out.read()

    def receive(self) -> None:
        data = self.sock.recv(65_536)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(self.records())
                self.receive()
            else:
                self.sock.sendall(self.records())
                return

    def read(self, count: int) -> bytes:
        """Read *count* octets, or up to close_notify."""
        octets = b""
        while len(octets) < count:
            try:
                part = self.tls.read(count - len(octets))
            except ssl.SSLWantReadError:
                self.receive()
            except ssl.SSLZeroReturnError:
                break
            else:
                if not part:
                    break
                octets += part
        return octets


@pytest.fixture(scope="module")
def contexts(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's and the client's context."""
    directory: Path = tmp_path_factory.mktemp("ca")
    ca = Authority(directory)
    files = ca.sign("mx.test")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    return server, ssl.create_default_context(cafile=str(ca.path))


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
Play = Callable[[TlsStream, Peer], Awaitable[None]]


def play(contexts: Contexts, script: Play, *, shakes_hands: bool = True) -> None:
    """Run *script* with both ends of a connection."""

    async def run() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.settimeout(LIMIT_S)
        reactor = Reactor(asyncio.get_running_loop())
        below = Connection(reactor, near)
        stream, peer = TlsStream(below, contexts[0], b""), Peer(contexts[1], far)
        with far, contextlib.closing(stream):
            async with asyncio.timeout(LIMIT_S):
                if shakes_hands:
                    client = asyncio.create_task(asyncio.to_thread(peer.shake_hands))
                    await stream.shake_hands()
                    await client
                await script(stream, peer)
        reactor.close()

    uvloop.run(run())


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("pieces", [1, 7, 1_000])
def test_octets_arrive_whole_however_the_records_are_split(
    contexts: Contexts, pieces: int
) -> None:
    async def script(stream: TlsStream, peer: Peer) -> None:
        sent = MUCH[:100_000]
        records = peer.records(sent)
        came = b""
        for at in range(0, len(records), pieces * 97):
            peer.sock.sendall(records[at : at + pieces * 97])
            while (data := stream.receive_now()) is not None:
                came += data
        while len(came) < len(sent):
            came += await stream.receive()
        assert came == sent
        assert stream.octets_received == len(sent)

    play(contexts, script)


def test_exact_reads_and_peeks(contexts: Contexts) -> None:
    async def script(stream: TlsStream, peer: Peer) -> None:
        peer.sock.sendall(peer.records(b"abcdef"))
        assert await stream.receive() == b"abcdef"
        peer.sock.sendall(peer.records(b"ghijkl"))
        await stream.wait_readable()
        assert stream.peek(2) == b"gh"
        assert stream.receive_now(3) == b"ghi"
        assert stream.octets_received == 9
        assert stream.receive_now() == b"jkl"
        assert stream.receive_now() is None

    play(contexts, script)


def test_what_was_decrypted_before_the_callbacks_reaches_them(
    contexts: Contexts,
) -> None:
    async def script(stream: TlsStream, peer: Peer) -> None:
        peer.sock.sendall(peer.records(b"early"))
        await stream.wait_readable()
        assert stream.peek(1) == b"e"
        came: asyncio.Queue[bytes] = asyncio.Queue()
        stream.start_reading(came.put_nowait, fail, lambda: None)
        assert await came.get() == b"early"
        stream.pause_reading()
        peer.sock.sendall(peer.records(b"later"))
        await asyncio.sleep(0.05)
        assert came.empty()
        stream.resume_reading()
        assert await came.get() == b"later"
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        peer.sock.sendall(peer.records())
        assert await came.get() == b""  # close_notify is the end, and comes once
        assert came.empty()

    play(contexts, script)


def test_much_is_sent_whole(contexts: Contexts) -> None:
    async def script(stream: TlsStream, peer: Peer) -> None:
        stream.send(MUCH)
        reading = asyncio.create_task(asyncio.to_thread(peer.read, len(MUCH)))
        assert await reading == MUCH
        assert stream.octets_given == len(MUCH)
        assert stream.octets_sent == len(MUCH)

    play(contexts, script)


def test_positions_are_those_inside_tls(contexts: Contexts) -> None:
    async def script(stream: TlsStream, peer: Peer) -> None:
        for _ in range(100):  # more than are told apart
            stream.send(b"0123456789")
        assert stream.octets_given == 1_000
        assert stream.octets_sent == 1_000
        stream.send(MUCH)
        given = 1_000 + len(MUCH)
        assert stream.octets_given == given
        assert stream.backlog_octets > 0
        assert stream.octets_sent == 1_000  # the record that does not fit is not sent
        reading = asyncio.create_task(asyncio.to_thread(peer.read, given))
        assert await reading == b"0123456789" * 100 + MUCH
        assert stream.octets_sent == given
        assert stream.octets_acknowledged() == given

    play(contexts, script)


def test_the_close_says_that_nothing_follows(contexts: Contexts) -> None:
    async def script(stream: TlsStream, peer: Peer) -> None:
        stream.send(b"bye")
        closing = asyncio.create_task(close_gently(stream, final_octets=3))
        assert await asyncio.to_thread(peer.read, 10) == b"bye"  # then close_notify
        peer.sock.shutdown(socket.SHUT_WR)
        await closing
        stream.send(b"never")
        assert stream.octets_given == 3

    play(contexts, script)


def test_nothing_passes_in_the_clear_before_the_handshake_is_done(
    contexts: Contexts,
) -> None:
    async def script(stream: TlsStream, peer: Peer) -> None:
        stream.send(b"421 in the clear\r\n")
        assert stream.octets_given == 0
        peer.sock.sendall(b"EHLO plain.test\r\n")
        with pytest.raises(HandshakeFailed) as caught:
            await stream.shake_hands()
        assert caught.value.cause == "not_tls"
        stream.send(b"421 in the clear\r\n")
        peer.sock.shutdown(socket.SHUT_WR)
        await close_gently(stream)
        assert b"421" not in peer.sock.recv(1_000)

    play(contexts, script, shakes_hands=False)


def test_what_is_no_tls_ends_the_stream(contexts: Contexts) -> None:
    async def script(stream: TlsStream, peer: Peer) -> None:
        good = peer.records(b"good")
        peer.sock.sendall(good + b"\x17\x03\x03\x00\x05wrong")
        assert await stream.receive() == b"good"
        assert await stream.receive() == b""

    play(contexts, script)


def test_a_changed_record_passes_nothing(contexts: Contexts) -> None:
    async def script(stream: TlsStream, peer: Peer) -> None:
        record = bytearray(peer.records(b"MAIL FROM:<>\r\n"))
        record[-1] ^= 1
        peer.sock.sendall(record)
        with pytest.raises(ConnectionResetError, match="TLS: "):
            await stream.receive()

    play(contexts, script)


def test_the_end_without_close_notify_is_an_end(contexts: Contexts) -> None:
    async def script(stream: TlsStream, peer: Peer) -> None:
        record = peer.records(b"half a record")
        peer.sock.sendall(record[:-1])
        peer.sock.shutdown(socket.SHUT_WR)
        assert await stream.receive() == b""

    play(contexts, script)
