"""What a process and its children cost, according to the kernel: time and memory."""

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time.

    *total_us* is exact (schedstat).  The kernel's tick samples how it divides into user
    and system time, so that division is reliable only over seconds.
    """

    total_us: float
    user_ticks: int
    system_ticks: int

    def since(self, before: "Cpu") -> "Cpu":
        """Return the time used since *before*."""
        return Cpu(
            self.total_us - before.total_us,
            self.user_ticks - before.user_ticks,
            self.system_ticks - before.system_ticks,
        )


def cpu_of(pid: int) -> Cpu:
    """Return the CPU time that a process and its children have used so far."""
    total_ns = user = system = 0
    for process in _family(pid):
        for thread in (PROC / str(process) / "task").iterdir():
            total_ns += int((thread / "schedstat").read_text().split()[0])
        # The name, in parentheses, may contain anything; utime and stime are 14 and 15.
        values = (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
        user += int(values[11])
        system += int(values[12])
    return Cpu(total_ns / 1000, user, system)


def memory_octets(pid: int) -> int:
    """Return the proportional set size of a process and its children, in bytes."""
    return 1024 * sum(_pss_kib(process) for process in _family(pid))


def open_descriptors(pid: int) -> int:
    """Return how many descriptors a process and its children have open."""
    return sum(len(os.listdir(PROC / str(process) / "fd")) for process in _family(pid))


def _family(pid: int) -> list[int]:
    found = [pid]
    for process in found:  # the list grows as we go
        children = PROC / str(process) / "task" / str(process) / "children"
        found += [int(child) for child in children.read_text().split()]
    return found


def _pss_kib(pid: int) -> int:
    for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError("no Pss in smaps_rollup")
