"""Which other programs listen on TCP ports of this host, as /proc shows it."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from proxyshim.addresses import Address

_LISTENING: Final = "0A"
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Holder:
    """A program that listens on an address and a port."""

    address: Address
    port: int
    program: str
    pid: int


def read_holders(proc: Path = Path("/proc")) -> tuple[Holder, ...]:
    """Return who listens on this host, without ourselves and without the service manager.

    Programs of other users are visible to root only.
    """
    listening = dict(_read_listening(proc))
    return tuple(
        Holder(*listening[inode], program, pid)
        for inode, pid, program in _read_owners(proc, listening)
    )


def _read_listening(proc: Path) -> Iterator[tuple[str, tuple[Address, int]]]:
    for name in ("tcp", "tcp6"):
        for line in _read(proc / "net" / name).splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING:
                host, _, port = fields[1].partition(":")
                yield fields[9], (_address_of(host), int(port, 16))


def _address_of(text: str) -> Address:
    """Read an address as words of 32 bits, each in the byte order of this machine."""
    raw, step = bytes.fromhex(text), 1 if sys.byteorder == "big" else -1
    words = [raw[start : start + 4][::step] for start in range(0, len(raw), 4)]
    packed = b"".join(words)
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _read_owners(
    proc: Path, listening: Mapping[str, object]
) -> Iterator[tuple[str, int, str]]:
    """Yield each listening socket once, with a process that has it."""
    seen: set[str] = set()
    for directory in sorted(proc.glob("[0-9]*"), key=lambda each: int(each.name)):
        pid = int(directory.name)
        if pid == 1 or _is_ours(directory):
            # Of these we know that the service gets its sockets from them.
            seen.update(_sockets_of(directory))
            continue
        for inode in _sockets_of(directory):
            if inode in listening and inode not in seen:
                seen.add(inode)
                yield inode, pid, _read(directory / "comm").strip()


def _is_ours(directory: Path) -> bool:
    """Return True for ``proxyshim run``, also as a script of Python or with its -m."""
    words = _read(directory / "cmdline").split("\0")[:3]
    return any(word.rpartition("/")[2] == "proxyshim" for word in words)


def _sockets_of(directory: Path) -> Iterator[str]:
    try:
        for link in (directory / "fd").iterdir():
            found = _SOCKET.fullmatch(str(link.readlink()))
            if found is not None:
                yield found[1]
    except OSError:  # it has ended, or belongs to another user
        return


def _read(path: Path) -> str:
    return _read_bytes(path).decode("utf-8", "replace")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
