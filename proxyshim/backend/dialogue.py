"""The backend: connect to the MTA and tell it who the client is.

Connect, greeting, EHLO, XCLIENT, fresh greeting: in this order, each with its limit.  What comes
out is a connection on which the MTA has accepted the client's identity, and the greeting that the
client is to see; or an error.  A connection whose XCLIENT failed may carry the shim's own rights,
so it is closed and never used again.
"""

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from proxyshim.addresses import Address, Endpoint, SocketName, read_address
from proxyshim.config import Listener
from proxyshim.errors import BackendError, Reason
from proxyshim.limits import OUT_OF_DESCRIPTORS
from proxyshim.net.connection import Connection, begin_to_connect, connect_unix
from proxyshim.net.deadlines import Limit, deadlines_of
from proxyshim.net.fiber import in_task
from proxyshim.smtp.extensions import read_extensions
from proxyshim.smtp.replies import Reply, ReplyParser
from proxyshim.smtp.xclient import NO_NAMES, Names, offers_identity, xclient_command

# What the MTA says of our XCLIENT itself.  Any other 5yz than 554 is taken for that too.
_CLIENT_REFUSAL: Final = 554
# X.7.1 is an access map's or another policy's, X.7.25 (RFC 7372) that of a client without a
# name.  The whole code: Dovecot says 550 5.7.14 of an XCLIENT that it does not take.
_POLICY_REFUSAL: Final = re.compile(rb"550[ -]5\.7\.(?:1|25)(?![0-9])")

# Failures behind which the MTA waits for a command, so that a QUIT is in order.
_AT_A_COMMAND: Final = (
    Reason.XCLIENT_NOT_OFFERED,
    Reason.XCLIENT_REFUSED,
    Reason.CLIENT_REFUSED,
)


Route = tuple[int, object]  # family, socket address


async def resolve(backend: SocketName) -> Sequence[Route]:
    """Return each way to reach the backend.  Raises OSError."""
    loop = asyncio.get_running_loop()
    return _without_asking(backend) or [
        (family, address)
        for family, _, _, _, address in await in_task(
            loop, loop.getaddrinfo(backend.host, backend.port, type=socket.SOCK_STREAM)
        )
    ]


def _without_asking(backend: SocketName) -> Sequence[Route]:
    """Return the one way where the configuration says it all; none for a host name."""
    if backend.path:
        return ((socket.AF_UNIX, backend.path),)
    family = _family_of(backend.host)
    return ((family, (backend.host, backend.port)),) if family is not None else ()


@lru_cache
def _family_of(host: str) -> int | None:
    """Return the family of an address without a zone id; None of what is a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return family
    return None


async def ip_addresses(backend: SocketName) -> frozenset[Address]:
    """Return the backend's IP addresses: none for a unix socket, or while its name fails."""
    try:
        found = await resolve(backend)
    except OSError:
        return frozenset()
    return frozenset(
        read_address(address[0]) for _, address in found if isinstance(address, tuple)
    )


@dataclass(frozen=True, slots=True)
class BackendLimits:
    """Time limits in seconds, and the name for our own EHLO."""

    ehlo_name: str
    connect_timeout_s: float
    reply_timeout_s: float

    @classmethod
    def of(cls, listener: Listener) -> Self:
        """Return those of a *listener*'s backend."""
        settings = listener.settings
        return cls(
            listener.ehlo_name, settings.connect_timeout_s, settings.reply_timeout_s
        )


class ClientRefused(BackendError):  # noqa: N818
    """The MTA's word to this client, in answer to XCLIENT: to be relayed as it is."""

    def __init__(self, reply: Reply) -> None:
        """Keep the *reply*, which is what a direct client would have been greeted with."""
        super().__init__(Reason.CLIENT_REFUSED, reply.excerpt())
        self.reply = reply


class NamesRefused(BackendError):  # noqa: N818
    """The MTA does not like a host name in our XCLIENT: to be tried without."""


GetNames = Callable[[], Awaitable[Names]]


async def no_names() -> Names:
    """Return that no names are known."""
    return NO_NAMES


class BackendConnection:
    """A connection to the MTA on which replies are read one at a time."""

    __slots__ = ("_parser", "_reply_timeout_s", "connection")

    def __init__(self, connection: Connection, reply_timeout_s: float) -> None:
        """Take over a fresh connection."""
        self.connection = connection
        self._reply_timeout_s = reply_timeout_s
        self._parser = ReplyParser()

    # These two are not coroutines themselves, but return one: whoever waits is resumed through
    # every coroutine between, and each costs.

    def greeting(self) -> Awaitable[Reply]:
        """Wait for the greeting.  Raises BackendError."""
        return self._reply(b"connect")

    def command(self, line: bytes) -> Awaitable[Reply]:
        """Send a command *line*, line end and all; return its reply.  Raises BackendError."""
        if not self._parser.at_boundary:  # it could pass for the reply to this
            raise BackendError(
                Reason.BACKEND_BAD_REPLY,
                f"spoke before {_verb(line)}: {self._parser.take_rest()[:60]!r}",
            )
        self.connection.send(line)
        return self._reply(line)

    async def _reply(self, to: bytes) -> Reply:
        connection, parser = self.connection, self._parser
        try:
            with Limit(connection.deadlines, self._reply_timeout_s):
                while (reply := parser.next()) is None:
                    data = await connection.receive()
                    if not data:
                        raise BackendError(
                            Reason.BACKEND_CLOSED,
                            f"closed before the reply to {_verb(to)}",
                        )
                    parser.feed(data)
                return reply
        except TimeoutError:
            raise BackendError(
                Reason.BACKEND_TIMEOUT,
                f"no reply to {_verb(to)} within {self._reply_timeout_s:g} s",
            ) from None
        except OSError as error:
            raise BackendError(
                Reason.BACKEND_CLOSED,
                f"{error.strerror} before the reply to {_verb(to)}",
            ) from None

    def take_rest(self) -> bytes:
        """Give up what was received behind the last reply."""
        return self._parser.take_rest()


