"""One address of a backend, and what we remember of it: failures, and the proofs of conveyances."""

import asyncio
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from proxyshim.addresses import Address, SocketName, read_address
from proxyshim.errors import Reason

# How long an address that failed is tried after the others.
AVOID_FAILED_S: Final = 30.0


class SecondHeader(Enum):
    """What a backend does with a second PROXY header."""

    REFUSED = auto()
    CLOSED_AT = auto()  # refused, and the connection closed
    OBEYED = auto()


@dataclass(slots=True)
class HeaderProof:
    """What our last test of an address with two PROXY headers has shown."""

    verdict: SecondHeader | None = None  # None: nothing yet
    tested_at: float = float("-inf")  # by the event loop's clock
    test: asyncio.Task[None] | None = None  # while one is under way


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an address can serve no client now, although the mail server there may work."""

    reason: Reason
    detail: str


@dataclass(slots=True)
class SourceProof:
    """What our last test of an address, with a connection from another host's, has shown."""

    fault: Fault | None = None
    # True if the address is this host's own, but not a loopback address; None: not known yet.
    is_own: bool | None = None
    # While a test is under way, or is to be repeated.
    test: asyncio.Task[None] | None = None
    # Set when the test has a result.
    has_result: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class PassProof:
    """What our last probe of a service that takes clients' sockets has shown."""

    fault: Fault | None = None
    tested_at: float = float("-inf")  # by the event loop's clock
    # While a test is under way, or is to be repeated.
    test: asyncio.Task[None] | None = None


class BackendAddress:
    """One socket address of a backend, and what we remember of it.

    Conveyances keep here what they have found out about it.
    """

    __slots__ = (
        "_failed_at",
        "family",
        "header_proofs",
        "ip",
        "pass_proof",
        "resolved_at",
        "socket_address",
        "source_proofs",
    )

    def __init__(self, family: int, socket_address: object) -> None:
        """Take an address as the socket module wants it; a path for a unix socket."""
        self.family = family
        self.socket_address = socket_address
        # The folded IP address; None of a unix socket.
        self.ip: Address | None = None
        if isinstance(socket_address, tuple):
            self.ip = read_address(socket_address[0])
        self.resolved_at = 0.0
        self._failed_at: float | None = None
        # By version of the PROXY header.
        self.header_proofs: dict[int, HeaderProof] = {}
        # By the mark of our packets.
        self.source_proofs: dict[int, SourceProof] = {}
        self.pass_proof = PassProof()

    def __str__(self) -> str:
        """Return the address for the log."""
        if self.ip is None:
            return f"unix:{self.socket_address}"
        return str(self.ip)

    @property
    def socket_name(self) -> str:
        """The address with its port, for the log."""
        if isinstance(self.socket_address, tuple):
            return str(SocketName(host=str(self), port=self.socket_address[1]))
        return str(self)

    def source_proof(self, mark: int) -> SourceProof:
        """Return what we know of connections with that *mark* from clients' addresses."""
        return self.source_proofs.setdefault(mark, SourceProof())

    @property
    def is_failing(self) -> bool:
        """True from a failure until the next success."""
        return self._failed_at is not None

    def is_avoided(self, now: float) -> bool:
        """Return True while the other addresses are tried first."""
        return self._failed_at is not None and now - self._failed_at < AVOID_FAILED_S

    def begin_test(self, now: float) -> None:
        """Let one session test it again; the others still avoid it meanwhile."""
        if self._failed_at is not None:
            self._failed_at = now

    def note_failure(self, now: float) -> None:
        """Note that it refused, was silent, or greeted with a failure."""
        self._failed_at = now

    def note_success(self) -> None:
        """Note that it greeted us."""
        self._failed_at = None
