"""The results of lookups, by client: bounded in number and in octets."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from proxyshim.addresses import Address
from proxyshim.names.lookup import Found

# What an entry takes besides the octets of its names: the key, the result and their places in the
# table (measured with tracemalloc on Python 3.11: 440 octets for an IPv4, 455 for an IPv6 client).
ENTRY_OCTETS: Final = 480
# The bound in octets is this for each client that may be cached.  Ordinary names are shorter, and
# the longest that the DNS allows take twice as much.
OCTETS_PER_CLIENT: Final = 640


class Cache:
    """Keeps results until they expire, or until the least recently used has to go."""

    def __init__(self, max_clients: int, clock: Callable[[], float]) -> None:
        """Keep up to *max_clients* results; *clock* is in seconds."""
        self._max_clients = max_clients
        self._max_octets = max_clients * OCTETS_PER_CLIENT
        self._clock = clock
        self._known: OrderedDict[Address, tuple[float, Found]] = OrderedDict()
        self.octets = 0

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self._known)

    def recall(self, address: Address) -> Found | None:
        """Return the result for *address* if it is still valid."""
        known = self._known.get(address)
        if known is None:
            return None
        expires, found = known
        if self._clock() >= expires:
            self._forget(address)
            return None
        self._known.move_to_end(address)
        return found

    def remember(self, address: Address, found: Found) -> None:
        """Keep a result for as long as it is valid."""
        if address in self._known:
            self._forget(address)
        self._known[address] = (self._clock() + found.ttl_s, found)
        self.octets += _octets_of(found)
        while len(self._known) > self._max_clients or (
            self.octets > self._max_octets and len(self._known) > 1
        ):
            self._forget(next(iter(self._known)))

    def _forget(self, address: Address) -> None:
        _, found = self._known.pop(address)
        self.octets -= _octets_of(found)


def _octets_of(found: Found) -> int:
    names = found.names
    return ENTRY_OCTETS + len(names.name) + len(names.reverse_name)
