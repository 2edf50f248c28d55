"""The identity of a session: the client that the backend is to see."""

from dataclasses import dataclass

from proxyshim.addresses import Endpoint
from proxyshim.errors import Reason


@dataclass(frozen=True, slots=True)
class Identity:
    """The client of a session, as ``session/trust.py`` decided.

    *client* is conveyed to the backend.  None stands for a peer without an address, on a unix
    socket.  With *check_only* set, *client* is the proxy itself and only a health check may
    follow; the reason says what is wrong with the header.
    """

    client: Endpoint | None
    destination: Endpoint | None
    check_only: Reason | None = None
