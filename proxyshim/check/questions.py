"""What ``check`` asks a backend, with the code with which the shim itself talks to it.

First what it says to the shim.  Then, over a fresh connection for each address, what it says to
a client with that address: conveyed by XCLIENT, it greets, would like to relay (nothing is ever
sent: RSET follows), and tries an XCLIENT of its own.  Nothing is judged here.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from itertools import islice
from typing import Final

from proxyshim.addresses import Address, Endpoint, SocketName
from proxyshim.allowlist import read_network
from proxyshim.backend.dial import BackendLimits, Dial
from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.check.answers import (
    MAX_BELIEVED_ASKED,
    STRANGER,
    STRANGER_V6,
    Answers,
    AsClient,
    Backend,
    Claim,
    Hello,
)
from proxyshim.check.setup import is_loopback, takes_claims
from proxyshim.config import Config, Listener
from proxyshim.conveyance import BY_NAME
from proxyshim.conveyance.contract import Relayed, no_names, no_warning
from proxyshim.errors import BackendError, Reason
from proxyshim.identity import Identity
from proxyshim.net.reactor import Reactor
from proxyshim.session.trust import Trust
from proxyshim.smtp.replies import Reply
from proxyshim.smtp.xclient import offers_identity, xclient_command

# No mail is for these domains (RFC 2606).
RECIPIENTS: Final = (b"proxyshim-check@example.com", b"proxyshim-check@example.net")
CLIENT_PORT: Final = 49_152

# RFC 1918 and RFC 4193: one address of each.
PRIVATE: Final[Mapping[Address, str]] = {
    ip_address("10.0.0.1"): "10.0.0.0/8",
    ip_address("172.16.0.1"): "172.16.0.0/12",
    ip_address("192.168.0.1"): "192.168.0.0/16",
    ip_address("fd00::1"): "fc00::/7",
}
# 127.0.0.5 for 127.0.0.1: it is in every network of eight addresses or more that holds ours.
_NEIGHBOUR: Final = 4
_LOOPBACK: Final[Address] = ip_address("127.0.0.1")

LIMIT_S: Final = 300.0  # for all questions in the name of clients, to one backend
_LEAVE_S: Final = 2.0
_HOPELESS: Final = (Reason.BACKEND_TIMEOUT, Reason.BACKEND_UNREACHABLE)


# Whom to ask, and about whom.


async def find_backends(config: Config, reactor: Reactor) -> list[Backend]:
    """Return each backend once, with the limits that its listeners give it."""
    shared: dict[tuple[SocketName, BackendLimits], list[Listener]] = {}
    for listener in config.listeners:
        limits = BackendLimits.from_listener(listener)
        shared.setdefault((listener.backend, limits), []).append(listener)
    backends = []
    for (name, limits), listeners in shared.items():
        dial = Dial(reactor, name, limits)
        claims = await _find_claims(dial, listeners)
        backends.append(Backend(name, dial, tuple(listeners), claims))
    return backends


async def _find_claims(dial: Dial, listeners: list[Listener]) -> tuple[Claim, ...]:
    claims: dict[Address, Claim] = {}
    for listener in filter(takes_claims, listeners):
        own: frozenset[Address] = frozenset()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(dial.limits.connect_timeout_s):
                own = await dial.ip_addresses()
        trust = Trust(listener.untrusted_claims, listener.believed_claims, own)
        for claim in _claims_to_ask(listener):
            if trust.believes(claim.address, None):
                claims.setdefault(claim.address, claim)
    return tuple(claims.values())


def _claims_to_ask(listener: Listener) -> Iterator[Claim]:
    networks = map(read_network, listener.settings.believed_claims)
    others = (network for network in networks if not is_loopback(network))
    for network in islice(others, MAX_BELIEVED_ASKED):
        first = network[min(1, network.num_addresses - 1)]
        yield Claim(first, str(network), explicit=True)
    for address, private in PRIVATE.items():
        yield Claim(address, private, explicit=False)


def neighbour_of(shim: Address | None) -> Address:
    """Return an address that a list of the shim's one address does not hold.

    On a unix socket (None) Postfix takes us for 127.0.0.1.
    """
    own = shim or _LOOPBACK
    return type(own)(int(own) ^ _NEIGHBOUR)


# Asking.


async def ask(backend: Backend) -> Answers:
    """Ask a backend everything, as long as it answers."""
    try:
        hello = await _ask_hello(backend)
    except BackendError as error:
        return Answers(error, {})
    parameters = hello.offered.get(b"XCLIENT")
    if parameters is None or not offers_identity(parameters):
        return Answers(hello, {})
    neighbour = neighbour_of(hello.shim)
    claimed = (claim.address for claim in backend.claims)
    addresses = dict.fromkeys((STRANGER, STRANGER_V6, *claimed, neighbour))
    answers = await _ask_as_each(backend, parameters, list(addresses))
    return Answers(hello, answers, neighbour)


async def _ask_hello(backend: Backend) -> Hello:
    async with _dialled(backend) as talk:
        shim = talk.stream.local_endpoint()
        address = shim.address if shim else None
        greeting = await talk.greeting()
        if greeting.code != 220:
            return Hello(greeting, None, None, address)
        name = backend.dial.limits.ehlo_name.encode("ascii")
        ehlo = await talk.command(b"EHLO %s\r\n" % name)
        lhlo = None
        if 500 <= ehlo.code <= 599:
            lhlo = await talk.command(b"LHLO %s\r\n" % name)
        return Hello(greeting, ehlo, lhlo, address)


async def _ask_as_each(
    backend: Backend, parameters: bytes, addresses: list[Address]
) -> dict[Address, AsClient | BackendError]:
    answers: dict[Address, AsClient | BackendError] = {}
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    for address in addresses:
        if address.version == 6 and isinstance(answers.get(STRANGER_V6), BackendError):
            continue  # it takes no IPv6
        try:
            async with asyncio.timeout_at(deadline):
                answers[address] = await _ask_as(backend, parameters, address)
        except BackendError as error:
            answers[address] = error
            if error.reason in _HOPELESS:
                break
        except TimeoutError:
            detail = f"the questions were not over within {LIMIT_S:g} s"
            answers[address] = BackendError(Reason.BACKEND_TIMEOUT, detail)
            break
    return answers


async def _ask_as(backend: Backend, parameters: bytes, address: Address) -> AsClient:
    client = Endpoint(address, CLIENT_PORT)
    conveyance = BY_NAME[backend.listeners[0].settings.convey]
    identity = Identity(client, None)
    opened = await conveyance.open(None, backend.dial, identity, no_names, no_warning)
    assert isinstance(opened, Relayed)
    talk = BackendDialogue(
        opened.stream, backend.dial.limits.reply_timeout_s, backend.dial.last_reply
    )
    async with _leaving(talk):
        if opened.early:
            raise BackendError(Reason.BACKEND_BAD_REPLY, "it said more than was asked")
        # A name of its own: with ours, a rule against our name would answer all the rest.
        ehlo = await talk.command(b"EHLO [%s]\r\n" % _literal(address))
        if ehlo.code != 250:
            raise BackendError(
                Reason.CLIENT_REFUSED, f"EHLO was answered: {ehlo.excerpt()}"
            )
        relay = await _ask_to_relay(talk)
        xclient = await talk.command(xclient_command(parameters, client, None))
        return AsClient(ehlo, relay, xclient)


async def _ask_to_relay(talk: BackendDialogue) -> Reply:
    """Ask for two domains: the backend might be the final destination of one."""
    for recipient in RECIPIENTS:
        reply = await talk.command(b"MAIL FROM:<>\r\n")
        if reply.positive:
            reply = await talk.command(b"RCPT TO:<%s>\r\n" % recipient)
        await talk.command(b"RSET\r\n")
        if not reply.positive:
            break
    return reply


def _literal(address: Address) -> bytes:
    prefix = "IPv6:" if address.version == 6 else ""
    return f"{prefix}{address}".encode("ascii")


@asynccontextmanager
async def _dialled(backend: Backend) -> AsyncIterator[BackendDialogue]:
    talk = await backend.dial.connect()
    async with _leaving(talk):
        yield talk


@asynccontextmanager
async def _leaving(talk: BackendDialogue) -> AsyncIterator[None]:
    """Take leave of the backend at the end, whatever happened; it need not hear it."""
    try:
        yield
    finally:
        with contextlib.suppress(BackendError, TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await talk.command(b"QUIT\r\n")
        talk.stream.close()
