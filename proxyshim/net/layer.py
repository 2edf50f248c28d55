"""A stream on top of another one: what it leaves to the stream below."""

import socket
from collections.abc import Callable

from proxyshim.addresses import Endpoint
from proxyshim.net.reactor import Reactor
from proxyshim.net.stream import Stream


class Layer:
    """The part of the contract of ``stream.py`` that is the same on top of any stream.

    ``stream.py`` documents the methods, here and in the classes that are made from this one.
    """

    __slots__ = ("_below", "is_shared", "reactor")

    def __init__(self, below: Stream) -> None:
        """Put a stream on top of *below*, which nobody else uses from now on."""
        self._below = below
        self.reactor: Reactor = below.reactor
        self.is_shared = False

    @property
    def backlog_octets(self) -> int:
        return self._below.backlog_octets

    @property
    def write_failed(self) -> bool:
        return self._below.write_failed

    @property
    def paused(self) -> bool:
        return self._below.paused

    @property
    def closed(self) -> bool:
        return self._below.closed

    @property
    def was_reset(self) -> bool:
        return self._below.was_reset

    @property
    def descriptor(self) -> None:
        """None: no socket carries exactly these bytes."""

    @property
    def on_end(self) -> Callable[[], None] | None:
        return self._below.on_end

    @on_end.setter
    def on_end(self, on_end: Callable[[], None] | None) -> None:
        self._below.on_end = on_end

    def local_endpoint(self) -> Endpoint | None:
        return self._below.local_endpoint()

    async def wait_readable(self) -> None:
        await self._below.wait_readable()

    def pause_reading(self) -> None:
        self._below.pause_reading()

    def flush(self) -> None:
        self._below.flush()

    def detach(self) -> socket.socket:
        raise AssertionError("this stream has no socket of its own to give away")
