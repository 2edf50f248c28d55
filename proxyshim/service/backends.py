"""The backends of all listeners: their addresses outlive a reload, as trust has to."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

from proxyshim.addresses import Address, SocketName
from proxyshim.backend.addresses import BackendAddresses
from proxyshim.backend.backend_list import BackendList
from proxyshim.backend.lookup import SystemLookup
from proxyshim.dns.system import System
from proxyshim.metrics import Metrics

# How long a start or a reload waits for names that are not resolved yet.  Sessions that begin
# before they are get a 421 if their PROXY header makes a claim.
WAIT_RESOLVED_S: Final = 5.0


class Backends:
    """The addresses of each backend, by listener."""

    def __init__(self, system: System, metrics: Metrics) -> None:
        """Resolve nothing yet."""
        self._lookup = SystemLookup(system)
        self._metrics = metrics
        self._by_name: dict[SocketName, BackendAddresses] = {}
        self._by_listener: Mapping[str, BackendList] = {}
        self._marks: Mapping[str, int] = {}

    async def adopt(
        self,
        names: Mapping[str, Sequence[SocketName]],
        marks: Mapping[str, int],
    ) -> Mapping[str, BackendList]:
        """Resolve the backends of all listeners; return their addresses, by listener.

        *marks* has the ``source_mark`` of each listener that connects from the clients' addresses.

        Every name is resolved, again if it was before.  One for which that takes too long keeps
        what is known of it.
        """
        used = dict.fromkeys(name for each in names.values() for name in each)
        members = {name: self._get(name) for name in used}
        found = {
            listener: BackendList([members[name] for name in each])
            for listener, each in names.items()
        }
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_RESOLVED_S):
                for each in members.values():
                    await each.wait_settled()
        unused = self._by_name.keys() - used.keys()
        for addresses in [self._by_name.pop(name) for name in unused]:
            await addresses.close()
        self._by_listener, self._marks = found, marks
        self._note_readiness()
        return found

    def ips(self) -> Mapping[str, Collection[Address]]:
        """Return the present IP addresses of each listener's backend."""
        return {name: each.ips() for name, each in self._by_listener.items()}

    async def close(self) -> None:
        """Stop resolving."""
        for each in self._by_name.values():
            await each.close()

    def _get(self, name: SocketName) -> BackendAddresses:
        addresses = self._by_name.get(name)
        if addresses is None:
            addresses = BackendAddresses(
                name, self._lookup, on_change=self._note_readiness
            )
            for other in self._by_name.values():
                # The rule of trust follows the name, whatever the port.
                if name.host and other.name.host == name.host:
                    addresses.inherit(other)
            self._by_name[name] = addresses
            addresses.start()
        else:
            addresses.hurry()
        return addresses

    def _note_readiness(self) -> None:
        self._metrics.unresolved = frozenset(
            name for name, each in self._by_listener.items() if not each.is_known
        )
        self._metrics.unrouted = frozenset(
            name
            for name, mark in self._marks.items()
            if self._by_listener[name].source_fault(mark) is not None
        )
        self._metrics.down = frozenset(
            name
            for name, each in self._by_listener.items()
            if each.pass_fault is not None
        )
