"""The conveyances other than XCLIENT, each beside a peer that does the same.

Connecting from the client's own address needs policy routes.  So that part runs in a network
namespace of its own, and the machine's routes stay as they are.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from bench import peers
from bench.measure import Bench, Memory, Samples, progress
from bench.plan import Plan
from bench.programs import Programs

_CLONE_NEWNET = 0x40000000  # <sched.h>
# What ``proxyshim routes`` prints for a backend on 127.0.0.1; go-mmproxy needs the same.
_ROUTES = """\
link set lo up
rule add pref 1230 from 127.0.0.1 iif lo lookup 123
route add local default dev lo table 123
"""


@dataclass(slots=True)
class Measured:
    """What was measured, by conveyance, and a note for each that was left out."""

    samples: dict[str, Samples] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measure(programs: Programs, directory: Path, python: Path, plan: Plan) -> Measured:
    """Measure the conveyances that can be measured here."""
    found = Measured()
    haproxy = peers.haproxy("send-proxy-v2")
    if haproxy is None:
        found.notes.append("without proxy-v2, because HAProxy is not installed")
    else:
        progress("proxy-v2")
        kinds = [haproxy, peers.proxyshim(python, convey="proxy-v2")]
        options = ["--expects-header"]
        bench = Bench(programs, _below(directory, "v2"), kinds, plan, options)
        found.samples["proxy-v2"] = bench.compare()
    others = [each for each in (peers.nginx(), peers.haproxy()) if each is not None]
    progress("postfix-pass")
    place = _below(directory, "pass")
    kinds = [*others, peers.proxyshim(python, convey="postfix-pass")]
    bench = Bench(programs, place, kinds, plan, ["--pass", str(place)])
    found.samples["postfix-pass"] = bench.compare()
    # The other conveyances hold two sockets for a session, as XCLIENT does.
    found.memory["postfix-pass"] = bench.memory(plan.idle_compared())
    mmproxy, reason = peers.go_mmproxy(), _why_no_network()
    if mmproxy is None:
        reason = "go-mmproxy is not installed"
    if mmproxy is None or reason:
        found.notes.append(f"without source-address: {reason}")
    else:
        progress("source-address")
        kinds = [mmproxy, peers.proxyshim(python, convey="source-address")]
        place = _below(directory, "source")
        bench = Bench(programs, place, kinds, plan)
        found.samples["source-address"] = _in_own_network(bench.compare)
    return found


def _below(directory: Path, name: str) -> Path:
    place = directory / name
    place.mkdir()
    place.chmod(0o755)
    return place


def _why_no_network() -> str:
    """Return why we cannot make a network namespace; empty if we can."""
    if os.geteuid() != 0:
        return "only root can make a network namespace"
    if shutil.which("ip", path=peers.SEARCH_PATH) is None:
        return "iproute2 is not installed"
    return ""


def _in_own_network(work: Callable[[], Samples]) -> Samples:
    """Return the result of *work*, which a child does in a namespace with our routes."""
    fork = get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)

    def run() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        ip = shutil.which("ip", path=peers.SEARCH_PATH)
        assert ip is not None
        subprocess.run([ip, "-batch", "-"], input=_ROUTES, text=True, check=True)
        theirs.send(work())

    child = fork.Process(target=run)
    child.start()
    theirs.close()
    try:
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        raise SystemExit("the part source-address failed: see above") from None
    finally:
        child.join()
