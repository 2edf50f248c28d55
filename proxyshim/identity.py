"""Who the client of a session is: the one place where a claim is believed or not.

Pure: what only the running host knows (its own addresses, the backend's) comes as a predicate.
"""

from collections.abc import Callable
from dataclasses import dataclass

from proxyshim.addresses import Address, Endpoint
from proxyshim.errors import Reason
from proxyshim.proxy_header import ProxyHeader


@dataclass(frozen=True, slots=True)
class Identity:
    """What a session runs as.

    *client* is conveyed to the backend; None stands for a peer without an address, on a unix
    socket.  With *check_only* set, *client* is the proxy itself and nothing but a health check
    may come: the reason says what is wrong with the header.
    """

    client: Endpoint | None
    destination: Endpoint | None
    check_only: Reason | None = None


def identify_peer(peer: Endpoint | None, local: Endpoint | None) -> Identity:
    """Return the identity of a peer that sent no header: the kernel vouches for it."""
    return Identity(peer, local)


def identify_claim(
    header: ProxyHeader,
    proxy: Endpoint | None,
    local: Endpoint | None,
    is_believed: Callable[[Address], bool],
) -> Identity:
    """Return the identity that a listed *proxy*'s *header* claims, if *is_believed* agrees.

    *local* is our end of the proxy's connection.
    """
    claimed = header.source
    if claimed is None:
        return Identity(proxy, local, Reason.NO_CLIENT_ADDRESS)
    if not is_believed(claimed.address):
        return Identity(proxy, local, Reason.CLAIM_NOT_BELIEVED)
    return Identity(claimed, header.destination)


def is_unicast(address: Address) -> bool:
    """Tell whether *address* can be one host's on a network.

    Not so: loopback, unspecified (0.0.0.0/8, "this network", with it: RFC 791, 3.2),
    multicast and limited broadcast.
    """
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        return False
    if address.version == 4:
        return int(address) >> 24 != 0 and int(address) != 0xFFFFFFFF
    return True
