"""Limits on sessions: how many, how many of one client, and how many per second.

Limits are shared out: what one client uses never comes out of another client's share.  Pure: the
caller passes the time.
"""

import errno
from ipaddress import IPv6Address
from typing import Final

from proxyshim.addresses import Address
from proxyshim.errors import PeerError, Reason

# The errors that system calls fail with when this host lacks something.
_SHORTAGES: Final = {
    errno.EMFILE: Reason.OUT_OF_DESCRIPTORS,
    errno.ENFILE: Reason.OUT_OF_DESCRIPTORS,
    errno.ENOMEM: Reason.OUT_OF_RESOURCES,
    errno.ENOBUFS: Reason.OUT_OF_RESOURCES,
    errno.ENOSPC: Reason.OUT_OF_RESOURCES,  # epoll_ctl(2): max_user_watches
}

_IPV6_HOST_BITS: Final = 64


def shortage(error: BaseException) -> Reason | None:
    """Return the reason if *error* is a shortage on this host, and nobody else's fault."""
    if isinstance(error, MemoryError):
        return Reason.OUT_OF_RESOURCES
    if isinstance(error, OSError) and error.errno is not None:
        return _SHORTAGES.get(error.errno)
    return None


def client_key(address: Address) -> str:
    """Return what counts as one client: an IPv4 address, or an IPv6 network of /64.

    A host that has one IPv6 address can usually use all of its /64.
    """
    if address.version == 4:
        return str(address)
    network = int(address) >> _IPV6_HOST_BITS << _IPV6_HOST_BITS
    return f"{IPv6Address(network)}/{128 - _IPV6_HOST_BITS}"


class RateLimit:
    """A token bucket: a number of events per second, and bursts of one second's worth."""

    __slots__ = ("_at", "_per_second", "_tokens")

    def __init__(self, per_second: float) -> None:
        """Allow *per_second* events; 0 means unlimited."""
        self._per_second = per_second
        self._tokens = per_second
        self._at = 0.0

    def admits(self, now: float) -> bool:
        """Count an event at *now*, in seconds; return True if it is within the rate."""
        if self._per_second == 0:
            return True
        gained = (now - self._at) * self._per_second
        self._tokens = min(self._tokens + gained, max(self._per_second, 1.0))
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class ClientRates:
    """A number of events per second for each client, and bursts of one second's worth.

    For each client we keep one number: the time at which its bucket will be full again.  After
    that time a client that we do not remember is the same as one that we do.  So we keep the
    clients of the current period and of the one before, where a period is as long as an empty
    bucket takes to fill.
    """

    # Clients per period.  If there are more, we forget the older period early: then some clients
    # start with a full bucket, and the limit for all clients together is what is left.
    MAX_CLIENTS: Final = 10_000

    __slots__ = ("_at", "_before", "_burst_s", "_interval_s", "_now")

    def __init__(self, per_second: float) -> None:
        """Allow each client *per_second* events; 0 means unlimited."""
        self._interval_s = 1 / per_second if per_second else 0.0
        self._burst_s = max(1.0, self._interval_s)  # at least one event
        self._at = 0.0  # when the current period began
        self._now: dict[str, float] = {}
        self._before: dict[str, float] = {}

    def admits(self, client: str, now: float) -> bool:
        """Count an event of *client* at *now*; return True if it is within the client's rate."""
        if not self._interval_s:
            return True
        if now - self._at >= self._burst_s or len(self._now) >= self.MAX_CLIENTS:
            self._at, self._before, self._now = now, self._now, {}
        full_at = self._now.get(client)
        if full_at is None:
            full_at = self._before.get(client, now)
        after = max(full_at, now) + self._interval_s
        # A millionth of an interval for what floating-point sums lose.
        is_within = after - now <= self._burst_s + self._interval_s * 1e-6
        self._now[client] = after if is_within else full_at
        return is_within

    def __len__(self) -> int:
        """Return the number of clients that we remember."""
        return len(self._now) + len(self._before)


class ConnectionRates:
    """The rates of new connections: of each client, and of all clients together."""

    __slots__ = ("_all", "_clients", "_limits")

    def __init__(self) -> None:
        """Begin without limits."""
        self._limits = (0.0, 0.0)
        self._all = RateLimit(0)
        self._clients = ClientRates(0)

    def adopt(self, per_second: float, per_client_per_second: float) -> None:
        """Apply limits; 0 means unlimited.  Equal ones keep their counts."""
        if self._limits != (per_second, per_client_per_second):
            self._limits = (per_second, per_client_per_second)
            self._all = RateLimit(per_second)
            self._clients = ClientRates(per_client_per_second)

    @property
    def are_limited(self) -> bool:
        """Return True if there is any limit."""
        return self._limits != (0.0, 0.0)

    def check(self, client: str, now: float) -> None:
        """Count a connection of *client* at *now*.  Raises PeerError if that is over a limit.

        A connection over its client's rate does not count for all clients.
        """
        of_all, of_client = self._limits
        if not self._clients.admits(client, now):
            raise PeerError(
                Reason.TOO_MANY_FROM_CLIENT,
                f"more than {of_client:g} new connections per second of one client",
            )
        if not self._all.admits(now):
            raise PeerError(
                Reason.TOO_MANY_CONNECTIONS,
                f"more than {of_all:g} new connections per second",
            )


class Shares:
    """How many sessions each client has."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        """Start without any sessions."""
        self._held: dict[str, int] = {}

    def take(self, client: str, limit: int) -> bool:
        """Count one more session of *client*; return False if it already has *limit*.

        A *limit* of 0 means unlimited.
        """
        held = self._held.get(client, 0)
        if limit and held >= limit:
            return False
        self._held[client] = held + 1
        return True

    def give_back(self, client: str) -> None:
        """Undo a ``take`` that returned True."""
        held = self._held[client] - 1
        if held > 0:
            self._held[client] = held
        else:
            del self._held[client]

    def __len__(self) -> int:
        """Return the number of clients that have a session."""
        return len(self._held)
