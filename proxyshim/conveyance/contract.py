"""What a conveyance may assume, and what it must guarantee.

A *conveyance* is the way in which the backend learns who the client is.  Each has its module in
this folder and its row in ``BY_NAME``; nothing else in the program knows which of them a listener
uses.

It may assume:

- the identity is final: ``session/trust.py`` has decided it, and a check-only identity is the
  proxy's;
- nothing was sent to the client yet, and nothing of what the client sent was passed on;
- the caller closes the client, and answers it when an exception is raised.

It must guarantee:

- **no session without an identity**: it returns a result only when the backend runs as the
  client; in every other case it raises, and no byte from the client has reached the backend;
- **limits**: every wait has a time limit: the Dial's for a connection and for each reply;
- **no leftovers**: when it raises or is cancelled, its connections are closed, and a connection on
  which something was refused is never used again;
- **whose fault it is**: ``ClientRefused`` carries the MTA's reply for this client, to be relayed
  as it is; any other BackendError means that the client gets a 421.

``proxyshim check`` calls ``examine``, so the questions and verdicts about a conveyance belong to
it.  For whom a backend relays does not depend on the conveyance, so check asks that itself.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import ip_address
from typing import Final, Protocol

from proxyshim.addresses import Address
from proxyshim.backend.address import BackendAddress
from proxyshim.backend.dial import Dial
from proxyshim.config import Listener
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Finding
from proxyshim.identity import Identity
from proxyshim.net.stream import Stream
from proxyshim.smtp.replies import Reply
from proxyshim.smtp.xclient import NO_NAMES, Names

GetNames = Callable[[], Awaitable[Names]]
# Report something that an operator should fix, but that does not fail the session: event, detail.
Warn = Callable[[str, str], None]


async def no_names() -> Names:
    """Return no host names; used without a resolver."""
    return NO_NAMES


def no_warning(event: str, detail: str) -> None:
    """Discard the warning."""


class Need(Enum):
    """What a conveyance needs from this host: the systemd unit must permit it."""

    ANY_SOURCE = auto()  # to bind to addresses of other hosts: CAP_NET_RAW, and routes
    UNIX_SOCKET = auto()  # a unix socket as the backend


@dataclass(frozen=True, slots=True)
class Relayed:
    """A connection on which the backend runs as the client: the session goes on as a relay.

    If it is not *is_proven*, the backend may have ignored what names the client, and its answer to
    the next command shows whether it has; the guard lets nothing else pass before.
    """

    stream: Stream
    greeting: Reply  # for the client
    early: bytes = b""  # what the backend sent after its greeting
    starttls_offered: bool = False  # to us; what it offers the client may differ
    is_proven: bool = True
    address: BackendAddress | None = None  # of the backend

    @property
    def local_port(self) -> int | None:
        """Our port, by which the backend's log knows the connection; None on a unix socket."""
        local = self.stream.local_endpoint()
        return local.port if local else None


@dataclass(frozen=True, slots=True)
class Answered:
    """The backend greeted us, and nothing can be conveyed: we answer a health check ourselves.

    Only for a check-only session: where its peer has no address, or where a check must not
    reach the backend.
    """

    greeting: Reply  # for the client


@dataclass(frozen=True, slots=True)
class HandedOff:
    """The backend has the client's socket: nothing is left to do for the session."""

    receipt_s: float  # after how long the backend had it


class HandOffFailed(BackendError):  # noqa: N818
    """The backend has not taken the client's socket; *cause* is the error's name, as EAGAIN."""

    def __init__(self, reason: Reason, detail: str, cause: str) -> None:
        """Keep the *cause*, which the metrics count."""
        super().__init__(reason, detail)
        self.cause = cause


class ClientRefused(BackendError):  # noqa: N818
    """The MTA's reply to this client, which is relayed as it is."""

    def __init__(self, reply: Reply) -> None:
        """Keep the *reply*: what a direct client would have been greeted with."""
        super().__init__(Reason.CLIENT_REFUSED, reply.excerpt())
        self.reply = reply


# Two strangers for ``proxyshim check``: no host has these addresses (RFC 5737, RFC 3849).
STRANGER: Final[Address] = ip_address("192.0.2.1")
STRANGER_V6: Final[Address] = ip_address("2001:db8::1")


@dataclass(frozen=True, slots=True)
class Examined:
    """The result of an examination."""

    findings: Sequence[Finding]
    # The clients in whose name check then asks about relaying.  They do not include those that the
    # backend refuses, because they cannot relay, and those whose failure is among the findings.
    # There are none if no session can run.
    remaining: Sequence[Address]


class Conveyance(Protocol):
    """Makes the backend see the client.  Never returns a session without an identity.

    It is made for a listener, whose settings it may use, and it compares equal to one that
    conveys in the same way.  It keeps no state: what it learns about a backend belongs into the
    record of that backend's address (``backend/address.py``).
    """

    @property
    def needs_names(self) -> bool:
        """True if it sends the client's host names to the backend."""

    @property
    def leaves_right(self) -> bool:
        """True if the backend may obey us more than the client: the guard then begins strict.

        If False, the backend judges the client by its own address and takes no second word from
        us, so the guard only follows.
        """

    @property
    def first_octets_s(self) -> float | None:
        """Not None if it gives the client's socket away, so that we must not read ahead.

        A direct client's first octets are then awaited for so long, because they may be the start
        of a PROXY header, which must not reach the backend.
        """

    @property
    def needs(self) -> frozenset[Need]:
        """What it needs from this host."""

    def begin(self, dial: Dial) -> None:
        """Find out in the background, at the start and after a reload, what sessions need."""

    async def open(
        self,
        client: Stream | None,
        dial: Dial,
        identity: Identity,
        get_names: GetNames,
        warn: Warn,
    ) -> Relayed | HandedOff | Answered:
        """Convey *identity*.  Raises BackendError; ClientRefused for the MTA's own verdict.

        *client* is for a conveyance that gives its socket away.  It is None if ``proxyshim check``
        asks, which has no client; the result is then Relayed.  *get_names* waits for the client's
        names, and has its own time limit.
        """

    async def is_up(self, dial: Dial) -> bool:
        """Return True if the backend would take a client now.  Raises BackendError."""

    async def examine(
        self, dial: Dial, listeners: Sequence[Listener], clients: Sequence[Address]
    ) -> Examined:
        """Ask the backend, on connections of our own, whether this works and is safe.

        *listeners* are those that use this conveyance and this backend.  *clients* are the two
        strangers and addresses that a listed proxy may claim; ``asking.py`` opens sessions in
        their name.  It does not raise BackendError, because a failure is a finding.
        """
