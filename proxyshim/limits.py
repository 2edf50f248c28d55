"""Limits on sessions: how many, how many of one client, and how many per second.

Pure: the caller passes the time.
"""

import errno
from ipaddress import IPv6Address
from typing import Final

from proxyshim.addresses import Address
from proxyshim.errors import Reason

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
