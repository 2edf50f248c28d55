"""Whom a session counts for, in the limits on one client's sessions and connections.

A health check counts for nobody, because nothing that strangers do may take it away: a listed
proxy sends LOCAL, or names its own address.  A claim counts for the claimed address, whether or not
it is believed, and never for the proxy.  A claim that is not believed may name anybody, so it is
counted apart from the real client with that address.
"""

from typing import Final

from proxyshim.addresses import Endpoint
from proxyshim.errors import Reason
from proxyshim.identity import Identity
from proxyshim.limits import client_key
from proxyshim.proxy_header import Command, ProxyHeader

# Clients that were refused for these reasons never get a session, and yet hold a place in
# ``sessions`` while they are closed carefully.  At most this many at a time do, under a key of
# their own.
TURNED_AWAY: Final = (
    Reason.TOO_MANY_CONNECTIONS,
    Reason.TOO_MANY_FROM_CLIENT,
    Reason.CLIENT_DENIED,
)
LINGERING: Final = "refused, and closing"
MAX_LINGERING: Final = 32

_NOT_BELIEVED: Final = "claim of "
_NO_CLIENT: Final = "no client, from "


def share_of(
    identity: Identity, header: ProxyHeader | None, peer: Endpoint | None
) -> str | None:
    """Return the key under which a session counts; None if it counts for nobody.

    *header* is None for a direct client; *peer* is None on a unix socket.
    """
    if identity.check_only is None:
        return client_key(identity.client.address) if identity.client else None
    assert header is not None
    if header.command is Command.LOCAL:
        return None
    claimed = header.source
    if identity.check_only is Reason.CLAIM_NOT_BELIEVED and claimed is not None:
        if peer is not None and claimed.address == peer.address:
            return None
        return _NOT_BELIEVED + client_key(claimed.address)
    # UNKNOWN and the like.  On a unix socket, this is how HAProxy's checks look.
    return _NO_CLIENT + client_key(peer.address) if peer else None
