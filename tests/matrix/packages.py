"""Get mail servers without installing them: Debian packages unpacked, and npm modules."""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.docs import ROOT
from tests.integration.lab.needs import need_root

CACHE = ROOT / ".cache" / "mail-servers"
LIMIT_S = 300


def unpack_debian(*packages: str) -> Path:
    """Return a folder with the files of *packages* and of what they need and we lack."""
    need_root()
    place = _place("-".join(packages))
    with _one_at_a_time(), _unfinished(place) as made:
        if place.exists():
            return place
        _run(["apt-get", "-qq", "update"])
        plan = ["apt-get", "-s", "install", "--no-install-recommends", *packages]
        lines = _run(plan).splitlines()
        needed = [line.split()[1] for line in lines if line.startswith("Inst ")]
        # An installed package is part of the root below the unpacked one.
        archives = made / "archives"
        archives.mkdir()
        _run(["apt-get", "-qq", "download", *needed], archives)
        for archive in sorted(archives.iterdir()):
            _run(["dpkg", "--extract", str(archive), str(made)])
        shutil.rmtree(archives)
        _merge_usr(made)
        made.rename(place)
    return place


def install_npm(package: str) -> Path:
    """Return a folder with a "node_modules" that has the npm package (name@version)."""
    place = _place(package.replace("/", "-"))
    npm = shutil.which("npm")
    assert npm is not None, "needs npm (Debian package npm)"
    with _one_at_a_time(), _unfinished(place) as made:
        if place.exists():
            return place
        options = ["--no-save", "--no-package-lock", "--no-audit", "--no-fund"]
        _run([npm, "install", *options, package], made)
        made.rename(place)
    return place


def _place(name: str) -> Path:
    """Return a short path for *name*, because sockets are made below it."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return CACHE / f"{name.split('@')[0].split('-')[0]}-{digest}"


def _merge_usr(root: Path) -> None:
    """Move what a package has in /bin, /sbin or /lib, which are links to /usr's."""
    for name in ("bin", "sbin", "lib", "lib64"):
        if (old := root / name).is_dir():
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            _run(["cp", "-a", f"{old}/.", str(root / "usr" / name)])
            shutil.rmtree(old)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep out other test processes, because apt-get has a lock of its own."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _unfinished(place: Path) -> Iterator[Path]:
    """Make a folder beside *place* that vanishes unless it was renamed to it."""
    made = Path(tempfile.mkdtemp(prefix="unfinished-", dir=place.parent))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _run(argv: Sequence[str], directory: Path | None = None) -> str:
    done = subprocess.run(
        argv,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}"
    return done.stdout
