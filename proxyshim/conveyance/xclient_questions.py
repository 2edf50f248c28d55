"""What ``proxyshim check`` asks a backend about XCLIENT.

First we ask what the backend offers to proxyshim.  Then, over a new connection for each of several
addresses, we ask what it offers to a client with that address, and whether it would take an
XCLIENT from that client.  ``xclient_verdicts.py`` judges the answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from proxyshim.addresses import Address
from proxyshim.backend.dial import Dial
from proxyshim.conveyance.asking import (
    ClientSession,
    ask_each,
    open_session,
    quitting,
)
from proxyshim.conveyance.contract import STRANGER, Conveyance
from proxyshim.errors import BackendError
from proxyshim.smtp.extensions import read_extensions
from proxyshim.smtp.replies import Reply
from proxyshim.smtp.xclient import offers_identity, xclient_command

# 127.0.0.5 for 127.0.0.1: every network of eight addresses or more that contains one contains both.
_NEIGHBOUR: Final = 4
_LOOPBACK: Final[Address] = ip_address("127.0.0.1")


@dataclass(frozen=True, slots=True)
class ToProxyshim:
    """The backend's replies to proxyshim itself, which connects from *own_address*.

    *own_address* is None on a unix socket.  After a greeting other than 220 we send no EHLO.  If
    EHLO is refused, we try LHLO.
    """

    greeting: Reply
    ehlo: Reply | None
    lhlo: Reply | None
    own_address: Address | None

    @property
    def offered(self) -> Mapping[bytes, bytes]:
        """The extensions that the backend offers to proxyshim."""
        return read_extensions(self.ehlo) if self.ehlo else {}


@dataclass(frozen=True, slots=True)
class ToClient:
    """The backend's replies to a client: to its EHLO, and then to its own XCLIENT and XFORWARD.

    *xforward* is None if the backend closed before.
    """

    ehlo: Reply
    xclient: Reply
    xforward: Reply | None

    @property
    def offered(self) -> Mapping[bytes, bytes]:
        """The extensions that the backend offers to this client."""
        return read_extensions(self.ehlo)


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers of a backend.

    A client that is missing in *to_clients* was not asked about.
    """

    to_proxyshim: ToProxyshim | BackendError
    to_clients: Mapping[Address, ToClient | BackendError]
    # The address next to our own, if we asked about it.
    neighbour: Address = STRANGER


async def ask(
    conveyance: Conveyance, dial: Dial, clients: Sequence[Address]
) -> Answers:
    """Ask everything: as proxyshim itself, as each of *clients*, and as our neighbour."""
    try:
        to_proxyshim = await _ask_as_proxyshim(dial)
    except BackendError as error:
        return Answers(error, {})
    parameters = to_proxyshim.offered.get(b"XCLIENT")
    if parameters is None or not offers_identity(parameters):
        return Answers(to_proxyshim, {})
    offer = parameters

    async def ask_as_client(address: Address) -> ToClient:
        async with open_session(conveyance, dial, address) as session:
            command = xclient_command(offer, session.client, None)
            xclient = await session.dialogue.command(command)
            xforward = await _ask_for_xforward(session)
            return ToClient(session.ehlo, xclient, xforward)

    neighbour = neighbour_of(to_proxyshim.own_address)
    addresses = dict.fromkeys((*clients, neighbour))
    to_clients = await ask_each(addresses, ask_as_client)
    return Answers(to_proxyshim, to_clients, neighbour)


async def _ask_for_xforward(session: ClientSession) -> Reply | None:
    """Send XFORWARD whether or not it is offered: a setting may hide it and leave the right."""
    command = b"XFORWARD ADDR=" + STRANGER.compressed.encode("ascii") + b"\r\n"
    try:
        return await session.dialogue.command(command)
    except BackendError:
        return None


async def _ask_as_proxyshim(dial: Dial) -> ToProxyshim:
    dialogue = await dial.connect()
    async with quitting(dialogue):
        own = dialogue.stream.local_endpoint()
        own_address = own.address if own else None
        greeting = await dialogue.greeting()
        if greeting.code != 220:
            return ToProxyshim(greeting, None, None, own_address)
        name = dial.limits.ehlo_name.encode("ascii")
        ehlo = await dialogue.command(b"EHLO %s\r\n" % name)
        lhlo = None
        if 500 <= ehlo.code <= 599:
            lhlo = await dialogue.command(b"LHLO %s\r\n" % name)
        return ToProxyshim(greeting, ehlo, lhlo, own_address)


def neighbour_of(own_address: Address | None) -> Address:
    """Return an address that is not in the backend's list if the list has only our own.

    On a unix socket (None), Postfix treats us as 127.0.0.1.
    """
    own = own_address or _LOOPBACK
    return type(own)(int(own) ^ _NEIGHBOUR)
