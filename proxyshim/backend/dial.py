"""Reaching the backend: which of its addresses to try, and for how long.

One that refuses, is silent, or greets with other than 220 gives way to the next, and later sessions
then try it last for a while (``addresses.py``).  An ``Approach`` decides how to reach one address.
"""

import os
import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final, Protocol, Self

from proxyshim.backend.address import BackendAddress
from proxyshim.backend.backend_list import BackendList
from proxyshim.backend.dialogue import BackendDialogue, LastReply
from proxyshim.config import Listener
from proxyshim.errors import BackendError, BackendTimeout, Reason
from proxyshim.limits import shortage
from proxyshim.net.connect import connect_tcp, connect_unix
from proxyshim.net.fiber import run_in_task
from proxyshim.net.reactor import Reactor
from proxyshim.net.stream import Stream
from proxyshim.smtp.replies import Reply

_GREETS: Final = 220
_NO_FAULT_OF_THE_ADDRESS: Final = (
    Reason.OUT_OF_DESCRIPTORS,
    Reason.OUT_OF_RESOURCES,
    Reason.CLIENT_REFUSED,
    Reason.CLIENT_PORTS_EXHAUSTED,
    Reason.SOURCE_FORBIDDEN,
)


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


class Approach(Protocol):
    """How a connection to one address of the backend is made."""

    def fits(self, address: BackendAddress) -> bool:
        """Return True if the session can use *address*: if it is of the right IP version."""

    def prepare(self, address: BackendAddress) -> Awaitable[None] | None:
        """Return what has to be done before *address* is used; it has its own time limit.

        It raises BackendError if *address* must not be used.  None means that it is ready.
        """

    def connect(self, reactor: Reactor, address: BackendAddress) -> Awaitable[Stream]:
        """Connect, and send what has to come first.  Raises OSError, or BackendError."""

    def judge_greeting(self, greeting: Reply) -> None:
        """Raise BackendError unless *greeting* is one after which a session can begin.

        With the reason CLIENT_REFUSED it is about the client, so no other address is tried.
        """


class PlainApproach:
    """A connection as any client makes it."""

    def fits(self, address: BackendAddress) -> bool:
        """Return True: every address fits."""
        return True

    def prepare(self, address: BackendAddress) -> None:
        """Do nothing."""

    def connect(self, reactor: Reactor, address: BackendAddress) -> Awaitable[Stream]:
        """Connect to *address*.  Raises OSError."""
        if address.family == socket.AF_UNIX:
            return connect_unix(reactor, str(address.socket_address))
        return connect_tcp(reactor, address.family, address.socket_address)

    def judge_greeting(self, greeting: Reply) -> None:
        """Raise BackendError unless it is 220: we are the only client that the backend sees."""
        if greeting.code != _GREETS:
            raise BackendError(
                Reason.BACKEND_GREETING, f"greeted with: {greeting.excerpt()}"
            )


PLAIN: Final[Approach] = PlainApproach()


class Only(PlainApproach):
    """A connection to one of the addresses."""

    def __init__(self, address: BackendAddress) -> None:
        """Use *address*."""
        self._address = address

    def fits(self, address: BackendAddress) -> bool:
        """Return True for the one address."""
        return address is self._address


class Dial:
    """Connects to the backend of one listener."""

    __slots__ = ("addresses", "last_reply", "limits", "reactor")

    def __init__(
        self,
        reactor: Reactor,
        addresses: BackendList,
        limits: BackendLimits,
        last_reply: LastReply | None = None,
    ) -> None:
        """Take the backend's *addresses*, and our limits towards it.

        *last_reply* is shared by everybody who talks to this backend.
        """
        self.last_reply = last_reply or LastReply()
        self.reactor = reactor
        self.addresses = addresses
        self.limits = limits

    @property
    def name(self) -> str:
        """The backend, as configured; several of them separated by commas."""
        return self.addresses.name

    # These two return a coroutine instead of being one: each frame costs at every resume.

    def connect(self, approach: Approach = PLAIN) -> Awaitable[BackendDialogue]:
        """Connect to the first address that takes a connection.  Raises BackendError."""
        return self._try_each(approach, greeted=False)

    def open(self, approach: Approach = PLAIN) -> Awaitable[BackendDialogue]:
        """Connect to the first address that greets with 220, and keep that greeting.

        Raises BackendError.
        """
        return self._try_each(approach, greeted=True)

    async def _try_each(self, approach: Approach, *, greeted: bool) -> BackendDialogue:
        """Try the addresses in turn.  Each gets an equal share of the time that is left.

        So a dead one leaves some for the next.  One that has to greet gets as long as it may take
        to connect, while another is left.
        """
        reactor, limits, addresses = self.reactor, self.limits, self.addresses
        if not addresses.current:
            await self._wait_resolved()
        left_s = limits.connect_timeout_s
        number = sum(map(approach.fits, addresses.current))
        if not number:
            raise BackendError(
                Reason.NO_BACKEND_FOR_FAMILY,
                f"{self.name} has no address of the client's IP version",
            )
        patience_s = min(left_s, limits.reply_timeout_s / number)
        # Not the error itself: with its traceback it would refer to this frame.
        kind: type[BackendError] = BackendError
        reason, detail = Reason.BACKEND_UNREACHABLE, ""
        for address in addresses.in_order(approach.fits):
            try:
                if (preparation := approach.prepare(address)) is not None:
                    await preparation
                share_s, began = max(left_s, 0.0) / number, reactor.time()
                number -= 1
                try:
                    stream = await self._connect_to(address, approach, share_s)
                finally:
                    left_s -= reactor.time() - began
                dialogue = BackendDialogue(
                    stream, limits.reply_timeout_s, self.last_reply, address
                )
                if greeted:
                    wait_s = patience_s if number else limits.reply_timeout_s
                    await _take_greeting(dialogue, approach, wait_s)
            except BackendError as error:
                if error.reason in _NO_FAULT_OF_THE_ADDRESS:
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

    async def _connect_to(
        self, address: BackendAddress, approach: Approach, limit_s: float
    ) -> Stream:
        reactor = self.reactor
        try:
            with reactor.limit(limit_s):
                return await approach.connect(reactor, address)
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
            with self.reactor.limit(self.limits.connect_timeout_s):
                await run_in_task(self.reactor.loop, addresses.wait_settled())
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


async def _take_greeting(
    dialogue: BackendDialogue, approach: Approach, limit_s: float
) -> None:
    try:
        dialogue.greeted_with = greeting = await dialogue.greeting(limit_s)
        approach.judge_greeting(greeting)
    except BaseException:
        dialogue.stream.close()
        raise
