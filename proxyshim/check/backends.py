"""Which backends ``check`` has to ask, and in the name of which clients.

A listed proxy may claim that its client has a certain address.  If the listener believes that
(``session/trust.py``), it matters which rights the backend gives to that address.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import islice
from typing import Final

from proxyshim.addresses import Address, SocketName
from proxyshim.allowlist import Network, read_network
from proxyshim.backend.addresses import BackendAddresses
from proxyshim.backend.backend_list import BackendList
from proxyshim.backend.dial import BackendLimits, Dial
from proxyshim.backend.lookup import SystemLookup
from proxyshim.check.setup import is_loopback, takes_claims
from proxyshim.config import Config, Listener
from proxyshim.conveyance import conveyance_of
from proxyshim.conveyance.contract import STRANGER, STRANGER_V6, Conveyance
from proxyshim.dns.system import System
from proxyshim.errors import BackendError
from proxyshim.net.reactor import Reactor
from proxyshim.session.trust import Trust

# How many of a listener's believed_claims we ask about.
MAX_BELIEVED_ASKED: Final = 12
_MAX_FIRST_HOSTS: Final = 16

# RFC 1918 and RFC 4193: one address of each network.
PRIVATE: Final[Mapping[Address, str]] = {
    ip_address("10.0.0.1"): "10.0.0.0/8",
    ip_address("172.16.0.1"): "172.16.0.0/12",
    ip_address("192.168.0.1"): "192.168.0.0/16",
    ip_address("fd00::1"): "fc00::/7",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """An address that a listed proxy may claim for its client, and the network it stands for."""

    address: Address
    network: str
    explicit: bool  # from believed_claims


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend, the listeners that use it in the same way, and the claims that they believe."""

    name: SocketName
    dial: Dial
    conveyance: Conveyance
    listeners: tuple[Listener, ...]
    claims: tuple[Claim, ...]

    @property
    def clients(self) -> tuple[Address, ...]:
        """The clients in whose name we ask: two strangers and the believed claims."""
        claimed = (claim.address for claim in self.claims)
        return tuple(dict.fromkeys((STRANGER, STRANGER_V6, *claimed)))


async def find_backends(config: Config, reactor: Reactor) -> list[Backend]:
    """Return each backend once for each set of limits and each conveyance that listeners use.

    Each of a list of backends is asked by itself: the second one must be fit for use as well.
    """
    shared: dict[tuple[SocketName, BackendLimits, Conveyance], list[Listener]] = {}
    for listener in config.listeners:
        limits = BackendLimits.from_listener(listener)
        for name in listener.backends:
            key = (name, limits, conveyance_of(listener))
            shared.setdefault(key, []).append(listener)
    known = await _resolve(config)
    backends = []
    for (name, limits, conveyance), listeners in shared.items():
        dial = Dial(reactor, BackendList([known[name]]), limits)
        claims = _find_claims(known, listeners)
        backends.append(Backend(name, dial, conveyance, tuple(listeners), claims))
    return backends


async def _resolve(config: Config) -> Mapping[SocketName, BackendAddresses]:
    """Return the addresses of each backend, as far as its name is resolved in time."""
    lookup = SystemLookup(System())
    found: dict[SocketName, BackendAddresses] = {}
    for listener in config.listeners:
        for name in listener.backends:
            if name not in found:
                found[name] = BackendAddresses(name, lookup)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(listener.settings.connect_timeout_s):
                        await found[name].refresh()
    return found


def _find_claims(
    known: Mapping[SocketName, BackendAddresses], listeners: list[Listener]
) -> tuple[Claim, ...]:
    claims: dict[Address, Claim] = {}
    for listener in filter(takes_claims, listeners):
        trust = Trust(
            listener.untrusted_claims,
            listener.believed_claims,
            BackendList([known[name] for name in listener.backends]),
            listener.allowlist,
        )
        for claim in _claims_to_ask(listener, trust):
            claims.setdefault(claim.address, claim)
    return tuple(claims.values())


def _claims_to_ask(listener: Listener, trust: Trust) -> Iterator[Claim]:
    networks = map(read_network, listener.settings.believed_claims)
    others = (network for network in networks if not is_loopback(network))
    for network in islice(others, MAX_BELIEVED_ASKED):
        for address in _first_hosts(network):
            if _is_believed(address, trust):
                yield Claim(address, str(network), explicit=True)
                break
    for address, private in PRIVATE.items():
        if _is_believed(address, trust):
            yield Claim(address, private, explicit=False)


def _is_believed(address: Address, trust: Trust) -> bool:
    try:
        return trust.believes(address, None)
    except BackendError:  # the backend's addresses are not known
        return False


def _first_hosts(network: Network) -> Iterator[Address]:
    """Yield addresses to ask about: several, because proxies among them are not believed."""
    count = network.num_addresses
    for number in range(min(1, count - 1), min(_MAX_FIRST_HOSTS, count)):
        yield network[number]
