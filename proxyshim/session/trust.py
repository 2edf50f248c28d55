"""Trust: is the client that a PROXY header claims believed?  The only place that decides it.

A listed proxy may claim any client but those that would give it more rights than a stranger has:
loopback, this host, the backend, the proxy itself.  A claim that is not believed makes the session
check-only: it runs as the proxy, and only the five commands of a health check pass
(docs/explanation/security.md).

The rule follows the backend's name.  While its addresses are not known, nobody can tell whether a
claim is one of them, so no claim is believed: the session ends with a 421.
"""

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final, Protocol

from proxyshim.addresses import Address, Endpoint
from proxyshim.allowlist import Networks
from proxyshim.errors import BackendError, Reason
from proxyshim.identity import Identity
from proxyshim.net.local_addresses import is_local
from proxyshim.proxy_header import ProxyHeader

Believes = Callable[[Address, Endpoint | None], bool]


class BackendSet(Protocol):
    """The IP addresses of a backend, as they are now; see ``backend/addresses.py``."""

    def knows(self, version: int) -> bool:
        """Return True if its addresses of that IP version are known."""

    def __contains__(self, address: Address) -> bool:
        """Return True if *address* is one of them."""


class Trust:
    """The rule of one listener.

    *untrusted* and *believed* are its ``untrusted_claims`` and ``believed_claims``;
    *backend_addresses* are the IP addresses of its backend.
    """

    __slots__ = ("_backend_addresses", "_believed", "_untrusted")

    def __init__(
        self,
        untrusted: Networks,
        believed: Networks,
        backend_addresses: BackendSet,
    ) -> None:
        """Take the three sets of addresses; this host's own are asked of the kernel."""
        self._untrusted = untrusted
        self._believed = believed
        self._backend_addresses = backend_addresses

    def believes(self, claimed: Address, proxy: Endpoint | None) -> bool:
        """Return True if a header from *proxy* may name *claimed* as the client.

        *claimed* is folded; *proxy* is None on a unix socket.  Raises BackendError while the
        backend's addresses are not known.
        """
        if not self._backend_addresses.knows(claimed.version):
            raise BackendError(
                Reason.BACKEND_UNRESOLVED,
                "the backend's addresses are not known, so no claim can be believed",
            )
        if claimed in self._untrusted:
            return False
        if claimed in self._believed:
            return True
        return (
            is_unicast(claimed)
            and claimed not in self._backend_addresses
            and (proxy is None or claimed != proxy.address)
            and not is_local(claimed)
        )


def identify_peer(peer: Endpoint | None, local: Endpoint | None) -> Identity:
    """Return the identity of a peer that sent no header: the kernel vouches for it."""
    return Identity(peer, local)


def identify_claim(
    header: ProxyHeader,
    proxy: Endpoint | None,
    find_local: Callable[[], Endpoint | None],
    believes: Believes,
) -> Identity:
    """Return the identity that the *header* of a listed *proxy* gives a session.

    *find_local* returns our end of the proxy's connection; it is called only for a check-only
    session.  *believes* is ``Trust.believes``.
    """
    claimed = header.source
    if claimed is None:
        return Identity(proxy, find_local(), Reason.NO_CLIENT_ADDRESS)
    if not believes(claimed.address, proxy):
        return Identity(proxy, find_local(), Reason.CLAIM_NOT_BELIEVED)
    return Identity(claimed, header.destination)


# First octets of IPv4 addresses.  0.0.0.0/8 is "this network" (RFC 791, 3.2).
_NOT_UNICAST_IPV4: Final = frozenset({0, 127, *range(224, 240)})
_LIMITED_BROADCAST: Final = 0xFFFFFFFF
_IPV6_MULTICAST: Final = 0xFF
_IPV6_LOOPBACK: Final = 1


def is_unicast(address: Address) -> bool:
    """Return True if *address*, folded, can belong to one host on a network.

    False for loopback, unspecified, multicast and limited broadcast addresses.  We compare
    numbers, because the properties of ``ipaddress`` objects search lists of networks.
    """
    value = int(address)
    if isinstance(address, IPv4Address):
        return value >> 24 not in _NOT_UNICAST_IPV4 and value != _LIMITED_BROADCAST
    return value >> 120 != _IPV6_MULTICAST and value > _IPV6_LOOPBACK
