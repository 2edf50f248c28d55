"""The measurements.  In each round, each load runs on every peer before the next load.

Machine speed drifts over time, so only ratios within a round mean something.  The report
shows the median of these ratios over all rounds.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from bench import cost, peers
from bench.cost import Cpu
from bench.peers import Kind, Peer
from bench.plan import Plan
from bench.programs import (
    Load,
    LoadResult,
    Programs,
    held_sessions,
    run_load,
    running_backend,
)

DIRECT = "direct"
_SETTLE_S = 0.05  # after the last reply, a peer still has to close connections
_ALL_CLOSED_S = 60.0
_WARM_UP = Load(200)


@dataclass(frozen=True, slots=True)
class Sample:
    """One load on one peer."""

    load: Load
    result: LoadResult
    cpu: Cpu | None  # of the peer; None if the load ran without a peer

    @property
    def cpu_us(self) -> float:
        """Return the peer's CPU time per session."""
        assert self.cpu is not None
        return self.cpu.total_us / self.load.sessions

    @property
    def sessions_per_s(self) -> float:
        """Return the number of sessions per second."""
        return self.load.sessions / self.result.seconds

    @property
    def content_octets(self) -> int:
        """Return the size of all messages together."""
        return self.load.sessions * self.load.messages * self.load.octets


Samples = dict[str, dict[str, list[Sample]]]  # by load, then by peer


@dataclass(frozen=True, slots=True)
class Held:
    """The memory of idle sessions."""

    sessions: int
    before: int
    during: int
    after: int

    @property
    def octets_each(self) -> float:
        """Return the memory of one session."""
        return (self.during - self.before) / self.sessions

    @property
    def octets_left_each(self) -> float:
        """Return the memory per session that is not freed after the sessions."""
        return (self.after - self.before) / self.sessions


Memory = dict[str, dict[str, Held]]  # by load, then by peer


@dataclass(slots=True)
class Listed:
    """The cost of an allowlist."""

    start_s: float
    memory: int
    samples: list[Sample] = field(default_factory=list)


