"""A machine: a real systemd as PID 1, in a container that is a copy of this system.

systemd-nspawn boots an overlay of this system's own ``/``: the machine has the same
packages, and its changes disappear with it.  (Or it is a copy of another root: the tests of
the Debian package use that.)  It runs in the network namespace of a host of the lab
(netns.py), so that the other hosts reach it, and that host's loopback is the machine's
loopback.

It boots in under two seconds, and several can run at once.  It has no cgroup controllers,
so MemoryMax=, TasksMax= and CPUQuota= have no effect in it, and LimitNOFILE= cannot exceed
the system's own limit.
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

# Mounted into the machine read-only, because a service cannot see files in /root or /home.
PYTHON: Final = "/opt/lab/python"
PACKAGES: Final = "/opt/lab/site-packages"
SOURCE: Final = "/opt/lab/proxyshim"
# A directory shared with the test, for unix sockets: ``Machine.shared``.
SHARED: Final = "/opt/lab/shared"
_BINDS: Final = {
    PYTHON: Path(sys.base_prefix),
    PACKAGES: Path(pytest.__file__).parent.parent,
    SOURCE: Path(proxyshim.__file__).parent,
}

# Runs in its own mount namespace and its own cgroup.  systemd-nspawn takes the cgroup that
# it starts in for the root.
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
mount -t overlay -o lowerdir={lower},upperdir=$PWD/upper,workdir=$PWD/work overlay root
exec {nspawn}
"""
# Units that would change the kernel that the container shares with us, or are not needed.
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
# As in the operator's guide: a virtual environment for each version, and a link to one.
# It uses the packages of the tests; proxyshim is a copy with its own version number.
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
# A Python built with a shared library looks for it where it was built, and the service
# cannot read that directory.
mkdir -p /etc/systemd/system/proxyshim.service.d
cat >/etc/systemd/system/proxyshim.service.d/python.conf <<END
[Service]
Environment=LD_LIBRARY_PATH={home}/lib
END
"""


# Waits for the end of the tests, then kills the machine.  It must kill the leader, because
# the machine would survive the end of nspawn.
_SWEEP: Final = """\
read -r _ && exit
kill -s KILL {leader}
sleep 1
find {groups} -depth -type d -exec rmdir {{}} +
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """The output of a program, and its exit status."""

    status: int
    output: str


_numbers = count(1)


class Machine(Program):
    """A booted machine; its console output is in ``lines``."""

    def __init__(self, host: Host, directory: Path, root: Path | None = None) -> None:
        """Boot it on *host*.  Only the machine itself sees its mounts in *directory*.

        *root* is another system to copy, without our Python and what belongs to it.
        """
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
        self._binds = _BINDS if root is None else {}
        self._leader = 0
        self._machine_sweeper: subprocess.Popen[bytes] | None = None
        script = _BOOT.format(
            groups=shlex.join(map(str, self._groups)),
            place=shlex.quote(str(place)),
            lower=shlex.quote(str(root or "/")),
            nspawn=shlex.join([nspawn, *self._nspawn_options(place / "root")]),
        )
        notify = str(directory / f"{name}.notify")
        environment = {
            "NOTIFY_SOCKET": notify,
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            # nspawn's own filter would hide what the units' filters do.
            "SYSTEMD_SECCOMP": "0",
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
            # This system may have no systemd that could register it or give it a unit.
            "--register=no",
            "--keep-unit",
            "--boot",
            "--capability=all",
            "--link-journal=no",
            "--console=pipe",
            "--notify-ready=yes",
            "--resolv-conf=off",
            f"--bind={self.shared}:{SHARED}",
            *(f"--bind-ro={source}:{target}" for target, source in self._binds.items()),
            "--",
            "systemd.unit=basic.target",  # start none of the installed daemons
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
        """Kill the machine, and remove its cgroups."""
        if self._leader:
            # An orderly shutdown is not needed.  Every process ends with its PID 1.
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

    # Run programs in the machine, as root and outside every service.

    def command(self, *argv: str) -> list[str]:
        """Return a command that runs *argv* in the machine."""
        enter = [find_program("nsenter"), f"--target={self._leader}", "--all"]
        return [*enter, "--", *argv]

    def ask(self, *argv: str, stdin: str = "", within_s: float = 30.0) -> Answer:
        """Run a program to its end; return its output and exit status."""
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
        """Run a program that must succeed; return its output."""
        answer = self.ask(*argv, stdin=stdin, within_s=within_s)
        assert answer.status == 0, f"{argv}: exit {answer.status}\n{answer.output}"
        return answer.output

    def write(self, path: str, text: str) -> None:
        """Write a file that every user of the machine may read."""
        self.run("install", "-D", "--mode=644", "/dev/stdin", path, stdin=text)

    def read(self, path: str) -> str:
        """Return the text of a file."""
        return self.run("cat", path)

    def show(self, unit: str, *properties: str) -> Mapping[str, str]:
        """Return these properties of a unit."""
        wanted = f"--property={','.join(properties)}"
        lines = self.run("systemctl", "show", wanted, unit).splitlines()
        return dict(line.split("=", 1) for line in lines)

    # proxyshim in the machine.

    def install(self, version: str) -> None:
        """Install proxyshim as that *version*, beside other versions."""
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
        """Make the unit run *version* from its next start or upgrade on."""
        program = f"/opt/proxyshim-{version}/bin/proxyshim"
        self.run("ln", "-sfn", program, "/usr/local/bin/proxyshim")


def _cgroup_hierarchies() -> list[Path]:
    """Return the mount points of cgroup2 and of systemd's own hierarchy, if any."""
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
    """Remove a cgroup with its children.  Its processes have ended or are ending."""
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
