"""A mail server that takes XCLIENT, accepts every message, and counts how often.

A message can delay its own reply: with ``X-Answer-After: 0.3`` the server waits that many
seconds between the final dot and the reply.
"""

import asyncio
import hashlib
import re
import socket
import threading
from collections import Counter
from typing import Self

from tests.integration.lab.programs import DEADLINE_S

_EXTENSIONS = b"250-mx.test\r\n250-PIPELINING\r\n"
_OFFER = (
    b"250 XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT REVERSE_NAME\r\n"
)
_HEADER = re.compile(rb"^(Message-ID|X-Answer-After): (.*)\r$", re.M)


class CountingMta:
    """Serves a listening socket in a thread until the end of the block."""

    def __init__(self, listening: socket.socket) -> None:
        """Take over the socket."""
        self._socket = listening
        self._changed = threading.Condition()
        self.connections = 0
        # By Message-ID: how often a message was accepted, and its digest.
        self.accepted: Counter[str] = Counter()
        self.digests: dict[str, str] = {}
        self._dots: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="mta")

    def __enter__(self) -> Self:
        """Start serving."""
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)

    def wait_for_dot(self, message_id: str) -> None:
        """Wait until that message has come completely.  Its reply may come later."""
        with self._changed:
            came = self._changed.wait_for(lambda: message_id in self._dots, DEADLINE_S)
        assert came, f"{message_id} did not come completely"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._socket.setblocking(False)
        start = (
            asyncio.start_unix_server
            if _is_unix(self._socket)
            else asyncio.start_server
        )
        server = self._loop.run_until_complete(
            start(self._serve, sock=self._socket, limit=2**22, backlog=256)
        )
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        try:
            writer.write(b"220 mx.test ready\r\n")
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a client that vanished
        finally:
            writer.close()

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        offer = True  # until it has been used
        while line := await reader.readline():
            verb = line.split()[0].upper() if line.split() else b""
            if verb == b"EHLO":
                writer.write(_EXTENSIONS + (_OFFER if offer else b"250 SIZE 0\r\n"))
            elif verb == b"XCLIENT" and offer:
                offer = False
                writer.write(b"220 mx.test at your service\r\n")
            elif verb == b"DATA":
                writer.write(b"354 go on\r\n")
                content = await reader.readuntil(b"\r\n.\r\n")
                await self._accept(content)
                writer.write(b"250 2.0.0 accepted\r\n")
            elif verb == b"QUIT":
                writer.write(b"221 2.0.0 bye\r\n")
                return
            elif verb in (b"MAIL", b"RCPT", b"RSET", b"NOOP", b"HELO"):
                writer.write(b"250 2.0.0 ok\r\n")
            else:
                writer.write(b"502 5.5.2 what?\r\n")
            await writer.drain()

    async def _accept(self, content: bytes) -> None:
        """Count the message after its delay.  From then on it is accepted."""
        header = dict(_HEADER.findall(content[:2000]))
        message_id = header[b"Message-ID"].decode()
        self._note_dot(message_id)
        await asyncio.sleep(float(header.get(b"X-Answer-After", 0)))
        self.accepted[message_id] += 1
        self.digests[message_id] = hashlib.sha256(content).hexdigest()

    def _note_dot(self, message_id: str) -> None:
        with self._changed:
            self._dots.add(message_id)
            self._changed.notify_all()


def _is_unix(sock: socket.socket) -> bool:
    return sock.family == socket.AF_UNIX
