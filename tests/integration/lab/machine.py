"""A machine: a real systemd as PID 1, in a container that is a copy of this system.

systemd-nspawn boots an overlay of the host's own ``/``: what is installed here is installed there,
and what is changed there is gone afterwards.  It runs on a host of the lab (netns.py), so that the
other hosts reach it, and a server that a test has on that host's loopback is on its own.

It is up in under two seconds, and several can be at once.  What does not bite in it, for want of
controllers: MemoryMax=, TasksMax=, CPUQuota=, and LimitNOFILE= above the host's own limit.
"""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import pytest

import proxyshim
from tests.integration.lab.needs import find_program, need_root
from tests.integration.lab.netns import Host
from tests.integration.lab.programs import DEADLINE_S, Program

# Bound into the machine, read-only: a service could not look for them below /root or /home.
PYTHON: Final = "/opt/lab/python"
PACKAGES: Final = "/opt/lab/site-packages"
SOURCE: Final = "/opt/lab/proxyshim"
# A directory of the test's own, for unix sockets: ``Machine.shared``.
SHARED: Final = "/opt/lab/shared"
_BINDS: Final = {
    PYTHON: Path(sys.base_prefix),
    PACKAGES: Path(pytest.__file__).parent.parent,
    SOURCE: Path(proxyshim.__file__).parent,
}

# In a mount namespace and a cgroup of its own: it takes the cgroup that it starts in for the root.
_BOOT = """\
set -e
for group in {groups}; do
    mkdir "$group"
    echo $$ >"$group/cgroup.procs"
done
cd {place}
mount -t tmpfs -o mode=755 tmpfs .
cd {place}
mkdir -p upper/etc/systemd/journald.conf.d work root
cat >upper/etc/systemd/journald.conf.d/lab.conf <<END
[Journal]
Storage=volatile
RateLimitIntervalSec=0
END
mount -t overlay -o lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work overlay root
exec {nspawn}
"""
# What a container should not do to the kernel that it shares with us, or need not do at all.
_MASKED: Final = (
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-remount-fs.service",
    "systemd-update-utmp.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "timers.target",
)
# As the operator's guide has it: a virtual environment for each version, and a link to one.
# Its packages are those that the tests run with; proxyshim is a copy that says its version.
_INSTALL = """\
set -e
place=/opt/proxyshim-{version}
packages=$place/lib/{python}/site-packages
mkdir -p "$place/bin" "$packages"
cp -r {source} "$packages/proxyshim"
echo '__version__ = "{version}"' >"$packages/proxyshim/__init__.py"
echo {shared} >"$packages/shared.pth"
echo "home = {home}/bin" >"$place/pyvenv.cfg"
ln -s "{home}/bin/{python}" "$place/bin/python"
cat >"$place/bin/proxyshim" <<END
#!$place/bin/python
import sys
from proxyshim.cli import main
sys.exit(main())
END
LD_LIBRARY_PATH={home}/lib "$place/bin/python" -m compileall -q "$packages/proxyshim"
chmod -R a+rX "$place"
chmod a+x "$place/bin/proxyshim"
# A Python with a shared library finds it where it was built, and that a service can't read.
mkdir -p /etc/systemd/system/proxyshim.service.d
cat >/etc/systemd/system/proxyshim.service.d/python.conf <<END
[Service]
Environment=LD_LIBRARY_PATH={home}/lib
END
"""


# Waits for the end of the tests.  nspawn's own end would not be the machine's.
_SWEEP: Final = """\
read -r _ && exit
kill -s KILL {leader}
sleep 1
find {groups} -depth -type d -exec rmdir {{}} +
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program printed, and how it ended."""

    status: int
    output: str


_numbers = count(1)


