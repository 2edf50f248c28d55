"""The places of lookups in flight, shared out among the networks that the clients are in.

A dead reverse zone keeps its clients' lookups waiting until they time out, so an attacker with many
clients in one could take all places.  When all are taken, a new client therefore displaces the
oldest lookup of the network that has most of them, unless its own network has about as many.  We
compare networks of three sizes, from wide to narrow, because a zone may be of any of them.  A
lookup that has waited for long gives way to any client: its zone or its server is probably dead.
"""

from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Final

from proxyshim.addresses import Address

# How many low bits of an address to drop.  IPv4: /16, /24, /32.  IPv6: /32, /48, /64.
_DROPPED_BITS: Final = {4: (16, 8, 0), 6: (96, 80, 64)}
# We look for the crowd among the oldest lookups: it is there, and to look at all may take long.
MAX_SEARCHED: Final = 200
# A lookup with a live server is over long before.
GIVES_WAY_AFTER_S: Final = 2.0

_Networks = tuple[tuple[int, int, int], ...]  # of each size: size, IP version, prefix


class Places:
    """The addresses whose lookups are in flight, oldest first."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        """Allow *limit* at the same time; *clock* is in seconds."""
        self._limit = limit
        self._clock = clock
        self._taken: dict[Address, tuple[float, _Networks]] = {}
        self._counts: Counter[tuple[int, int, int]] = Counter()

    def __len__(self) -> int:
        """Return the number of places taken."""
        return len(self._taken)

    def find_victim(self, newcomer: Address) -> Address | None:
        """Return whose lookup has to end before *newcomer* may take a place.

        It is *newcomer* itself if nobody has to give way to it, and None while a place is free.
        """
        if len(self._taken) < self._limit:
            return None
        oldest = next(iter(self._taken))
        if self._clock() - self._taken[oldest][0] >= GIVES_WAY_AFTER_S:
            return oldest
        within: tuple[int, int, int] | None = None
        for own in _networks_of(newcomer):
            crowd = self._largest(own[0], within)
            if crowd is not None and self._counts[crowd] > self._counts[own] + 1:
                return self._oldest_in(crowd)
            within = own
        return newcomer

    def take(self, address: Address) -> None:
        """Take a place for the lookup of *address*."""
        networks = _networks_of(address)
        self._taken[address] = self._clock(), networks
        self._counts.update(networks)

    def give_back(self, address: Address) -> None:
        """Free the place again."""
        _, networks = self._taken.pop(address)
        for network in networks:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]

    def _largest(
        self, size: int, within: tuple[int, int, int] | None
    ) -> tuple[int, int, int] | None:
        """Return the network of this *size* that has most places, *within* a wider one."""
        candidates = {
            networks[size]
            for _, networks in islice(self._taken.values(), MAX_SEARCHED)
            if within is None or within in networks
        }
        return max(candidates, key=self._counts.__getitem__, default=None)

    def _oldest_in(self, network: tuple[int, int, int]) -> Address:
        return next(
            address
            for address, (_, networks) in self._taken.items()
            if network in networks
        )


def _networks_of(address: Address) -> _Networks:
    version, value = address.version, int(address)
    return tuple(
        (size, version, value >> bits)
        for size, bits in enumerate(_DROPPED_BITS[version])
    )
