"""Is this address one of this host's own?"""

import errno
import socket

from proxyshim.addresses import Address

_DISCARD_PORT = 9  # RFC 863; nothing is sent to it
# No route, no such family, or (fe80::/10) no telling without a zone: then it is not ours.
# EACCES is a broadcast address; and out of descriptors or memory, nothing is believed.
_NOT_OURS = frozenset(
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

    Asked by the route: a connected UDP socket (which sends nothing) to an address of ours has
    that address at both ends.  So a list need not be kept up to date, a cluster address that
    just moved here counts at once, and net.ipv4.ip_nonlocal_bind, common on such hosts, does not
    mislead.  Where the sandbox allows no such socket, the answer is False.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    text = str(address)
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect((text, _DISCARD_PORT))
            return bool(probe.getsockname()[0] == text)
    except OSError as error:
        return error.errno not in _NOT_OURS
