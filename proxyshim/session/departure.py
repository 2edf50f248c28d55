r"""Notices that the client leaves while the backend is being opened.

Nobody reads the client then: what it sends early stays in the kernel, so a client that sends a
lot has to wait.  But the reactor reports its end, and only then do we look, at one octet and
without taking it.  So a session whose client stays costs no system call.

A client has left if its connection was reset, or if it has ended its stream without having sent
anything after its PROXY header.  One that has sent something and then shut down its sending side
(``printf 'QUIT\r\n' | nc -N``) may wait for the replies, so it is served.  On TCP nobody can
tell it from one that has closed.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from proxyshim.net.stream import Stream
from proxyshim.session.record import SessionRecord


class ClientLeft(asyncio.CancelledError):
    """The client has left: nobody needs the backend.  Like any cancellation, it passes through."""


class DepartureWatch:
    """Within the block, a client that leaves ends it with ``ClientLeft``."""

    __slots__ = ("_client", "_interrupt", "_record")

    def __init__(
        self,
        client: Stream,
        record: SessionRecord,
        interrupt: Callable[[BaseException], None],
    ) -> None:
        """Prepare; *interrupt* raises an exception where the block waits."""
        self._client = client
        self._record = record
        self._interrupt = interrupt

    def __enter__(self) -> None:
        """Begin.  Raises ClientLeft if the client has left already."""
        if self._client.ended and self._has_left():
            raise ClientLeft
        self._client.on_end = self._look

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self._client.on_end = None

    def _look(self) -> None:
        if self._has_left():
            self._client.on_end = None
            self._interrupt(ClientLeft())

    def _has_left(self) -> bool:
        if self._client.was_reset:
            return True
        if not self._record.is_client_silent(self._client):
            return False
        try:
            return self._client.peek(1) == b""
        except OSError:
            return True
