"""Reaching the backend: which of its addresses to try, and for how long.

One that refuses, is silent, or greets with other than 220 gives way to the next, and later sessions
then try it last for a while (``addresses.py``).
"""

import os
import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final, Self

from proxyshim.addresses import SocketName
from proxyshim.backend.addresses import BackendAddress, BackendAddresses
from proxyshim.backend.dialogue import BackendDialogue, LastReply
from proxyshim.config import Listener
from proxyshim.errors import BackendError, BackendTimeout, Reason
from proxyshim.limits import shortage
from proxyshim.net.connect import connect_tcp, connect_unix
from proxyshim.net.fiber import run_in_task
from proxyshim.net.reactor import Reactor
from proxyshim.net.stream import Stream

_GREETS: Final = 220
_OUR_SHORTAGES: Final = (Reason.OUT_OF_DESCRIPTORS, Reason.OUT_OF_RESOURCES)


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


class Dial:
    """Connects to the backend of one listener."""

    __slots__ = ("_reactor", "addresses", "last_reply", "limits")

    def __init__(
        self,
        reactor: Reactor,
        addresses: BackendAddresses,
        limits: BackendLimits,
        last_reply: LastReply | None = None,
    ) -> None:
        """Take the backend's *addresses*, and our limits towards it.

        *last_reply* is shared by everybody who talks to this backend.
        """
        self.last_reply = last_reply or LastReply()
        self._reactor = reactor
        self.addresses = addresses
        self.limits = limits

    @property
    def name(self) -> SocketName:
        """The backend, as configured."""
        return self.addresses.name

    # These two return a coroutine instead of being one: each frame costs at every resume.

    def connect(self) -> Awaitable[BackendDialogue]:
        """Connect to the first address that takes a connection.  Raises BackendError."""
        return self._try_each(greeted=False)

    def open(self) -> Awaitable[BackendDialogue]:
        """Connect to the first address that greets with 220; take that greeting.

        Raises BackendError.
        """
        return self._try_each(greeted=True)

    async def _try_each(self, *, greeted: bool) -> BackendDialogue:
        """Try the addresses in turn.  Each gets an equal share of the time that is left.

        So a dead one leaves some for the next.  One that has to greet gets as long as it may take
        to connect, while another is left.
        """
        reactor, limits, addresses = self._reactor, self.limits, self.addresses
        if not addresses.current:
            await self._wait_resolved()
        left_s = limits.connect_timeout_s
        number = len(addresses.current)
        patience_s = min(left_s, limits.reply_timeout_s / number)
        # Not the error itself: with its traceback it would refer to this frame.
        kind: type[BackendError] = BackendError
        reason, detail = Reason.BACKEND_UNREACHABLE, ""
        for address in addresses.in_order():
            share_s, began = max(left_s, 0.0) / number, reactor.time()
            number -= 1
            try:
                try:
                    stream = await self._connect_to(address, share_s)
                finally:
                    left_s -= reactor.time() - began
                dialogue = BackendDialogue(
                    stream, limits.reply_timeout_s, self.last_reply
                )
                if greeted:
                    wait_s = patience_s if number else limits.reply_timeout_s
                    await _take_greeting(dialogue, wait_s)
            except BackendError as error:
                if error.reason in _OUR_SHORTAGES:  # not the backend's fault
                    raise
                addresses.note_failure(address, error.detail)
                reason, detail = error.reason, error.detail
                if isinstance(error, BackendTimeout):
                    kind = BackendTimeout
            else:
                if address.is_failing:
                    addresses.note_success(address)
                return dialogue
        raise kind(reason, detail)

    async def _connect_to(self, address: BackendAddress, limit_s: float) -> Stream:
        reactor = self._reactor
        try:
            with reactor.limit(limit_s):
                if address.family == socket.AF_UNIX:
                    return await connect_unix(reactor, self.name.path)
                return await connect_tcp(
                    reactor, address.family, address.socket_address
                )
        except TimeoutError:
            failure = f"no connection within {limit_s:.3g} s"
            raise self._unreachable(failure, BackendTimeout) from None
        except OSError as error:
            failure = os.strerror(error.errno) if error.errno else str(error)
            if (reason := shortage(error)) is not None:
                raise BackendError(reason, failure) from None
            raise self._unreachable(failure) from None

    async def _wait_resolved(self) -> None:
        """Wait until the backend has an address; at once if its name could not be resolved."""
        addresses = self.addresses
        try:
            with self._reactor.limit(self.limits.connect_timeout_s):
                await run_in_task(self._reactor.loop, addresses.wait_settled())
        except TimeoutError:
            failure = "no answer in time for its name"
            raise self._unreachable(failure, BackendTimeout) from None
        if not addresses.current:
            raise self._unreachable(
                addresses.failure or "no answer in time for its name"
            )

    def _unreachable(
        self, failure: str, kind: type[BackendError] = BackendError
    ) -> BackendError:
        return kind(Reason.BACKEND_UNREACHABLE, f"{self.name}: {failure}")


async def _take_greeting(dialogue: BackendDialogue, limit_s: float) -> None:
    try:
        greeting = await dialogue.greeting(limit_s)
        if greeting.code != _GREETS:
            raise BackendError(
                Reason.BACKEND_GREETING, f"greeted with: {greeting.excerpt()}"
            )
    except BaseException:
        dialogue.stream.close()
        raise
