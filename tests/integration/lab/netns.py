"""Hosts: network namespaces on one switch, made with iproute2.

The namespaces have no names.  Only descriptors of the test process, and the programs in
them, keep them alive.  So they cannot collide with other namespaces, and the kernel
removes them when the last of these ends.  To inspect one: nsenter --net=/proc/PID/fd/N.
"""

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tests.integration.lab.needs import find_program

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # <sched.h>

# The documentation networks (RFC 5737, RFC 3849), all on the one link.
PREFIXES = (
    "198.51.100.0/24",
    "192.0.2.0/24",
    "203.0.113.0/24",
    "2001:db8:51::/64",
    "2001:db8:2::/64",
    "2001:db8:cb::/64",
)

BIND = """
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec "$@"
"""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace in which programs run, and in which we can open sockets from here."""

    name: str
    descriptor: int
    addresses: tuple[str, ...]
    # Files that the host's programs see in place of others: (our file, path there).
    files: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """Return the path at which other programs find the namespace."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return a command that runs *argv* on this host."""
        inside = [find_program("nsenter"), f"--net={self.path}", "--"]
        return [*inside, *self._put_files_in_place(), *argv]

    def _put_files_in_place(self) -> list[str]:
        """Return a command that mounts ``files`` for the command after it only."""
        if not self.files:
            return []
        unshare = [find_program("unshare"), "--mount", "--", "sh", "-ec", BIND, "sh"]
        return [*unshare, *(path for pair in self.files for path in pair), "--"]

    def run(self, argv: Sequence[str], *, stdin: str = "") -> str:
        """Run a program to its end, which must succeed; return its output."""
        done = subprocess.run(
            self.command(argv),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    def open_socket(self, family: socket.AddressFamily) -> socket.socket:
        """Open a TCP socket on this host.  It stays there, whichever thread uses it."""
        return _in_new_thread(lambda: self._open_socket(family))

    def connect(
        self, to: tuple[str, int], source: str, *, within_s: float = 10.0
    ) -> socket.socket:
        """Connect from *source*.  The socket keeps *within_s* as its time limit."""
        family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
        sock = self.open_socket(family)
        try:
            sock.settimeout(within_s)
            sock.bind((source, 0))
            sock.connect(to)
        except BaseException:
            sock.close()
            raise
        return sock

    def _open_socket(self, family: socket.AddressFamily) -> socket.socket:
        _check(_libc.setns(self.descriptor, CLONE_NEWNET), "setns")
        return socket.socket(family, socket.SOCK_STREAM)


@contextmanager
def hosts(**addresses: Sequence[str]) -> Iterator[dict[str, Host]]:
    """Make a host with these addresses per keyword.  All hosts reach each other."""
    with ExitStack() as cleanup:
        switch = _new_host("switch", (), cleanup)
        _ip(switch, ["link add br0 type bridge mcast_snooping 0", "link set br0 up"])
        made = {}
        for name, own in addresses.items():
            made[name] = _new_host(name, tuple(own), cleanup)
            _plug_in(made[name], switch)
        yield made


def _new_host(name: str, addresses: tuple[str, ...], cleanup: ExitStack) -> Host:
    descriptor = _in_new_thread(_new_namespace)
    cleanup.callback(os.close, descriptor)
    return Host(name, descriptor, addresses)


def _plug_in(host: Host, switch: Host) -> None:
    port = f"to-{host.name}"
    _ip(
        switch,
        [
            f"link add {port} type veth peer name eth0 netns {host.path}",
            f"link set {port} master br0 up",
        ],
    )
    lines = ["link set lo up", "link set eth0 up"]
    seen = set()
    for address in host.addresses:
        length, options = ("128", "nodad") if ":" in address else ("32", "")
        # A program that binds no source address connects from the first one per family.
        preference = "preferred_lft 0" if length in seen else ""
        seen.add(length)
        lines.append(f"address add {address}/{length} dev eth0 {options} {preference}")
    lines += [f"route add {prefix} dev eth0" for prefix in PREFIXES]
    _ip(host, lines)


def _ip(host: Host, lines: Sequence[str]) -> None:
    host.run([find_program("ip"), "-batch", "-"], stdin="\n".join(lines) + "\n")


def _new_namespace() -> int:
    _check(_libc.unshare(CLONE_NEWNET), "unshare")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def _in_new_thread(work: Callable[[], T]) -> T:
    """Run *work* in a thread that then ends, so that it may change its namespace."""
    with ThreadPoolExecutor(max_workers=1) as threads:
        return threads.submit(work).result()
