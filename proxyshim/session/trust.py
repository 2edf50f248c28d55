"""Trust: is the client that a PROXY header claims believed?  The only place that decides it.

A listed proxy may claim any client but those that would give it more rights than a stranger has:
loopback, this host, the backend, the proxy itself, and any other proxy.  A claim that is not
believed makes the session check-only: it runs as the proxy, and only the five commands of a health
check pass (docs/explanation/security.md).

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
    """The IP addresses of a backend, as they are now; see ``backend/backend_list.py``."""

    def knows(self, version: int) -> bool:
        """Return True if its addresses of that IP version are known."""

    def __contains__(self, address: Address) -> bool:
        """Return True if *address* is one of them."""


class Trust:
    """The rule of one listener.

    *untrusted* and *believed* are its ``untrusted_claims`` and ``believed_claims``; *listed* is
    its ``haproxy_hosts``; *backend_addresses* are the IP addresses of its backend.
    """

    __slots__ = (
        "_backend_addresses",
        "_believed_networks",
        "_believed_singly",
        "_listed_networks",
        "_listed_singly",
        "_untrusted",
    )

    def __init__(
        self,
        untrusted: Networks,
        believed: Networks,
        backend_addresses: BackendSet,
        listed: Networks,
    ) -> None:
        """Take the four sets of addresses; we ask the kernel for this host's own."""
        self._untrusted = untrusted
        self._believed_singly = believed.single_addresses()
        self._believed_networks = believed.larger_networks()
        self._backend_addresses = backend_addresses
        self._listed_singly = listed.single_addresses()
        self._listed_networks = listed.larger_networks()

    def believes(self, claimed: Address, proxy: Endpoint | None) -> bool:
        """Return True if a header from *proxy* may name *claimed* as the client.

        *claimed* is folded; *proxy* is None on a unix socket.  Raises BackendError for a claim that
        would be believed if the backend's addresses were known.

        No proxy is ever a client: behind an outer proxy that sends no header, every stranger
        appears with that proxy's address, and the MTA lets proxies relay.  ``believed_claims``
        overrides each rule for an address that it names singly.  A network in it overrides only
        one rule: that addresses of a listed network are not believed, for sites whose clients
        share that network.  It may hold loopback, this host, the backend or a proxy by accident.
        """
        if claimed in self._untrusted:
            return False
        if claimed not in self._believed_singly and (
            not is_unicast(claimed)
            or claimed in self._backend_addresses
            or claimed in self._listed_singly
            or (proxy is not None and claimed == proxy.address)
            or (
                claimed in self._listed_networks
                and claimed not in self._believed_networks
            )
            or is_local(claimed)
        ):
            return False
        if not self._backend_addresses.knows(claimed.version):
            raise BackendError(
                Reason.BACKEND_UNRESOLVED,
                "the backend's addresses are not known, so no claim can be believed",
            )
        return True


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
    return Identity(claimed, header.destination, tlvs=header.tlvs)


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
