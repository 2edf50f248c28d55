"""Who the client of a session is: the one place where a claim is believed or not.

Pure: what only the running host knows (its own addresses, the backend's) comes as a predicate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

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
    find_local: Callable[[], Endpoint | None],
    is_believed: Callable[[Address], bool],
) -> Identity:
    """Return the identity that a listed *proxy*'s *header* claims, if *is_believed* agrees.

    *find_local* returns our end of the proxy's connection; it is asked for a health check only.
    """
    claimed = header.source
    if claimed is None:
        return Identity(proxy, find_local(), Reason.NO_CLIENT_ADDRESS)
    if not is_believed(claimed.address):
        return Identity(proxy, find_local(), Reason.CLAIM_NOT_BELIEVED)
    return Identity(claimed, header.destination)


# First octets.  0.0.0.0/8 is "this network": RFC 791, 3.2.
_NOT_UNICAST_IPV4: Final = frozenset({0, 127, *range(224, 240)})
_LIMITED_BROADCAST: Final = 0xFFFFFFFF
_IPV6_MULTICAST: Final = 0xFF
_IPV6_LOOPBACK: Final = 1


def is_unicast(address: Address) -> bool:
    """Tell whether *address*, folded, can be one host's on a network.

    Not so: loopback, unspecified, multicast and limited broadcast.  From the number, for the
    properties of ipaddress compare the address with networks.
    """
    value = int(address)
    if isinstance(address, IPv4Address):
        return value >> 24 not in _NOT_UNICAST_IPV4 and value != _LIMITED_BROADCAST
    return value >> 120 != _IPV6_MULTICAST and value > _IPV6_LOOPBACK
