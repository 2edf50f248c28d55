"""What a conveyance may assume, and what it must guarantee.

A *conveyance* is the way in which the backend learns who the client is.  Each is one module in
this folder and one row in ``BY_NAME``; nothing else in the program knows which of them a listener
uses.

It may assume:

- the identity is final: ``session/trust.py`` has decided it, and a check-only identity is the
  proxy's;
- nothing was sent to the client yet, and nothing of what the client sent was passed on;
- the caller closes the client, and answers it when an exception is raised.

It must guarantee:

- **no session without an identity**: it returns a result only when the backend runs as the
  client; in every other case it raises, and no byte of the client's has reached the backend;
- **limits**: each step has the time limit of the Dial, so it returns or raises within their sum;
- **no leftovers**: when it raises or is cancelled, its connections are closed, and a connection on
  which something was refused is never used again;
- **whose fault it is**: ``ClientRefused`` carries the MTA's reply for this client, to be relayed
  as it is; any other BackendError means that the client gets a 421.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from proxyshim.backend.dial import Dial
from proxyshim.errors import BackendError, Reason
from proxyshim.identity import Identity
from proxyshim.net.stream import Stream
from proxyshim.smtp.replies import Reply
from proxyshim.smtp.xclient import NO_NAMES, Names

GetNames = Callable[[], Awaitable[Names]]
# Report something that an operator should fix, but that does not fail the session: event, detail.
Warn = Callable[[str, str], None]


async def no_names() -> Names:
    """Return that no host names are known: what a session without a resolver uses."""
    return NO_NAMES


def no_warning(event: str, detail: str) -> None:
    """Report nothing: for a caller that looks at the result alone."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """A connection on which the backend runs as the client: the session goes on as a relay."""

    stream: Stream
    greeting: Reply  # for the client
    early: bytes  # what the backend sent after its greeting
    starttls_offered: bool  # to us; what it offers the client may differ

    @property
    def local_port(self) -> int | None:
        """Our port, by which the backend's log knows the connection; None on a unix socket."""
        local = self.stream.local_endpoint()
        return local.port if local else None


class HandedOff:
    """The backend has the client's socket: nothing is left to do for the session."""

    __slots__ = ()


class ClientRefused(BackendError):  # noqa: N818
    """The MTA's reply to this client, which is relayed as it is."""

    def __init__(self, reply: Reply) -> None:
        """Keep the *reply*: what a direct client would have been greeted with."""
        super().__init__(Reason.CLIENT_REFUSED, reply.excerpt())
        self.reply = reply


class Conveyance(Protocol):
    """Makes the backend see the client.  Never returns a session without an identity."""

    @property
    def needs_names(self) -> bool:
        """True if it sends the client's host names to the backend."""

    async def open(
        self,
        client: Stream | None,
        dial: Dial,
        identity: Identity,
        get_names: GetNames,
        warn: Warn,
    ) -> Relayed | HandedOff:
        """Convey *identity*.  Raises BackendError; ClientRefused for the MTA's own verdict.

        *client* is for a conveyance that gives its socket away; None in a check, which has no
        client.  *get_names* waits for the
        client's names; it has its own time limit.
        """

    async def is_up(self, dial: Dial) -> bool:
        """Return True if the backend would take a client now.  Raises BackendError."""
