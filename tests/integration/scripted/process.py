"""The shim in its own process, to test what only a process has: signals, memory, limits."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

import proxyshim
from tests.integration.lab.programs import Lines
from tests.integration.lab.shim import read_event
from tests.integration.scripted.wire import LIMIT_S

ROOT = Path(proxyshim.__file__).parent.parent
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Process:
    """``proxyshim run`` with a configuration; its log is in ``lines``."""

    def __init__(
        self,
        config: Path,
        *,
        argv: Sequence[str] = (sys.executable, "-m", "proxyshim", "run", "-c"),
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start the process.  Enter the context to wait until it serves."""
        self.lines = Lines("proxyshim")
        self._process = subprocess.Popen(
            [*argv, str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            pass_fds=pass_fds,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        """Wait until it serves."""
        try:
            self.wait_event("service_ready")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Kill the process."""
        self.kill()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def address(self) -> str:
        """Return the first address that it listens on."""
        return str(self.wait_event("listener_opened")["address"])

    def events(self, event: str, **match: object) -> list[Mapping[str, Any]]:
        """Return the events of that name that have these values."""
        wanted = {"event": event, **match}.items()
        found = map(read_event, self.lines.since())
        return [one for one in found if wanted <= one.items()]

    def wait_event(
        self, event: str, *, number: int = 1, **match: object
    ) -> Mapping[str, Any]:
        """Return the *number*-th event of that name that has these values."""
        wanted = {"event": event, **match}.items()

        def fits(line: str) -> Mapping[str, Any] | None:
            found = read_event(line)
            return found if wanted <= found.items() else None

        return self.lines.wait(fits, f"event {event} {match}", count=number)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Return True if the process has ended."""
        return self._process.poll() is not None

    def exit_code(self) -> int:
        """Wait for its end; return the exit code.  A successor may still write the log."""
        return self._process.wait(LIMIT_S)

    def wait(self) -> int:
        """Wait for its end and for its last log line; return the exit code."""
        code = self.exit_code()
        self._reader.join(LIMIT_S)
        return code

    def kill(self) -> None:
        """Kill the process."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as output:
            for line in output:
                self.lines.add(line.decode("utf-8", "backslashreplace").rstrip("\n"))
        self.lines.end()

    # What the kernel knows about the process.

    def leave_descriptors(self, spare: int) -> None:
        """Limit the process to *spare* descriptors more than it has open."""
        used = {int(each.name) for each in Path(f"/proc/{self.pid}/fd").iterdir()}
        free = (number for number in count() if number not in used)
        self.limit_descriptors(next(islice(free, spare, None)))

    def descriptors(self) -> int:
        """Return how many descriptors it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def limit_descriptors(self, limit: int) -> None:
        """Set the limit of its descriptors: all must be below *limit*."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (limit, hard))

    def cpu_s(self) -> float:
        """Return the CPU time that it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND

    def forget_peak_memory(self) -> int:
        """Reset the measured peak; return the memory that it uses now, in bytes."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    def peak_memory(self) -> int:
        """Return the peak of its memory since the reset, in bytes."""
        return self._memory("VmHWM")

    def address_space(self) -> int:
        """Return the size of its address space, in bytes."""
        return self._memory("VmSize")

    def _memory(self, key: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"{key}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024
