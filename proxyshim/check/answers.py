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

# Nobody has these addresses (RFC 5737, RFC 3849).
STRANGER: Final[Address] = ip_address("192.0.2.1")
STRANGER_V6: Final[Address] = ip_address("2001:db8::1")

MAX_BELIEVED_ASKED: Final = 12  # of a listener's believed_claims


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
    """What the backend says to the shim, *shim* being our address there if it has one.

    Behind a greeting that is no 220 there is no EHLO; LHLO is tried when EHLO was refused.
    """

    greeting: Reply
    ehlo: Reply | None
    lhlo: Reply | None
    shim: Address | None

    @property
    def offered(self) -> Mapping[bytes, bytes]:
        """Return what it offers us."""
        return read_extensions(self.ehlo) if self.ehlo else {}


@dataclass(frozen=True, slots=True)
class AsClient:
    """What the backend says to a client; *relay* is its last word to mail for elsewhere."""

    ehlo: Reply
    relay: Reply
    xclient: Reply

    @property
    def offered(self) -> Mapping[bytes, bytes]:
        """Return what it offers this client."""
        return read_extensions(self.ehlo)


@dataclass(frozen=True, slots=True)
class Answers:
    """All that a backend was asked.  An address that is missing was not."""

    hello: Hello | BackendError
    as_client: Mapping[Address, AsClient | BackendError]
    neighbour: Address = STRANGER  # of the shim's own address, when that was asked
