"""The backends of a listener, in the order of preference: one, usually.

Sessions use the first address that works.  It is no load balancing: the second backend gets
clients while the first one fails.  Each backend keeps its own record of its addresses, which
listeners that name it share (``addresses.py``).
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from proxyshim.addresses import Address
from proxyshim.backend.address import BackendAddress, Fault
from proxyshim.backend.addresses import BackendAddresses


class BackendList:
    """All addresses of all backends of a listener."""

    __slots__ = ("members", "name")

    def __init__(self, members: Sequence[BackendAddresses]) -> None:
        """Take the *members* in the order in which to try them; there is at least one."""
        self.members = tuple(members)
        # As configured, for messages.
        self.name = ", ".join(str(each.name) for each in self.members)

    @property
    def current(self) -> Sequence[BackendAddress]:
        """The addresses that the names have now, in the order of preference."""
        if len(self.members) == 1:
            return self.members[0].current
        return [each for member in self.members for each in member.current]

    def in_order(
        self, fits: Callable[[BackendAddress], bool] = lambda _: True
    ) -> Iterator[BackendAddress]:
        """Yield the addresses that *fits* accepts, in the order in which to try them.

        Those that failed of late come last.  One that failed long ago is in its old place, for one
        session, which tests it.
        """
        now = self.members[0].now()
        fitting = [each for each in self.current if fits(each)]
        avoided = [each for each in fitting if each.is_avoided(now)]
        for each in fitting:
            if each not in avoided:
                each.begin_test(now)
                yield each
        yield from avoided

    # The rule of trust asks these: it is as strict as for any of the members.

    @property
    def is_known(self) -> bool:
        """True if each backend has an address, or has ever had one."""
        return all(each.is_known for each in self.members)

    def knows(self, version: int) -> bool:
        """Return True if all addresses of that IP *version* are known."""
        return all(each.knows(version) for each in self.members)

    def __contains__(self, address: Address) -> bool:
        """Return True if *address*, folded, is one of a backend's, or was of late."""
        return any(address in each for each in self.members)

    def ips(self) -> frozenset[Address]:
        """Return the IP addresses that the names have now; none of a unix socket."""
        return frozenset().union(*(each.ips() for each in self.members))

    @property
    def failure(self) -> str | None:
        """Why a name cannot be resolved; None if each was."""
        return next((each.failure for each in self.members if each.failure), None)

    async def wait_settled(self) -> None:
        """Wait until each name was resolved, or could not be."""
        await asyncio.gather(*(each.wait_settled() for each in self.members))

    async def refresh(self) -> None:
        """Resolve each name once."""
        await asyncio.gather(*(each.refresh() for each in self.members))

    # What sessions and tests find out.

    def note_failure(self, address: BackendAddress, detail: str) -> None:
        """Note that *address* failed; report it if sessions can use another one."""
        has_others = len(self.current) > 1
        self._owner(address).note_failure(address, detail, has_others=has_others)

    def note_success(self, address: BackendAddress) -> None:
        """Note that *address* greeted us."""
        self._owner(address).note_success(address, has_others=len(self.current) > 1)

    def note_source(
        self, address: BackendAddress, mark: int, fault: Fault | None
    ) -> None:
        """Note whether connections with that *mark* from clients' addresses reach *address*."""
        self._owner(address).note_source(address, mark, fault)

    def source_fault(self, mark: int) -> Fault | None:
        """Return why the clients of one IP version cannot be served from their own addresses."""
        current = self.current
        for family in {each.family for each in current}:
            faults = [
                each.source_proof(mark).fault
                for each in current
                if each.family == family
            ]
            if all(faults):
                return faults[0]
        return None

    def note_pass(self, address: BackendAddress, fault: Fault | None) -> None:
        """Note whether the service at *address* that takes clients' sockets is down."""
        self._owner(address).note_pass(address, fault)

    @property
    def pass_fault(self) -> Fault | None:
        """Why the service that takes clients' sockets is down; None if it is not."""
        faults = (each.pass_proof.fault for each in self.current)
        return next((fault for fault in faults if fault is not None), None)

    def run_test(
        self, address: BackendAddress, test: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Run a *test* of an *address* in the background, until its backend is not used."""
        return self._owner(address).run_test(test)

    def _owner(self, address: BackendAddress) -> BackendAddresses:
        for member in self.members:
            if member.owns(address):
                return member
        return self.members[0]  # it is forgotten, a day after the name moved
