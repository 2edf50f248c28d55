"""Giving a connected socket to another process, over a unix socket."""

import array
import asyncio
import errno
import os
import socket

from proxyshim.net.connection import Connection
from proxyshim.net.fiber import current_fiber
from proxyshim.net.reactor import Reactor


def make_pair(reactor: Reactor) -> tuple[Connection, socket.socket]:
    """Return a connection, and the socket at its other end to be given away."""
    ours, theirs = socket.socketpair(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    return Connection(reactor, ours), theirs


async def pass_socket(
    reactor: Reactor, path: str, descriptor: int, octets: bytes
) -> None:
    """Send *descriptor* and *octets* to the server at *path*; return when it has closed its end.

    Connecting and sending never wait, and nothing comes between them: a server that has accepted
    a connection may do nothing else until it has everything.  Raises OSError: BlockingIOError if
    the server's queue is full, ConnectionResetError if it has not taken the socket.  It has no
    time limit of its own: call it within a Limit.  When it is interrupted, the server may get the
    socket later; but where it has it already, a fiber returns as usual, because a client that is
    being served must not be refused.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
        rights = array.array("i", [descriptor])
        sent = sock.sendmsg([octets], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        if sent < len(octets):  # cannot be: a new connection has room for much more
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        connection = Connection(reactor, sock)
    except BaseException:
        sock.close()
        raise
    try:
        while await connection.receive():
            pass  # nothing but the end is expected
    except asyncio.CancelledError:
        # A Task has to end when it is cancelled.
        if current_fiber() is None or not _has_ended(connection):
            raise
    finally:
        connection.close()


def _has_ended(connection: Connection) -> bool:
    try:
        return connection.receive_now() == b""
    except OSError:
        return False
