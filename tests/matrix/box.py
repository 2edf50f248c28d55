"""A root for a mail server: this machine's files, with unpacked packages over them.

What the server writes goes into memory and is gone at the end.  The folder ``shared`` is the
same inside (``/shared``) and outside.  Inside, ``/dev/log`` is ours, so that a server that
logs to syslog has its lines in ``log``.
"""

import contextlib
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.integration.lab.needs import find_program
from tests.integration.lab.netns import Host
from tests.integration.lab.programs import Lines, Program

# $1 is our folder, $2 the unpacked packages.
MOUNT = """
mount -t tmpfs -o mode=755 box "$1/box"
cd "$1/box"
mkdir over work root
cp -a "$2/." over
mount -t overlay -o lowerdir=/,upperdir=over,workdir=work box root
cd root
mount --rbind /proc proc
mount -t tmpfs -o mode=755 dev dev
mkdir dev/shm dev/pts
chmod 1777 dev/shm
for each in null zero full random urandom tty; do
    touch dev/$each
    mount --bind /dev/$each dev/$each
done
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/1 dev/stdout
touch dev/log
mount --bind "$1/log" dev/log
mount -t tmpfs -o mode=755 run run
mkdir shared
mount --bind "$1/shared" shared
echo mounted
exec sleep infinity
"""

Users = Mapping[str, int]


class Box:
    """A root on *host* in which programs run; close it when they have ended."""

    def __init__(
        self, host: Host, directory: Path, unpacked: Path, users: Users
    ) -> None:
        """Mount it in *directory*; *users* (name: id) are added, each with a group."""
        self._host = host
        self.directory = directory
        self.shared = directory / "shared"
        for made in (directory, self.shared, directory / "box"):
            made.mkdir()
        self.log = Lines(f"syslog in {directory}")
        self._syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._syslog.bind(str(directory / "log"))
        (directory / "log").chmod(0o666)
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        unshare = [find_program("unshare"), "--mount", "--", "sh", "-ec", MOUNT, "sh"]
        argv = [*unshare, str(directory), str(unpacked)]
        self._holder = Program(f"box in {directory}", host, argv)
        try:
            self._holder.lines.wait_for("^mounted$", within_s=60)
            self._add_users(users)
        except BaseException:
            self.close()
            raise

    def command(self, *argv: str) -> list[str]:
        """Return a command that runs *argv* inside."""
        root = str(self.directory / "box" / "root")
        mounts = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        return [find_program("nsenter"), mounts, "--", "chroot", root, *argv]

    def show(self, directory: Path) -> None:
        """Make *directory* visible inside, at the same path."""
        inside = f"{self.directory}/box/root{directory}"
        mounts = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        script = 'mkdir -p "$2"; mount --bind "$1" "$2"'
        argv = ["sh", "-ec", script, "sh", str(directory), inside]
        self._host.run([find_program("nsenter"), mounts, "--", *argv])

    def run(self, *argv: str, stdin: str = "") -> str:
        """Run a program inside to its end, which must succeed; return its output."""
        return self._host.run(self.command(*argv), stdin=stdin)

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Write a file inside."""
        script = 'mkdir -p "$(dirname "$1")"; cat >"$1"; chmod "$2" "$1"'
        self.run("sh", "-ec", script, "sh", path, mode, stdin=text)

    def start(self, name: str, *argv: str) -> Program:
        """Start a program inside, in the foreground."""
        return Program(name, self._host, self.command(*argv))

    def close(self) -> None:
        """Unmount everything."""
        self._holder.stop()
        with contextlib.suppress(OSError):
            self._syslog.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)
        self._syslog.close()

    def _add_users(self, users: Users) -> None:
        for path, line in (
            ("/etc/passwd", "{0}:x:{1}:{1}::/nonexistent:/usr/sbin/nologin\n"),
            ("/etc/group", "{0}:x:{1}:\n"),
            ("/etc/shadow", "{0}:*:19000::::::\n"),
        ):
            text = self.run("cat", path)
            there = {each.split(":")[0] for each in text.splitlines()}
            new = {name: number for name, number in users.items() if name not in there}
            self.write(path, text + "".join(line.format(*one) for one in new.items()))

    def _read_log(self) -> None:
        with contextlib.suppress(OSError):
            while octets := self._syslog.recv(65_536):
                self.log.add(octets.decode("utf-8", "backslashreplace").rstrip("\n"))
        self.log.end()
