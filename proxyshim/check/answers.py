"""What a backend was asked by ``check``, and what it answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from proxyshim.addresses import Address, SocketName
from proxyshim.backend.dial import Dial
from proxyshim.config import Listener
from proxyshim.errors import BackendError
from proxyshim.smtp.extensions import read_extensions
from proxyshim.smtp.replies import Reply

# No host has these addresses (RFC 5737, RFC 3849).
STRANGER: Final[Address] = ip_address("192.0.2.1")
STRANGER_V6: Final[Address] = ip_address("2001:db8::1")

# How many of a listener's believed_claims we ask about.
MAX_BELIEVED_ASKED: Final = 12


@dataclass(frozen=True, slots=True)
class Claim:
    """An address that a listed proxy may claim for a client, and the range it stands for."""

    address: Address
    network: str
    explicit: bool  # from believed_claims


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend and the listeners in front of it."""

    name: SocketName
    dial: Dial
    listeners: tuple[Listener, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Hello:
    """The backend's replies to the shim; *shim* is the shim's address, if the socket has one.

    After a greeting other than 220 we send no EHLO; if EHLO was refused, we try LHLO.
    """

    greeting: Reply
    ehlo: Reply | None
    lhlo: Reply | None
    shim: Address | None

    @property
    def offered(self) -> Mapping[bytes, bytes]:
        """The extensions that the backend offers to the shim."""
        return read_extensions(self.ehlo) if self.ehlo else {}


@dataclass(frozen=True, slots=True)
class AsClient:
    """The backend's replies to a client; *relay* is its last reply to mail that needs relaying."""

    ehlo: Reply
    relay: Reply
    xclient: Reply

    @property
    def offered(self) -> Mapping[bytes, bytes]:
        """The extensions that the backend offers to this client."""
        return read_extensions(self.ehlo)


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers of a backend.  It was not asked as an address that is missing here."""

    hello: Hello | BackendError
    as_client: Mapping[Address, AsClient | BackendError]
    # The address next to the shim's own, if the backend was asked as that.
    neighbour: Address = STRANGER
