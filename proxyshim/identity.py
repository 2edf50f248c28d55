"""The identity of a session: the client that the backend should see."""

from dataclasses import dataclass

from proxyshim.addresses import Endpoint
from proxyshim.errors import Reason


@dataclass(frozen=True, slots=True)
class Identity:
    """The client of a session, as ``session/trust.py`` decided.

    We convey *client* to the backend.  It is None for a peer without an address, on a unix
    socket.  If *check_only* is set, *client* is the proxy itself and only a health check may
    follow; the reason states what is wrong with the header.

    *tlvs* are the types and values of the TLVs in the header that named the client, in their order.
    """

    client: Endpoint | None
    destination: Endpoint | None
    check_only: Reason | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()
    # Set once the client's session runs inside our TLS.
    tls: "TlsFacts | None" = None


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """What a TLS handshake has settled, in OpenSSL's names ("TLSv1.3")."""

    version: str
    cipher: str
    # What the client has asked for (SNI, RFC 6066, 3).
    server_name: str | None = None
    # The common name in a client certificate; we ask for one only where a CA is configured.
    client_name: str | None = None
    has_client_certificate: bool = False
