"""Root directories of Debian releases, and commands in throw-away copies of them.

debootstrap makes them from the mirror that this machine's own apt uses.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.docs import ROOT
from tests.integration.lab.needs import SEARCH_PATH, find_program, need_root

CACHE: Final = ROOT / ".cache" / "debian-roots"
LIMIT_S: Final = 900

# Both run in their own mount namespace.  $1 is a root; then come pairs of a path here and its
# place there, "--", and the command.
_IN_IT: Final = """\
set -e
root=$1; shift
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do
    mkdir -p "$root${2%/*}"
    if [ -d "$1" ]; then mkdir -p "$root$2"; else touch "$root$2"; fi
    mount --bind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" "$@"
"""
# $1 is an empty directory here, and $2 the root.
_IN_A_COPY: Final = (
    """\
set -e
place=$1; lower=$2; shift 2
mount -t tmpfs -o mode=755 tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
options=lowerdir=$lower,upperdir=$place/upper,workdir=$place/work
mount -t overlay -o "$options" overlay "$place/root"
set -- "$place/root" "$@"
"""
    + _IN_IT
)
# What a program in the copy may need to reach the package registries.
_CONFIGURATION: Final = (
    "/etc/resolv.conf",
    "/etc/pip.conf",
    "/etc/ssl/certs/ca-certificates.crt",
)


def find_mirror() -> str:
    """Return the address of the Debian mirror in this machine's apt configuration."""
    need_root()
    wanted = ["--format", "$(SITE)", "Label: Debian", "Created-By: Packages"]
    sites = _run([find_program("apt-get"), "indextargets", *wanted]).split()
    if not sites:
        pytest.skip("needs a Debian mirror in the apt configuration")
    return sites[0]


def make_root(release: str, packages: Sequence[str]) -> Path:
    """Return the root of a minimal *release* with these packages and what they need."""
    install = "apt-get -qq install -y --no-install-recommends"
    script = f"apt-get -qq update; {install} {' '.join(packages)}; apt-get clean"
    return change_root(_make_base(release), release, script)


def change_root(root: Path, name: str, script: str) -> Path:
    """Return a copy of *root* in which that shell script was run."""
    digest = hashlib.sha256(f"{root} {script}".encode()).hexdigest()[:8]
    place = CACHE / f"{name}-{digest}"
    with unfinished(place) as made:
        if made is not None:
            _run(["cp", "-a", f"{root}/.", str(made)])
            # No daemon is to start.  Exit status 101 says so (see invoke-rc.d).
            policy = made / "usr" / "sbin" / "policy-rc.d"
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
            _run_in(_IN_IT, [str(made)], script, {}, {})
            policy.unlink()
    return place


def _make_base(release: str) -> Path:
    debootstrap, mirror = find_program("debootstrap"), find_mirror()
    with unfinished(CACHE / release) as made:
        if made is not None:
            _run([debootstrap, "--variant=minbase", release, str(made), mirror])
    return CACHE / release


def run_in_copy(
    root: Path, script: str, binds: Mapping[Path, str], **environment: str
) -> str:
    """Run a shell script in a copy of *root*, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="copy-", dir=CACHE) as place:
        existing = {Path(name): name for name in _CONFIGURATION if Path(name).exists()}
        binds = {**existing, **binds}
        return _run_in(_IN_A_COPY, [place, str(root)], script, binds, environment)


def _run_in(
    enter: str,
    place: Sequence[str],
    script: str,
    binds: Mapping[Path, str],
    environment: Mapping[str, str],
) -> str:
    pairs = [str(part) for bind in binds.items() for part in bind]
    argv = [find_program("unshare"), "--mount", "--propagation", "private"]
    argv += ["sh", "-c", enter, "sh", *place, *pairs, "--", "sh", "-ec", script]
    inherited = {name: text for name, text in os.environ.items() if "PIP" in name}
    fixed = {"PATH": SEARCH_PATH, "DEBIAN_FRONTEND": "noninteractive"}
    return _run(argv, {**inherited, **fixed, **environment})


@contextmanager
def unfinished(place: Path) -> Iterator[Path | None]:
    """Make a folder that becomes *place* at the end; None if that exists already."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            yield None
            return
        made = Path(tempfile.mkdtemp(prefix="unfinished-", dir=place.parent))
        made.chmod(0o755)
        try:
            yield made
            made.rename(place)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _run(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}"
    return done.stdout
