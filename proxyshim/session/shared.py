"""What the sessions of a listener share.  A reload makes a new one; sessions keep theirs."""

import time
from dataclasses import dataclass, field

from proxyshim.addresses import Endpoint
from proxyshim.backend.dial import Dial
from proxyshim.config import Listener
from proxyshim.conveyance.contract import Conveyance
from proxyshim.errors import PeerError, Reason
from proxyshim.identity import Identity
from proxyshim.limits import ConnectionRates, Shares
from proxyshim.names import Resolver
from proxyshim.session.denylist import DeniedClients
from proxyshim.session.record import SessionRecord
from proxyshim.session.reports import Reports
from proxyshim.session.shares import share_of
from proxyshim.session.silence import SilentProxies
from proxyshim.session.trust import Trust


@dataclass(frozen=True, slots=True)
class Shared:
    """A listener's configuration, its rule of trust, its way to the backend, and its limits."""

    listener: Listener
    trust: Trust
    dial: Dial
    conveyance: Conveyance
    reports: Reports
    resolver: Resolver | None = None  # None: names are not looked up
    shares: Shares = field(default_factory=Shares)
    sessions_per_client: int = 0  # 0 means unlimited
    rates: ConnectionRates = field(default_factory=ConnectionRates)
    denied: DeniedClients = field(default_factory=DeniedClients)
    silent: SilentProxies = field(default_factory=SilentProxies)

    @property
    def are_clients_limited(self) -> bool:
        """Return True if sessions have to be counted for their clients."""
        return self.sessions_per_client > 0 or self.rates.are_limited

    def is_listed(self, peer: Endpoint | None) -> bool:
        """Return True if *peer* is a proxy; on a unix socket the file's mode has decided it."""
        return peer is None or self.listener.allowlist.is_listed(peer.address)

    def counts_itself(self, peer: Endpoint | None) -> bool:
        """Return True if the session decides for whom a connection of *peer* counts.

        A proxy's client is not known at accept, and a denied client counts for nobody.
        """
        return (
            peer is None or self.is_listed(peer) or peer.address in self.denied.networks
        )


def count_for_client(
    shared: Shared, record: SessionRecord, identity: Identity
) -> str | None:
    """Count a session for its client; return the share to give back, if it takes one.

    Raises PeerError if that is over a limit.
    """
    share = share_of(identity, record.header, record.peer)
    if share is None:
        return None
    record.share = share
    if record.header is not None:
        # An unlisted peer was counted when it was accepted.
        shared.rates.check(share, time.monotonic())
    limit = shared.sessions_per_client
    if not limit:
        return None
    if not shared.shares.take(share, limit):
        raise PeerError(
            Reason.TOO_MANY_FROM_CLIENT, f"more than {limit} sessions of one client"
        )
    return share
