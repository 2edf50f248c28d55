"""The results, as tables for people and as JSON for programs."""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import DIRECT, Listed, Memory, Sample, Samples
from bench.postfix import BY_HAND

SHIM = "proxyshim"
MB = 1_000_000


@dataclass(slots=True)
class Results:
    """Everything that one run measured.  Parts that were left out are empty."""

    machine: dict[str, str]
    notes: list[str] = field(default_factory=list)
    rounds: Samples = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    beside_idle: dict[int, dict[str, list[Sample]]] = field(default_factory=dict)
    allowlist: dict[int, Listed] = field(default_factory=dict)
    postfix: Samples = field(default_factory=dict)
    conveyances: dict[str, Samples] = field(default_factory=dict)
    conveyances_memory: dict[str, Memory] = field(default_factory=dict)
    tls: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the results in JSON's types."""
        return asdict(self)


# The machine.


def describe_machine(python: Path) -> dict[str, str]:
    """Return the properties of the machine that the figures depend on."""
    return {
        "processor": _first_match(r"model name\s*: (.*)", Path("/proc/cpuinfo")),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _memory(),
        "kernel": platform.release(),
        "load": "{:.2f} {:.2f} {:.2f} before the run".format(*os.getloadavg()),
        "python": _first_line([str(python), "-c", "import sys; print(sys.version)"]),
        "nginx": _first_line(["nginx", "-v"]),
        "haproxy": _first_line(["haproxy", "-v"]),
        "postfix": _first_line(["postconf", "-d", "mail_version"]),
    }


def _first_match(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text())
    return found[1] if found else "unknown"


def _memory() -> str:
    kib = int(_first_match(r"MemTotal:\s*(\d+)", Path("/proc/meminfo")))
    return f"{kib / 1024 / 1024:.0f} GiB"


def _first_line(argv: Sequence[str]) -> str:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
    except OSError:
        return "not installed"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


# The tables.


def print_report(results: Results) -> None:
    """Print all tables."""
    print("\nThe machine")
    for name, value in results.machine.items():
        print(f"  {name:10} {value}")
    for note in results.notes:
        print(f"  Note: {note}")
    if results.rounds:
        _print_cpu(
            "CPU per session, µs: all (user + system); 20 at once, messages of 2 kB",
            results.rounds,
        )
        print(
            "  nginx answers by itself up to RCPT, so in connect and quit it uses no"
            " backend."
        )
        _print_bodies(results.rounds["bodies"])
        _print_greetings(results.rounds)
    if results.memory:
        _print_memory(results.memory)
    if results.beside_idle:
        _print_beside_idle(results.beside_idle)
    if results.allowlist:
        _print_allowlist(results.allowlist)
    if results.postfix:
        _print_postfix(results.postfix)
    for convey, samples in results.conveyances.items():
        _print_cpu(
            f'CPU per session with convey = "{convey}", µs: all (user + system)',
            samples,
        )
        if convey in results.conveyances_memory:
            _print_memory(results.conveyances_memory[convey], convey)
    if results.tls:
        _print_tls(results.tls)


def _print_tls(found: Mapping[str, Mapping[str, float]]) -> None:
    names = list(next(iter(found.values())))
    own = names[-1]
    rows = []
    for name, by_peer in found.items():
        cells = [f"{value:.0f}" for value in by_peer.values()]
        ratios = [f"{by_peer[own] / by_peer[other]:.2f}" for other in names[:-1]]
        rows.append([name, *cells, *ratios])
    title = "Sessions inside TLS that a peer ends: handshake, EHLO, QUIT"
    _print_table(title, ["", *names, *(f"/ {each}" for each in names[:-1])], rows)


def _print_cpu(title: str, rounds: Samples) -> None:
    rows = []
    for name, by_peer in rounds.items():
        if name == "bodies" or name.startswith("greeting"):
            continue
        cells = [_cpu_cell(by_peer[peer]) for peer in by_peer]
        rows.append([name, *cells, *_ratios(by_peer, lambda sample: sample.cpu_us)])
    peers = list(next(iter(rounds.values())))
    _print_table(title, ["", *peers, *_ratio_heads(peers)], rows)


def _cpu_cell(samples: Sequence[Sample]) -> str:
    total = median(sample.cpu_us for sample in samples)
    user = sum(sample.cpu.user_ticks for sample in samples if sample.cpu)
    system = sum(sample.cpu.system_ticks for sample in samples if sample.cpu)
    share = user / max(1, user + system)
    return f"{total:.0f} ({total * share:.0f} + {total * (1 - share):.0f})"


def _print_bodies(by_peer: Mapping[str, Sequence[Sample]]) -> None:
    peers = list(by_peer)
    rate = {
        peer: median(_octets_per_s(sample) / MB for sample in by_peer[peer])
        for peer in peers
    }
    cpu = {
        peer: median(_cpu_s_per_gb(sample) for sample in by_peer[peer])
        for peer in peers
    }
    _print_table(
        "Bodies of 10 MB, 4 at once",
        ["", *peers, *_ratio_heads(peers)],
        [
            [
                "MB/s",
                *(f"{rate[peer]:.0f}" for peer in peers),
                *_ratios(by_peer, _octets_per_s),
            ],
            [
                "CPU, s/GB",
                *(f"{cpu[peer]:.3f}" for peer in peers),
                *_ratios(by_peer, _cpu_s_per_gb),
            ],
        ],
    )


