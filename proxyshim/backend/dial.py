"""Reaching the backend: its name, its addresses, and which of them to try."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from proxyshim.addresses import Address, SocketName, read_address
from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.config import Listener
from proxyshim.errors import BackendError, Reason
from proxyshim.limits import OUT_OF_DESCRIPTORS
from proxyshim.net.connect import connect_tcp, connect_unix
from proxyshim.net.fiber import run_in_task
from proxyshim.net.reactor import Reactor
from proxyshim.net.stream import Stream


@dataclass(frozen=True, slots=True)
class BackendLimits:
    """Time limits in seconds, and the name for our own EHLO."""

    ehlo_name: str
    connect_timeout_s: float
    reply_timeout_s: float

    @classmethod
    def from_listener(cls, listener: Listener) -> Self:
        """Return the limits that a *listener* sets for its backend."""
        settings = listener.settings
        return cls(
            listener.ehlo_name, settings.connect_timeout_s, settings.reply_timeout_s
        )


@dataclass(frozen=True, slots=True)
class BackendAddress:
    """One socket address of a backend."""

    family: int
    socket_address: object  # as the socket module wants it; a path for a unix socket

    @property
    def ip(self) -> Address | None:
        """The IP address; None of a unix socket."""
        if isinstance(self.socket_address, tuple):
            return read_address(self.socket_address[0])
        return None


class Dial:
    """Connects to the backend of one listener."""

    __slots__ = ("_known", "_reactor", "limits", "name")

    def __init__(
        self, reactor: Reactor, name: SocketName, limits: BackendLimits
    ) -> None:
        """Take the backend's *name*, as configured, and our limits towards it."""
        self._reactor = reactor
        self.name = name
        self.limits = limits
        self._known = _known_addresses(name)

    async def connect(self) -> BackendDialogue:
        """Connect, trying each of the backend's addresses.  Raises BackendError.

        Each address gets an equal share of the time that is left, so that a dead one leaves some
        for the next.
        """
        reactor = self._reactor
        until = reactor.time() + self.limits.connect_timeout_s
        failure = "has no address"
        addresses = self._known or await self._resolve_until(until)
        for number, address in enumerate(addresses):
            share_s = (until - reactor.time()) / (len(addresses) - number)
            try:
                with reactor.limit(share_s):
                    stream: Stream
                    if address.family == socket.AF_UNIX:
                        stream = await connect_unix(reactor, self.name.path)
                    else:
                        stream = await connect_tcp(
                            reactor, address.family, address.socket_address
                        )
            except TimeoutError:
                failure = f"no connection within {share_s:.3g} s"
            except OSError as error:
                failure = os.strerror(error.errno) if error.errno else str(error)
                if error.errno in OUT_OF_DESCRIPTORS:  # not the backend's fault
                    raise BackendError(Reason.OUT_OF_DESCRIPTORS, failure) from None
            else:
                return BackendDialogue(stream, self.limits.reply_timeout_s)
        raise self._unreachable(failure)

    async def ip_addresses(self) -> frozenset[Address]:
        """Return the backend's IP addresses: none on a unix socket, or while its name fails."""
        try:
            found = await self._resolve()
        except OSError:
            return frozenset()
        return frozenset(ip for each in found if (ip := each.ip) is not None)

    async def _resolve(self) -> Sequence[BackendAddress]:
        """Return every address of the backend.  Raises OSError."""
        loop = self._reactor.loop
        return self._known or [
            BackendAddress(family, socket_address)
            for family, _, _, _, socket_address in await run_in_task(
                loop,
                loop.getaddrinfo(
                    self.name.host, self.name.port, type=socket.SOCK_STREAM
                ),
            )
        ]

    async def _resolve_until(self, until: float) -> Sequence[BackendAddress]:
        try:
            with self._reactor.limit(until - self._reactor.time()):
                return await self._resolve()
        except TimeoutError:
            raise self._unreachable("no answer in time for its name") from None
        except OSError as error:
            raise self._unreachable(error.strerror or str(error)) from None

    def _unreachable(self, failure: str) -> BackendError:
        return BackendError(Reason.BACKEND_UNREACHABLE, f"{self.name}: {failure}")


def _known_addresses(name: SocketName) -> Sequence[BackendAddress]:
    """Return the one address of a path or an IP address; none of a host name."""
    if name.path:
        return (BackendAddress(socket.AF_UNIX, name.path),)
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, name.host)
        except OSError:
            continue
        return (BackendAddress(family, (name.host, name.port)),)
    return ()