class Bench:
    """Runs the measurements.  Each peer has its own fast backend."""

    def __init__(
        self,
        programs: Programs,
        directory: Path,
        kinds: Sequence[Kind],
        plan: Plan,
        backend_options: Sequence[str] = (),
    ) -> None:
        """Measure these *kinds* of peers; their files go into *directory*."""
        self._backend_options = backend_options
        self.plan = plan
        self.kinds = kinds
        self._programs = programs
        self._directory = directory
        self._numbers = count(1)
        self._peer_cpu, self._other_cpu = _pins()

    @contextmanager
    def _backend(self) -> Iterator[int]:
        """Run a backend; yield its port.

        Each peer has its own, because with thousands of connections to one port the kernel
        has to search for a free local port.  That time would count as the cost of the peer.
        """
        program = [str(self._programs.backend), *self._backend_options]
        argv = [*self._other_cpu, *program]
        with running_backend(argv) as port:
            yield port

    @contextmanager
    def _running(self, kind: Kind) -> Iterator[Peer]:
        directory = self._directory / f"{kind.name}-{next(self._numbers)}"
        with (
            self._backend() as backend,
            peers.running(kind, directory, backend, self._peer_cpu) as peer,
        ):
            self._run(peer, _WARM_UP)
            yield peer

    @contextmanager
    def _all_running(self) -> Iterator[list[Peer]]:
        with ExitStack() as stack:
            yield [stack.enter_context(self._running(kind)) for kind in self.kinds]

    def _argv(self, load: Load, port: int) -> list[str]:
        return [*self._other_cpu, *load.argv(self._programs.load, port)]

    def _run(self, peer: Peer, load: Load) -> Sample:
        before = cost.cpu_of(peer.pid)
        result = run_load(self._argv(load, peer.port))
        time.sleep(_SETTLE_S)
        return Sample(load, result, cost.cpu_of(peer.pid).since(before))

    def _run_direct(self, load: Load, backend: int) -> Sample:
        bare = replace(load, header="none")
        return Sample(bare, run_load(self._argv(bare, backend)), None)

    # The rounds.

    def rounds(self) -> Samples:
        """Run every load that is repeated, in turns on all peers."""
        loads = {
            **self.plan.rows(),
            "bodies": self.plan.body(),
            **{f"greeting {n}": load for n, load in self.plan.greetings().items()},
        }
        samples: Samples = {name: {} for name in loads}
        with self._all_running() as running, self._backend() as backend:
            for number in range(self.plan.rounds):
                progress(f"round {number + 1} of {self.plan.rounds}")
                for name, load in loads.items():
                    if name.startswith("greeting"):
                        direct = self._run_direct(load, backend)
                        samples[name].setdefault(DIRECT, []).append(direct)
                    self._turn(samples[name], load, running)
        return samples

    def compare(self) -> Samples:
        """Run the loads of ``Plan.compared``, in turns on all peers."""
        loads = self.plan.compared()
        samples: Samples = {name: {} for name in loads}
        with self._all_running() as running:
            for _ in range(self.plan.rounds):
                for name, load in loads.items():
                    self._turn(samples[name], load, running)
        return samples

    def _turn(
        self,
        into: dict[str, list[Sample]],
        load: Load,
        running: Sequence[Peer],
    ) -> None:
        for peer in running:
            into.setdefault(peer.name, []).append(self._run(peer, load))

    # Idle sessions.

    def memory(self, loads: Mapping[str, Load]) -> Memory:
        """Measure idle sessions, each time on a new peer."""
        found: Memory = {}
        for name, load in loads.items():
            progress(f"idle sessions: {name}")
            found[name] = {kind.name: self._hold(kind, load) for kind in self.kinds}
        return found

    def _hold(self, kind: Kind, load: Load) -> Held:
        with self._running(kind) as peer:
            descriptors = cost.open_descriptors(peer.pid)
            before = cost.memory_octets(peer.pid)
            with held_sessions(self._argv(load, peer.port)):
                time.sleep(_SETTLE_S)
                during = cost.memory_octets(peer.pid)
            _wait_until_closed(peer, descriptors)
            return Held(load.sessions, before, during, cost.memory_octets(peer.pid))

    def beside_idle(self) -> dict[int, dict[str, list[Sample]]]:
        """Run sessions while others are open and idle."""
        load = Load(self.plan.sessions)
        found: dict[int, dict[str, list[Sample]]] = {}
        for open_besides in self.plan.open_besides:
            progress(f"{open_besides} sessions open while others work")
            idle = Load(open_besides, hold="rcpt")
            with self._all_running() as running, ExitStack() as stack:
                for peer in running:
                    argv = self._argv(idle, peer.port)
                    stack.enter_context(held_sessions(argv))
                samples = found.setdefault(open_besides, {})
                for _ in range(min(3, self.plan.rounds)):
                    self._turn(samples, load, running)
        return found

    # The allowlist: the shim alone.

    def allowlist(self, python: Path) -> dict[int, Listed]:
        """Start shims with lists of different lengths, and run the same load on each."""
        progress("allowlists")
        found = {}
        load = Load(self.plan.sessions, messages=0)
        with ExitStack() as stack:
            running = []
            for entries in self.plan.entries:
                kind = peers.proxyshim(python, _entries(entries))
                began = time.monotonic()
                peer = stack.enter_context(self._running(kind))
                start_s = time.monotonic() - began
                memory = cost.memory_octets(peer.pid)
                found[entries] = Listed(start_s, memory)
                running.append((peer, found[entries]))
            for _ in range(self.plan.rounds):
                for peer, listed in running:
                    listed.samples.append(self._run(peer, load))
        return found


def _entries(number: int) -> list[str]:
    """Return a list of *number* different proxies, the load generator's address last."""
    others = []
    for at in range(number - 1):
        high, middle, low = at >> 16, at >> 8 & 255, at & 255
        if at % 10 == 0:
            others.append(f"2001:db8:{high:x}:{at & 0xFFFF:x}::/64")
        else:
            others.append(f"10.{high}.{middle}.{low}")
    return [*others, "127.0.0.1"]


def _wait_until_closed(peer: Peer, descriptors: int) -> None:
    deadline = time.monotonic() + _ALL_CLOSED_S
    while cost.open_descriptors(peer.pid) > descriptors + 2:
        if time.monotonic() > deadline:
            raise SystemExit(f"{peer.name} keeps connections of sessions that are gone")
        time.sleep(_SETTLE_S)
    time.sleep(1.0)  # some peers free memory a little later


def _pins() -> tuple[list[str], list[str]]:
    """Return command prefixes that pin the peers to one processor, the rest to another."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2 or shutil.which("taskset") is None:
        return [], []
    return (
        ["taskset", "-c", str(processors[0])],
        ["taskset", "-c", str(processors[1])],
    )


def progress(text: str) -> None:
    """Print a progress line to stderr, apart from the results."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
