"""Compare proxyshim with nginx and HAProxy: ``python -m bench``, or ``make bench``."""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from bench import conveyances, peers, postfix, report, tls
from bench.measure import Bench, progress
from bench.plan import FULL, QUICK
from bench.programs import compile_programs

PARTS = (
    "rounds",
    "memory",
    "beside-idle",
    "allowlist",
    "conveyances",
    "tls",
    "postfix",
)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Compare proxyshim with nginx's mail proxy and HAProxy.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="take half a minute, to see that it works"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument(
        "--only",
        choices=PARTS,
        action="append",
        help="measure this part only; may be repeated",
    )
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="the Python that runs the shim, of the same minor version as .venv's"
        " (default: /usr/bin/python3 if it fits, else .venv's)",
    )
    return parser.parse_args()


def main() -> None:
    """Run the requested parts and print the results."""
    arguments = _read_arguments()
    parts = arguments.only or PARTS
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    python = peers.choose_python(arguments.python)
    shim = peers.proxyshim(python)
    others = {"nginx": peers.nginx(), "haproxy": peers.haproxy()}
    kinds = [kind for kind in others.values() if kind is not None] + [shim]
    results = report.Results(report.describe_machine(python))
    results.notes += [
        f"without {name}, which is not installed"
        for name, kind in others.items()
        if kind is None
    ]
    plan = QUICK if arguments.quick else FULL
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="proxyshim-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # nginx's worker runs as another user
        programs = compile_programs(directory)
        bench = Bench(programs, directory, kinds, plan)
        if "rounds" in parts:
            results.rounds = bench.rounds()
        if "memory" in parts:
            results.memory = bench.memory(plan.idle())
        if "beside-idle" in parts:
            results.beside_idle = bench.beside_idle()
        if "allowlist" in parts:
            results.allowlist = bench.allowlist(python)
        if "conveyances" in parts:
            measured = conveyances.measure(programs, directory, python, plan)
            results.conveyances = measured.samples
            results.conveyances_memory = measured.memory
            results.notes += measured.notes
        if "tls" in parts:
            results.tls, notes = tls.measure(programs, directory, python, plan)
            results.notes += notes
        reason = postfix.why_not()
        if "postfix" in parts and reason is None:
            results.postfix = postfix.measure(programs, shim, plan)
        elif reason is not None:
            results.notes.append(f"without Postfix: {reason}")
    progress(f"{time.monotonic() - began:.0f} s")
    report.print_report(results)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results.as_json(), indent=1) + "\n")


if __name__ == "__main__":
    main()
