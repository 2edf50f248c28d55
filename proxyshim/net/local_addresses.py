"""Is this address one of this host's own?"""

import errno
import socket
from typing import Final

from proxyshim.addresses import Address

_DISCARD_PORT: Final = 9  # RFC 863; nothing is sent to it
# These errors mean that the address is not this host's: there is no route, the address family is
# missing or forbidden, or (fe80::/10) the kernel cannot decide without a zone.  Any other error
# counts as local, so that the claim is not believed: EACCES means a broadcast address, and a
# shortage of descriptors or memory proves nothing.
_NOT_LOCAL: Final = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EINVAL,
        errno.EPERM,
    }
)


def is_local(address: Address) -> bool:
    """Return True if the kernel delivers *address* to this host, or broadcasts it.

    We ask the kernel each time, with a UDP socket that sends nothing.  So there is no list to keep
    up to date, a cluster address that has just moved here counts at once, and
    net.ipv4.ip_nonlocal_bind, which is common on such hosts, does not mislead us.

    For IPv6 we look at the route: a connection to one of this host's own addresses has the same
    address as its source.  For IPv4 that is not true of the second address in a network, so we
    use IP_MULTICAST_IF, which accepts only local addresses.

    If the sandbox forbids such a socket, the answer is False.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    # Not str(address), which writes ::192.0.2.1 differently from getsockname().
    text = socket.inet_ntop(family, address.packed)
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
            if family == socket.AF_INET and _can_multicast_from(probe, address):
                return True
            probe.connect((text, _DISCARD_PORT))
            return family == socket.AF_INET6 and probe.getsockname()[0] == text
    except OSError as error:
        return error.errno not in _NOT_LOCAL


def _can_multicast_from(probe: socket.socket, address: Address) -> bool:
    """Return True if IP_MULTICAST_IF (ip(7)) accepts *address*: it accepts only local ones."""
    try:
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, address.packed)
    except OSError:
        return False
    return True
