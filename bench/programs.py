"""The two C programs: compile them, run them, read their output."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
COMPILER = ("cc", "-O2", "-Wall", "-Wextra", "-Werror")
LIMIT_S = 120  # for one call of the load generator


class LoadFailed(Exception):  # noqa: N818
    """The load generator got a wrong reply, or did not finish in time."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The compiled programs."""

    load: Path
    backend: Path


def compile_programs(directory: Path) -> Programs:
    """Compile both into *directory*."""
    for name in ("load", "backend"):
        source = SOURCES / f"{name}.c"
        subprocess.run([*COMPILER, "-o", directory / name, source], check=True)
    return Programs(directory / "load", directory / "backend")


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients of the load generator do."""

    sessions: int
    at_once: int = 20
    messages: int = 1  # 0 means connect and quit
    octets: int = 2048  # of each message
    header: str = "v2"  # v1, v2, none, or xclient: the client itself sends XCLIENT
    pipelining: bool = False
    hold: str = ""  # stop after "ehlo" or "rcpt", and stay connected

    def argv(self, program: Path, port: int) -> list[str]:
        """Return the command line."""
        options = {
            "port": port,
            "sessions": self.sessions,
            "at-once": self.at_once,
            "messages": self.messages,
            "octets": self.octets,
            "header": self.header,
            "limit-s": LIMIT_S,
        }
        argv = [str(program)]
        for name, value in options.items():
            argv += [f"--{name}", str(value)]
        argv += ["--pipelining"] if self.pipelining else []
        return argv + (["--hold", self.hold] if self.hold else [])


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What the load generator measured."""

    seconds: float
    greeting_p50_us: int
    greeting_p90_us: int
    greeting_p99_us: int
    greeting_histogram: list[tuple[int, int]]  # upper bound in µs, sessions

    @classmethod
    def read(cls, line: str) -> "LoadResult":
        """Read the line that the load generator prints."""
        values = json.loads(line)
        if values["failed"]:
            raise LoadFailed(f"{values['failed']} of {values['sessions']} sessions")
        histogram = [(upper, count) for upper, count in values["greeting_histogram"]]
        return cls(
            values["seconds"],
            values["greeting_p50_us"],
            values["greeting_p90_us"],
            values["greeting_p99_us"],
            histogram,
        )


def run_load(argv: Sequence[str]) -> LoadResult:
    """Run the load generator to its end.  Raises LoadFailed."""
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise LoadFailed(f"{' '.join(argv)}: {done.stderr.strip()}")
    return LoadResult.read(done.stdout)


@contextmanager
def held_sessions(argv: Sequence[str]) -> Iterator[LoadResult]:
    """Open sessions, and hold them during the block."""
    holder = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        line = holder.stdout.readline()
        if not line:
            raise LoadFailed(f"{' '.join(argv)}: see above")
        yield LoadResult.read(line)


@contextmanager
def running_backend(argv: Sequence[str]) -> Iterator[int]:
    """Run the fast backend; yield its port."""
    backend = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with backend:  # closes its standard input at the end, which stops it
        assert backend.stdout is not None
        yield int(backend.stdout.readline())
