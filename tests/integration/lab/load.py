"""Clients that send mail all the time, some of it slowly, some of it large.

Each client delivers its messages as a mail server does.  If a message gets a 4xx, or the
connection ends before its final dot, the client tries again on a new connection.  After a
250 it does not.  So a message that the MTA has twice, or not at all, was doubled or lost
on the way.  ``faults`` records what must never happen: a refused or reset connection, or
a final dot without a reply.
"""

import asyncio
import contextlib
import hashlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from tests.integration.lab.netns import Host
from tests.integration.lab.programs import DEADLINE_S

STEP_S: Final = 20.0  # time limit for anything that a client waits for

_numbers = itertools.count(1)  # message numbers, unique over all loads


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of client: what it sends, and how."""

    name: str
    octets: int = 2_000
    pieces: int = 1  # number of pieces, with a pause after each
    pause_s: float = 0.0
    messages: int = 1  # in a connection
    header: str = ""  # of each message
    proxy_header: str = ""


QUICK: Final = Kind("quick", messages=3, pause_s=0.03)
BEHIND_PROXY: Final = Kind(
    "behind-proxy",
    pause_s=0.05,
    proxy_header="PROXY TCP4 203.0.113.9 198.51.100.25 4321 25\r\n",
)
SLOW: Final = Kind("slow", octets=4_000, pieces=10, pause_s=0.05)
LARGE: Final = Kind("large", octets=1_500_000, pieces=5, pause_s=0.02)
SLOWLY_ANSWERED: Final = Kind("slowly-answered", header="X-Answer-After: 0.4\r\n")
ALL_KINDS: Final = (QUICK, BEHIND_PROXY, SLOW, LARGE, SLOWLY_ANSWERED)


class TurnedAwayError(Exception):
    """The server refused for now: with another reply than expected, or by closing."""


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    digests: dict[str, str] = field(default_factory=dict)  # of the accepted messages
    greetings_s: list[float] = field(default_factory=list)
    turned_away: int = 0  # attempts that were refused for now
    faults: list[str] = field(default_factory=list)
    cut: list[str] = field(
        default_factory=list
    )  # sessions that were greeted, then ended


class Load:
    """Sends mail during the block; at its end, each client finishes its message."""

    def __init__(
        self,
        host: Host,
        to: tuple[str, int],
        sources: Callable[[Kind], str],
        kinds: Sequence[Kind] = ALL_KINDS,
    ) -> None:
        """Send from *host* to *to*; *sources* gives each kind of client its address."""
        self._host = host
        self._to = to
        self._sources = sources
        self._kinds = kinds
        self._stopping = False
        self._changed = threading.Condition()
        self.tally = Tally()
        self._thread = threading.Thread(target=self._run, name="load")

    def __enter__(self) -> Self:
        """Start sending."""
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Let each client finish the messages that it has, and stop."""
        self._stopping = True
        self._thread.join(2 * STEP_S)
        assert not self._thread.is_alive(), "a client does not end"

    def wait_for_more(self, number: int = 40) -> None:
        """Wait until *number* more messages are delivered."""
        with self._changed:
            wanted = len(self.tally.digests) + number
            enough = self._changed.wait_for(
                lambda: len(self.tally.digests) >= wanted, DEADLINE_S
            )
        assert enough, f"{number} more messages did not arrive: {self.tally.faults}"

    def _run(self) -> None:
        asyncio.run(self._send_all())

    async def _send_all(self) -> None:
        await asyncio.gather(*map(self._be_client, self._kinds))

    async def _be_client(self, kind: Kind) -> None:
        """Deliver one message after the other, each until the server accepts it."""
        waiting: list[bytes] = []
        while waiting or not self._stopping:
            while len(waiting) < kind.messages and not self._stopping:
                waiting.append(self._new_message(kind))
            try:
                await asyncio.wait_for(self._deliver(kind, waiting), 2 * STEP_S)
            except TurnedAwayError:
                self.tally.turned_away += 1
                await asyncio.sleep(0.02)  # back off for a moment, as clients do
            except (OSError, TimeoutError) as error:
                self.tally.faults.append(f"{kind.name}: {error!r}")
                await asyncio.sleep(0.1)

    def _new_message(self, kind: Kind) -> bytes:
        header = f"Message-ID: <{kind.name}-{next(_numbers)}@load>\r\n{kind.header}"
        line = b"x" * 76 + b"\r\n"
        return header.encode() + b"\r\n" + line * (kind.octets // len(line)) + b".\r\n"

    async def _deliver(self, kind: Kind, waiting: list[bytes]) -> None:
        began = time.monotonic()
        reader, writer = await self._connect(kind)
        try:
            writer.write(kind.proxy_header.encode())
            await _expect(reader, b"220")
            self.tally.greetings_s.append(time.monotonic() - began)
            try:
                await self._send_all_waiting(kind, waiting, reader, writer)
            except (TurnedAwayError, OSError) as error:
                self.tally.cut.append(f"{kind.name}: {error!r}")
                raise
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _send_all_waiting(
        self,
        kind: Kind,
        waiting: list[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        await _ask(reader, writer, b"EHLO client.example\r\n")
        while waiting:
            await self._send_message(kind, waiting, reader, writer)
        writer.write(b"QUIT\r\n")
        await reader.readline()

    async def _connect(
        self, kind: Kind
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        family = socket.AF_INET6 if ":" in self._to[0] else socket.AF_INET
        sock = await asyncio.to_thread(self._host.open_socket, family)
        try:
            sock.setblocking(False)
            sock.bind((self._sources(kind), 0))
            await asyncio.get_running_loop().sock_connect(sock, self._to)
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock)

    async def _send_message(
        self,
        kind: Kind,
        waiting: list[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        content = waiting[0]
        await _ask(reader, writer, b"MAIL FROM:<a@client.example>\r\n")
        await _ask(reader, writer, b"RCPT TO:<b@mx.test>\r\n")
        await _ask(reader, writer, b"DATA\r\n", b"354")
        size = -(-(len(content) - 3) // kind.pieces)
        for start in range(0, len(content) - 3, size):
            writer.write(content[start : min(start + size, len(content) - 3)])
            await writer.drain()
            if kind.pause_s:
                await asyncio.sleep(kind.pause_s)  # this makes the client slow
        message_id = content.split(b"\r\n", 1)[0].decode().removeprefix("Message-ID: ")
        writer.write(content[-3:])
        try:
            await _expect(reader, b"250")
        except (TurnedAwayError, OSError) as error:
            self.tally.faults.append(f"{message_id}: no reply to its dot: {error!r}")
            raise
        waiting.pop(0)
        with self._changed:
            self.tally.digests[message_id] = digest_of(content)
            self._changed.notify_all()


def digest_of(content: bytes) -> str:
    """Return the digest of a message, from its first header to its final dot."""
    return hashlib.sha256(content).hexdigest()


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    command: bytes,
    code: bytes = b"250",
) -> None:
    writer.write(command)
    await _expect(reader, code)


async def _expect(reader: asyncio.StreamReader, code: bytes) -> None:
    """Read one reply.  Raises TurnedAwayError if it has another code."""
    while True:
        line = await asyncio.wait_for(reader.readline(), STEP_S)
        if line[3:4] != b"-":
            break
    if not line.startswith(code):
        raise TurnedAwayError(repr(line))
