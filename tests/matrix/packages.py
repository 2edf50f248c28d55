"""Get mail servers without installing them: Debian packages unpacked, and npm modules."""

import fcntl
import hashlib
import platform
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


def unpack_debian(*packages: str, release: str = "") -> Path:
    """Return a folder with the files of *packages* and of what they need and we lack.

    The packages of another *release* need its C library, for example, so with one the folder
    has everything that they need.
    """
    need_root()
    place = _place("-".join((*packages, release) if release else packages))
    with _one_at_a_time(), _unfinished(place) as made:
        if place.exists():
            return place
        apt = ["apt-get", *_use_release(release, made / "apt")]
        _run([*apt, "-qq", "update"])
        plan = [*apt, "-s", "install", "--no-install-recommends", *packages]
        lines = _run(plan).splitlines()
        needed = [line.split()[1] for line in lines if line.startswith("Inst ")]
        # An installed package is part of the root below the unpacked one.
        archives = made / "archives"
        archives.mkdir()
        _run([*apt, "-qq", "download", *needed], archives)
        shutil.rmtree(made / "apt", ignore_errors=True)
        for archive in sorted(archives.iterdir()):
            _run(["dpkg", "--extract", str(archive), str(made)])
        shutil.rmtree(archives)
        _merge_usr(made)
        made.rename(place)
    return place


def _use_release(release: str, directory: Path) -> list[str]:
    """Return options that make apt-get use that release, with its files in *directory*.

    It is a release of this machine's own mirror, and no package counts as installed.
    """
    if not release:
        return []
    for name in ("lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True)
    (directory / "status").touch()
    ours = platform.freedesktop_os_release()["VERSION_CODENAME"]
    known = _run(["apt-get", "indextargets", "--format", "$(CODENAME) $(SITE)"])
    mirror = next(
        line.split()[1] for line in known.splitlines() if line.split()[0] == ours
    )
    (directory / "sources.list").write_text(f"deb {mirror} {release} main\n")
    settings = {
        "Dir::Etc::SourceList": directory / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": directory / "lists",
        "Dir::State::Status": directory / "status",
        "Dir::Cache": directory / "cache",
        "APT::Sandbox::User": "root",
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


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