def _verb(command: bytes) -> str:
    return command.split(None, 1)[0].decode("ascii", "replace")


@dataclass(frozen=True, slots=True)
class OpenBackend:
    """A backend that runs as the client: its greeting, and what it said behind it."""

    connection: Connection
    greeting: Reply
    early: bytes
    starttls_offered: bool

    @property
    def local_port(self) -> int | None:
        """Tell our port towards the backend: what its log knows us by; None on unix."""
        ours = self.connection.local_endpoint()
        return ours.port if ours else None


async def dial(address: SocketName, limits: BackendLimits) -> BackendConnection:
    """Connect to the backend, trying each of its addresses.  Raises BackendError.

    Each gets an equal share of the time that is left, so that a dead one leaves some for
    the next.
    """
    loop = asyncio.get_running_loop()
    deadlines = deadlines_of(loop)
    until = loop.time() + limits.connect_timeout_s
    failure = "has no address"
    addresses = _without_asking(address) or await _resolve_until(until, address)
    for number, (family, socket_address) in enumerate(addresses):
        share_s = (until - loop.time()) / (len(addresses) - number)
        try:
            with Limit(deadlines, share_s):
                if family == socket.AF_UNIX:
                    connection = await connect_unix(loop, address.path)
                else:
                    connection = begin_to_connect(loop, family, socket_address)
                    await connection.wait_until_connected()
        except TimeoutError:
            failure = f"no connection within {share_s:.3g} s"
        except OSError as error:
            failure = os.strerror(error.errno) if error.errno else str(error)
            if error.errno in OUT_OF_DESCRIPTORS:  # it is not the backend's fault
                raise BackendError(Reason.OUT_OF_DESCRIPTORS, failure) from None
        else:
            return BackendConnection(connection, limits.reply_timeout_s)
    raise _unreachable(address, failure)


async def _resolve_until(until: float, address: SocketName) -> Sequence[Route]:
    loop = asyncio.get_running_loop()
    try:
        with Limit(deadlines_of(loop), until - loop.time()):
            return await resolve(address)
    except TimeoutError:
        raise _unreachable(address, "no answer in time for its name") from None
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None


def _unreachable(address: SocketName, failure: str) -> BackendError:
    return BackendError(Reason.BACKEND_UNREACHABLE, f"{address}: {failure}")


async def open_backend(
    address: SocketName,
    limits: BackendLimits,
    client: Endpoint | None,
    destination: Endpoint | None,
    get_names: GetNames = no_names,
) -> OpenBackend:
    """Open a connection that runs as *client*; its names are waited for last.

    Raises BackendError; ClientRefused when the MTA refuses this client, NamesRefused when it
    refuses its names.
    """
    backend = await dial(address, limits)
    try:
        return await _introduce(backend, limits, client, destination, get_names)
    except BaseException as error:
        if isinstance(error, BackendError) and error.reason in _AT_A_COMMAND:
            backend.connection.send(b"QUIT\r\n")
            backend.connection.close_in_background()
        else:
            backend.connection.close()
        raise


async def _introduce(
    backend: BackendConnection,
    limits: BackendLimits,
    client: Endpoint | None,
    destination: Endpoint | None,
    get_names: GetNames,
) -> OpenBackend:
    offered = await greet(backend, limits)
    parameters = offered.get(b"XCLIENT")
    if parameters is None or not offers_identity(parameters):
        raise BackendError(
            Reason.XCLIENT_NOT_OFFERED,
            "the EHLO reply offers no XCLIENT with ADDR: is the shim's address in the"
            " backend's list (Postfix: smtpd_authorized_xclient_hosts)?",
        )
    names = await get_names()
    command = xclient_command(parameters, client, destination, names)
    greeting = await backend.command(command)
    _judge_answer(greeting, names)
    return OpenBackend(
        backend.connection, greeting, backend.take_rest(), b"STARTTLS" in offered
    )


async def greet(
    backend: BackendConnection, limits: BackendLimits
) -> Mapping[bytes, bytes]:
    """Take the greeting and say EHLO; return what is offered.  Raises BackendError."""
    greeting = await backend.greeting()
    if greeting.code != 220:
        raise BackendError(
            Reason.BACKEND_GREETING, f"greeted with: {greeting.excerpt()}"
        )
    reply = await backend.command(b"EHLO %s\r\n" % limits.ehlo_name.encode("ascii"))
    if reply.code != 250:
        raise BackendError(
            Reason.XCLIENT_NOT_OFFERED, f"EHLO was answered: {reply.excerpt()}"
        )
    return read_extensions(reply)


def _judge_answer(reply: Reply, names: Names) -> None:
    """Tell the MTA's word to the client from a refusal of XCLIENT itself."""
    if reply.code == 220:
        return
    if (
        400 <= reply.code <= 499
        or reply.code == _CLIENT_REFUSAL
        or _POLICY_REFUSAL.match(reply.raw)
    ):
        raise ClientRefused(reply)
    refusal = NamesRefused if reply.code == 501 and names.are_from_dns else BackendError
    raise refusal(Reason.XCLIENT_REFUSED, f"XCLIENT was answered: {reply.excerpt()}")
