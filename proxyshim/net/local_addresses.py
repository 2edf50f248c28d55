"""Is this address one of this host's own?"""

import errno
import socket
from typing import Final

from proxyshim.addresses import Address

_DISCARD_PORT: Final = 9  # RFC 863; nothing is sent to it
# No route, no such family, or (fe80::/10) no telling without a zone: then it is not ours.
# EACCES is a broadcast address; and out of descriptors or memory, nothing is believed.
_NOT_OURS: Final = frozenset(
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
    """Tell whether the kernel delivers *address* to this host, or broadcasts it.

    The kernel is asked each time, of a UDP socket that sends nothing.  So a list need not be kept
    up to date, a cluster address that just moved here counts at once, and
    net.ipv4.ip_nonlocal_bind, common on such hosts, does not mislead.  IPv6 is asked by the
    route: who connects to an address of ours has that address at both ends.  With IPv4 that is
    not so for the second address in a network, but there is an option that takes no others.
    Where the sandbox allows no such socket, the answer is False.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    # Not str(address): it writes ::192.0.2.1 otherwise than getsockname().
    text = socket.inet_ntop(family, address.packed)
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
            if family == socket.AF_INET and _can_multicast_from(probe, address):
                return True
            probe.connect((text, _DISCARD_PORT))
            return family == socket.AF_INET6 and probe.getsockname()[0] == text
    except OSError as error:
        return error.errno not in _NOT_OURS


def _can_multicast_from(probe: socket.socket, address: Address) -> bool:
    """Tell whether IP_MULTICAST_IF (ip(7)) takes an address, as it does those of this host."""
    try:
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, address.packed)
    except OSError:
        return False
    return True