def _octets_per_s(sample: Sample) -> float:
    return sample.content_octets / sample.result.seconds


def _cpu_s_per_gb(sample: Sample) -> float:
    assert sample.cpu is not None
    return sample.cpu.total_us * 1000 / sample.content_octets


def _print_greetings(rounds: Samples) -> None:
    rows = []
    peers: list[str] = []
    for name, by_peer in rounds.items():
        if not name.startswith("greeting"):
            continue
        peers = list(by_peer)
        cells = [_greeting_cell(by_peer[peer]) for peer in peers]
        rows.append([f"{name.removeprefix('greeting ')} at once", *cells])
    _print_table("Time to greeting, ms: p50 / p99", ["", *peers], rows)


def _greeting_cell(samples: Sequence[Sample]) -> str:
    p50 = median(sample.result.greeting_p50_us for sample in samples) / 1000
    p99 = median(sample.result.greeting_p99_us for sample in samples) / 1000
    return f"{p50:.2f} / {p99:.2f}"


def _print_memory(memory: Memory, convey: str = "xclient") -> None:
    rows = []
    peers = list(next(iter(memory.values())))
    for name, by_peer in memory.items():
        each = {peer: by_peer[peer].octets_each for peer in peers}
        cells = [
            f"{held.octets_each / 1024:.1f} ({held.octets_left_each / 1024:.1f})"
            for held in by_peer.values()
        ]
        ratios = [
            f"{each[SHIM] / each[peer]:.2f}" if each[peer] else "-"
            for peer in peers
            if peer != SHIM
        ]
        rows.append([name, *cells, *ratios])
    rows.append(
        [
            "before, MiB in all",
            *(f"{_smallest(memory, peer) / 2**20:.1f}" for peer in peers),
            *("" for peer in peers if peer != SHIM),
        ]
    )
    _print_table(
        f'Memory per idle session with convey = "{convey}", KiB'
        " (in parentheses: not freed afterwards)",
        ["", *peers, *_ratio_heads(peers)],
        rows,
    )


def _smallest(memory: Memory, peer: str) -> int:
    return min(by_peer[peer].before for by_peer in memory.values())


def _print_beside_idle(found: Mapping[int, Mapping[str, Sequence[Sample]]]) -> None:
    peers = list(next(iter(found.values())))
    rows = [
        [
            f"{sessions} idle",
            *(_cpu_cell(by_peer[peer]) for peer in peers),
            *_ratios(by_peer, lambda sample: sample.cpu_us),
        ]
        for sessions, by_peer in found.items()
    ]
    _print_table(
        "CPU per session of one message, µs, while other sessions are idle",
        ["", *peers, *_ratio_heads(peers)],
        rows,
    )


def _print_allowlist(found: Mapping[int, Listed]) -> None:
    first = next(iter(found.values()))
    rows = [
        [
            f"{entries} entries",
            f"{listed.start_s:.2f}",
            f"{(listed.memory - first.memory) / 2**20:.1f}",
            _cpu_cell(listed.samples),
        ]
        for entries, listed in found.items()
    ]
    _print_table(
        "proxyshim's allowlist (haproxy_hosts)",
        ["", "start, s", "memory, MiB more", "CPU per connect and quit, µs"],
        rows,
    )


def _print_postfix(found: Samples) -> None:
    rows = []
    for name, by_peer in found.items():
        direct, by_hand, ours = by_peer[DIRECT], by_peer[BY_HAND], by_peer[SHIM]
        ratio = median(
            mine.sessions_per_s / theirs.sessions_per_s
            for mine, theirs in zip(ours, direct, strict=True)
        )
        rows.append(
            [
                name,
                f"{median(sample.sessions_per_s for sample in direct):.0f}",
                f"{median(sample.sessions_per_s for sample in ours):.0f}",
                f"{ratio:.2f}",
                _greeting_cell(direct),
                _greeting_cell(by_hand),
                _greeting_cell(ours),
                f"{_added_ms(ours, direct):+.2f}",
                f"{_added_ms(ours, by_hand):+.2f}",
            ]
        )
    _print_table(
        "With a real Postfix as the backend, 20 at once",
        [
            "",
            "direct, 1/s",
            "proxyshim, 1/s",
            "ratio",
            "greeting direct, ms",
            "XCLIENT by hand",
            "through proxyshim",
            "added, p50",
            "to by hand",
        ],
        rows,
    )


def _added_ms(ours: Sequence[Sample], theirs: Sequence[Sample]) -> float:
    """Return how much later our greeting comes (p50), as the median of the rounds."""
    return (
        median(
            mine.result.greeting_p50_us - other.result.greeting_p50_us
            for mine, other in zip(ours, theirs, strict=True)
        )
        / 1000
    )


def _ratio_heads(peers: Iterable[str]) -> list[str]:
    return [f"/ {peer}" for peer in peers if peer != SHIM]


def _ratios(by_peer: Mapping[str, Sequence[Sample]], figure: Any) -> list[str]:
    """Return the shim's figure divided by each peer's: the median ratio of the rounds."""
    return [
        f"{median(map(_divide, map(figure, by_peer[SHIM]), map(figure, theirs))):.2f}"
        for peer, theirs in by_peer.items()
        if peer != SHIM
    ]


def _divide(ours: float, theirs: float) -> float:
    return ours / theirs


def _print_table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    widths = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads))]
    print(f"\n{title}")
    for row in [heads, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        print("  " + "  ".join(cells).rstrip())
