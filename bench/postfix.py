"""A real Postfix as the backend: what the shim adds to the work of a whole mail server.

It is the Postfix of the tests, on this machine's loopback.  It accepts mail as in service
and then discards it, so that the benchmark measures only the way in.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench import cost, peers
from bench.measure import DIRECT, Sample, progress
from bench.peers import Kind
from bench.plan import Plan
from bench.programs import Load, Programs, run_load
from tests.integration.lab.netns import Host
from tests.integration.lab.postfix import DAEMONS, Postfix, Smtpd, front_door

# In these samples the clients send EHLO and XCLIENT themselves.
BY_HAND = "by hand"
SETTINGS = {
    "mynetworks": "127.0.0.0/8",
    "virtual_transport": "discard",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
}


def why_not() -> str | None:
    """Return the reason why we cannot run Postfix here, or None if we can."""
    if not (DAEMONS / "master").exists():
        return "Postfix is not installed"
    if os.geteuid() != 0:
        return "only root can start Postfix"
    return None


def measure(
    programs: Programs, kind: Kind, plan: Plan
) -> dict[str, dict[str, list[Sample]]]:
    """Send mail to Postfix directly and through the shim, in turns."""
    loads = {
        "one message": Load(plan.sessions // 3),
        "connect and quit": Load(plan.sessions // 3, messages=0),
    }
    found: dict[str, dict[str, list[Sample]]] = {name: {} for name in loads}
    with (
        _postfix() as (directory, for_shim, for_all),
        peers.running(kind, directory / "shim", for_shim) as shim,
    ):
        for number in range(plan.rounds + 1):
            progress(f"Postfix, round {number} of {plan.rounds}")
            for name, load in loads.items():
                direct = replace(load, header="none")
                # The same handshake as the shim's, but without a program in between: the
                # least that any front door needs before it can greet.
                by_hand = replace(load, header="xclient")
                before = cost.cpu_of(shim.pid)
                ours = run_load(load.argv(programs.load, shim.port))
                cpu = cost.cpu_of(shim.pid).since(before)
                theirs = run_load(direct.argv(programs.load, for_all))
                bare = run_load(by_hand.argv(programs.load, for_shim))
                if number == 0:  # warm-up: Postfix starts its processes on demand
                    continue
                rows = found[name]
                rows.setdefault(kind.name, []).append(Sample(load, ours, cpu))
                rows.setdefault(DIRECT, []).append(Sample(direct, theirs, None))
                rows.setdefault(BY_HAND, []).append(Sample(by_hand, bare, None))
    return found


@contextmanager
def _postfix() -> Iterator[tuple[Path, int, int]]:
    """Run Postfix; yield a directory, the port for the shim and the port for others."""
    directory = Path(tempfile.mkdtemp(prefix="proxyshim-bench-"))
    directory.chmod(0o755)  # for Postfix's users
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        ports = peers.free_port(), peers.free_port()
        services = {
            "shim": front_door(f"127.0.0.1:{ports[0]}"),
            "all": Smtpd(f"127.0.0.1:{ports[1]}"),
        }
        host = Host("this machine", here, ())
        postfix = Postfix(host, directory / "postfix", services, SETTINGS)
        try:
            yield directory, *ports
        finally:
            postfix.stop()
    finally:
        os.close(here)
        shutil.rmtree(directory, ignore_errors=True)
