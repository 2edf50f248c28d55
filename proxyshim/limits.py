"""How many sessions, of whom, and how fast.  Pure: the time is an argument."""

import errno
from ipaddress import IPv6Address
from typing import Final

from proxyshim.addresses import Address

# How the kernel says that there are no more file descriptors.
OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})

_IPV6_HOST_BITS: Final = 64


def client_key(address: Address) -> str:
    """Return what counts as one client: an IPv4 address, or an IPv6 network of /64.

    Who has one IPv6 address usually has the 2^64 around it.
    """
    if address.version == 4:
        return str(address)
    network = int(address) >> _IPV6_HOST_BITS << _IPV6_HOST_BITS
    return f"{IPv6Address(network)}/{128 - _IPV6_HOST_BITS}"


class RateLimit:
    """So many events a second, with a burst of one second's worth (a token bucket)."""

    __slots__ = ("_at", "_per_second", "_tokens")

    def __init__(self, per_second: float) -> None:
        """Allow *per_second* events; 0 allows any number."""
        self._per_second = per_second
        self._tokens = per_second
        self._at = 0.0

    def admits(self, now: float) -> bool:
        """Count an event at *now*, in seconds; tell whether it is within the rate."""
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
        """Begin with none."""
        self._held: dict[str, int] = {}

    def take(self, client: str, limit: int) -> bool:
        """Give *client* one more, up to *limit* (0: any number); tell whether it got it."""
        held = self._held.get(client, 0)
        if limit and held >= limit:
            return False
        self._held[client] = held + 1
        return True

    def give_back(self, client: str) -> None:
        """Undo a take() that succeeded."""
        held = self._held[client] - 1
        if held > 0:
            self._held[client] = held
        else:
            del self._held[client]

    def __len__(self) -> int:
        """Return the number of clients that hold any."""
        return len(self._held)
