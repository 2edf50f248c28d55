"""A connection that comes from another host's address.

For IPv4 the socket needs IP_TRANSPARENT, and for that CAP_NET_RAW.  For IPv6 we use
IPV6_TRANSPARENT where we may, because a packet filter can then recognise the socket; otherwise
IPV6_FREEBIND, which needs no capability, is enough.  A mark (SO_MARK) needs CAP_NET_RAW too.  The
backend's answers come back to this host only with policy routes (``source_routes.py``).

We always bind to the client's address, also if it is one of this host's own: the kernel would
choose any, 127.0.0.1 for example, and a mail server relays for that.

Source: ip(7), ipv6(7), socket(7); Linux, Documentation/networking/tproxy.
"""

import errno
import socket
from functools import partial
from typing import Final

from proxyshim.addresses import Endpoint
from proxyshim.backend.address import BackendAddress
from proxyshim.errors import BackendError, Reason
from proxyshim.net.connect import connect_tcp
from proxyshim.net.local_addresses import is_local
from proxyshim.net.reactor import Reactor
from proxyshim.net.stream import Stream

# <linux/in.h>, <linux/in6.h>; the socket module does not have them.
_IP_TRANSPARENT: Final = 19
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_IPV6_TRANSPARENT: Final = 75
_IPV6_FREEBIND: Final = 78
# Another connection has the port, or (EACCES) it is below 1024.
_PORT_TAKEN: Final = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)


async def connect_from(
    reactor: Reactor, address: BackendAddress, client: Endpoint, mark: int
) -> Stream:
    """Connect to *address* from the *client*'s address, and from its port if that is free.

    A *mark* other than 0 is set where the backend's address is this host's own.

    Raises OSError, and BackendError with the reason SOURCE_FORBIDDEN or CLIENT_PORTS_EXHAUSTED.
    """
    if not _is_own(address, mark):
        mark = 0
    try:
        stream = await _connect(reactor, address, client, mark)
    except OSError as error:
        if error.errno not in _PORT_TAKEN or not client.port:
            raise _explain(error, client) from None
        # For example, the client has two connections through two proxies from one port.
        any_port = Endpoint(client.address, 0)
        try:
            stream = await _connect(reactor, address, any_port, mark)
        except OSError as error:
            raise _explain(error, client) from None
    local = stream.local_endpoint()
    if local is None or local.address != client.address:
        stream.close()
        raise BackendError(
            Reason.SOURCE_FORBIDDEN,
            f"the kernel chose {local} instead of {client.host}",
        )
    return stream


async def _connect(
    reactor: Reactor, address: BackendAddress, client: Endpoint, mark: int
) -> Stream:
    prepare = partial(_bind, client=client, mark=mark)
    return await connect_tcp(reactor, address.family, address.socket_address, prepare)


def _bind(sock: socket.socket, *, client: Endpoint, mark: int) -> None:
    try:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        else:
            try:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            except PermissionError:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    except PermissionError:
        raise BackendError(
            Reason.SOURCE_FORBIDDEN,
            "this process may not use other hosts' addresses: it has no CAP_NET_RAW",
        ) from None
    if client.port:
        # Otherwise a connection in TIME_WAIT would keep the port from us.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        # The kernel then chooses the port in connect(), where it must be free only for this
        # one backend.
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((client.host, client.port))


def _explain(error: OSError, client: Endpoint) -> OSError | BackendError:
    if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
        return BackendError(
            Reason.CLIENT_PORTS_EXHAUSTED,
            f"{client.host} has a connection to the backend from every port",
        )
    return error


def _is_own(address: BackendAddress, mark: int) -> bool:
    """Return True if *address* is this host's own, but not a loopback address."""
    proof = address.source_proof(mark)
    if proof.is_own is None:
        ip = address.ip
        proof.is_own = ip is not None and not ip.is_loopback and is_local(ip)
    return proof.is_own
