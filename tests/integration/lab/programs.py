"""Run programs in the foreground, and wait for lines that they write."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.integration.lab.netns import Host

T = TypeVar("T")

DEADLINE_S = 15.0  # for anything that takes milliseconds on an idle machine


class Lines:
    """The lines that a program has written so far.  Any thread may wait for one."""

    def __init__(self, name: str) -> None:
        """Start empty; *name* is for messages."""
        self._name = name
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()

    def add(self, line: str) -> None:
        """Append a line and wake the waiting threads."""
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()

    def end(self) -> None:
        """Wake the waiting threads, because no more lines will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def mark(self) -> int:
        """Return the current position, to be passed as *since*."""
        with self._changed:
            return len(self._lines)

    def since(self, mark: int = 0) -> list[str]:
        """Return the lines after the mark."""
        with self._changed:
            return self._lines[mark:]

    def wait(
        self,
        pick: Callable[[str], T | None],
        what: str,
        *,
        since: int = 0,
        count: int = 1,
        within_s: float = DEADLINE_S,
    ) -> T:
        """Return the *count*-th result of *pick* that is not None, after the mark."""
        deadline = time.monotonic() + within_s
        position, seen = since, 0
        with self._changed:
            while True:
                for line in self._lines[position:]:
                    if (picked := pick(line)) is not None:
                        seen += 1
                        if seen == count:
                            return picked
                position = len(self._lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    break
                self._changed.wait(left)
            why = "ended" if self._ended else f"waited {within_s} s"
            tail = "\n".join(self._lines[since:][-60:])
        raise AssertionError(
            f"{self._name}: {why}, no {what} ({seen}/{count}) in:\n{tail}"
        )

    def wait_for(
        self,
        pattern: str,
        *,
        since: int = 0,
        count: int = 1,
        within_s: float = DEADLINE_S,
    ) -> re.Match[str]:
        """Return the match of the *count*-th line that *pattern* is found in."""
        search = re.compile(pattern).search
        what = f"line like {pattern!r}"
        return self.wait(search, what, since=since, count=count, within_s=within_s)


class Program:
    """A program on a host: a child of the test process, with its output in ``lines``."""

    def __init__(
        self,
        name: str,
        host: Host,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        """Start the program in its own process group."""
        self.name = name
        self.lines = Lines(name)
        self._process = subprocess.Popen(
            host.command(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=directory,
            start_new_session=True,
        )
        # If the tests are killed, the sweeper's input ends without a line, and it kills
        # the program.  PR_SET_PDEATHSIG would not do, because the kernel clears it when a
        # daemon changes its user.
        self._sweeper = subprocess.Popen(
            ["sh", "-c", 'read -r _ || kill -s KILL -- "-$0"', str(self.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = threading.Thread(
            target=self._read, name=f"read-{name}", daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """Return the process id, which is also the id of the process group."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Return True if the program has not ended yet."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, not to its group."""
        self._process.send_signal(number)

    def stop(self, within_s: float = DEADLINE_S) -> int:
        """Send SIGTERM unless the program has ended; then as ``wait_for_exit``."""
        if self.is_running:
            self.signal(signal.SIGTERM)
        return self.wait_for_exit(within_s)

    def wait_for_exit(self, within_s: float = DEADLINE_S) -> int:
        """Wait until the program ends, kill its children, and return its exit code."""
        try:
            return self._process.wait(within_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            if self._sweeper.poll() is None:
                self._sweeper.communicate(b"nothing left to do\n")
            self._reader.join(DEADLINE_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self.lines.add(line.decode("utf-8", "backslashreplace").rstrip("\n"))
        self.lines.end()