class Machine(Program):
    """A booted machine; what its console shows is in ``lines``."""

    def __init__(self, host: Host, directory: Path) -> None:
        """Boot it on *host*; its file system is mounted below *directory*, for it alone."""
        need_root()
        nspawn = find_program("systemd-nspawn")
        self.host = host
        name = f"proxyshim-{os.getpid()}-{next(_numbers)}"
        place = directory / name
        place.mkdir(parents=True)
        self.shared = directory / f"{name}.shared"
        self.shared.mkdir()
        self.shared.chmod(0o755)
        self._groups = [parent / name for parent in _cgroup_hierarchies()]
        self._leader = 0
        self._machine_sweeper: subprocess.Popen[bytes] | None = None
        script = _BOOT.format(
            groups=shlex.join(map(str, self._groups)),
            place=shlex.quote(str(place)),
            nspawn=shlex.join([nspawn, *self._nspawn_options(place / "root")]),
        )
        notify = str(directory / f"{name}.notify")
        environment = {
            "NOTIFY_SOCKET": notify,
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            "SYSTEMD_SECCOMP": "0",  # a filter of nspawn's would blur the units' own
        }
        argv = [find_program("unshare"), "--mount", "--propagation", "private"]
        argv += ["sh", "-c", script]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(notify)
            super().__init__(f"machine {name}", host, argv, environment=environment)
            try:
                self._wait_for_boot(notices)
            except BaseException:
                self.stop()
                raise
        sweep = _SWEEP.format(
            leader=self._leader, groups=shlex.join(map(str, self._groups))
        )
        self._machine_sweeper = subprocess.Popen(
            ["sh", "-c", sweep],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _nspawn_options(self, root: Path) -> list[str]:
        return [
            "--quiet",
            f"--directory={root}",
            f"--machine={root.parent.name}",
            f"--network-namespace-path={self.host.path}",
            # There need not be a systemd here that could register it or give it a unit.
            "--register=no",
            "--keep-unit",
            "--boot",
            "--capability=all",
            "--link-journal=no",
            "--console=pipe",
            "--notify-ready=yes",
            "--resolv-conf=off",
            f"--bind={self.shared}:{SHARED}",
            *(f"--bind-ro={source}:{target}" for target, source in _BINDS.items()),
            "--",
            "systemd.unit=basic.target",  # none of the daemons that happen to be installed
            *(f"systemd.mask={unit}" for unit in _MASKED),
        ]

    def _wait_for_boot(self, notices: socket.socket) -> None:
        notices.settimeout(0.2)
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                notice = notices.recv(4096).decode()
            except TimeoutError:
                if not self.is_running:
                    said = "\n".join(self.lines.since())
                    pytest.skip(f"needs to boot a container, which fails here: {said}")
                continue
            if found := re.search("^X_NSPAWN_LEADER_PID=([0-9]+)$", notice, re.M):
                self._leader = int(found[1])
            if re.search("^READY=1$", notice, re.M):
                return
        raise AssertionError(f"{self.name} did not boot:\n{self.lines.since()}")

    def stop(self, within_s: float = DEADLINE_S) -> int:
        """Switch it off, and remove its traces."""
        if self._leader:
            # Nothing in it is worth an orderly end.  All of it goes with its PID 1.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)
            self._leader = 0
        try:
            return super().stop(within_s)
        finally:
            if self._machine_sweeper is not None:
                self._machine_sweeper.communicate(b"nothing left to do\n")
            for group in self._groups:
                _remove_cgroup(group)

    # Running programs in it, as root, outside of every service.

    def command(self, *argv: str) -> list[str]:
        """Return *argv* so that it runs in it."""
        enter = [find_program("nsenter"), f"--target={self._leader}", "--all"]
        return [*enter, "--", *argv]

    def ask(self, *argv: str, stdin: str = "", within_s: float = 30.0) -> Answer:
        """Run a program that ends by itself, however it ends."""
        done = subprocess.run(
            self.command(*argv),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within_s,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            },
        )
        return Answer(done.returncode, done.stdout)

    def run(self, *argv: str, stdin: str = "", within_s: float = 30.0) -> str:
        """Run a program that must succeed; return what it prints."""
        answer = self.ask(*argv, stdin=stdin, within_s=within_s)
        assert answer.status == 0, f"{argv}: exit {answer.status}\n{answer.output}"
        return answer.output

    def write(self, path: str, text: str) -> None:
        """Write a file that everybody in it may read."""
        self.run("install", "-D", "--mode=644", "/dev/stdin", path, stdin=text)

    def read(self, path: str) -> str:
        """Return the text of a file."""
        return self.run("cat", path)

    def show(self, unit: str, *properties: str) -> Mapping[str, str]:
        """Return properties of a unit."""
        wanted = f"--property={','.join(properties)}"
        lines = self.run("systemctl", "show", wanted, unit).splitlines()
        return dict(line.split("=", 1) for line in lines)

    # The program.

    def install(self, version: str) -> None:
        """Put proxyshim there as that *version*, beside others."""
        python = Path(sys.executable).resolve().name
        self.run(
            "sh",
            stdin=_INSTALL.format(
                version=version,
                python=python,
                source=SOURCE,
                shared=PACKAGES,
                home=PYTHON,
            ),
        )

    def use(self, version: str) -> None:
        """Make *version* the one that the unit runs, from its next start or upgrade on."""
        program = f"/opt/proxyshim-{version}/bin/proxyshim"
        self.run("ln", "-sfn", program, "/usr/local/bin/proxyshim")


def _cgroup_hierarchies() -> list[Path]:
    """Return where cgroup2 is mounted, and systemd's own hierarchy if there is one."""
    found = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" or (
            kind == "cgroup" and "name=systemd" in options.split(",")
        ):
            found[kind] = Path(place)
    if "cgroup2" not in found:
        pytest.skip("needs a cgroup2 hierarchy, to boot a container")
    return list(found.values())


def _remove_cgroup(group: Path) -> None:
    """Remove it with all that is below; its processes are gone, or about to go."""
    deadline = time.monotonic() + DEADLINE_S
    for below, _, _ in os.walk(group, topdown=False):
        while True:
            try:
                os.rmdir(below)
                break
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                os.sched_yield()
