"""What the system says about names: /etc/hosts and /etc/resolv.conf, read again when they change.

As glibc does, we look at a file's state when it is needed, but at most once a second.  A file that
cannot be read counts as empty.  Sources: hosts(5), resolv.conf(5).
"""

import asyncio
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from dns.exception import DNSException
from dns.name import Name, NameTooLong, root
from dns.resolver import Resolver

from proxyshim.addresses import Address

HOSTS = Path("/etc/hosts")
RESOLV_CONF = Path("/etc/resolv.conf")

LOOK_AGAIN_S: Final = 1.0
MAX_HOSTS_OCTETS: Final = 4_194_304  # lists of blocked hosts have 100,000 lines
MAX_RESOLV_CONF_OCTETS: Final = 65_536

# As in glibc.
MAX_SERVERS: Final = 3
MAX_NDOTS: Final = 15
DEFAULT_SERVERS: Final = ("127.0.0.1",)

_State = tuple[int, ...]


class WatchedFile:
    """Notices when a file changes."""

    __slots__ = ("_looked_at", "_max_octets", "_path", "_state")

    def __init__(self, path: Path, max_octets: int) -> None:
        """Read nothing yet."""
        self._path = path
        self._max_octets = max_octets
        self._looked_at = float("-inf")
        self._state: _State | None = None

    def forget(self) -> None:
        """Have the file count as changed."""
        self._looked_at, self._state = float("-inf"), None

    def has_changed(self) -> bool:
        """Return True if it may have changed since this was last True; looks once a second."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_AGAIN_S:
            return False
        self._looked_at = now
        state = self._read_state()
        if state == self._state:
            return False
        self._state = state
        return True

    def read(self) -> str:
        """Return its text, up to the limit; empty if it is no regular file or unreadable."""
        try:
            # Opening a FIFO without this would wait for a writer.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return ""
                return file.read(self._max_octets).decode("utf-8", "replace")
        except OSError:
            return ""

    def _read_state(self) -> _State:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_dev, found.st_mtime_ns, found.st_ctime_ns


# /etc/resolv.conf.


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """The servers, and how a name becomes a list of names to ask for."""

    servers: tuple[str, ...] = DEFAULT_SERVERS
    search: tuple[Name, ...] = ()
    ndots: int = 1

    def candidates(self, name: Name) -> Iterator[Name]:
        """Yield the absolute names for which *name* may stand, in order."""
        if name.is_absolute():
            yield name
            return
        has_dots = len(name) > self.ndots
        if has_dots:
            yield name.concatenate(root)
        for domain in self.search:
            with suppress(NameTooLong):
                yield name.concatenate(domain)
        if not has_dots:
            yield name.concatenate(root)


def parse_resolv_conf(text: str) -> ResolvConf:
    """Read *text*; without a search domain in it, that of the host's own name counts."""
    try:
        resolver = Resolver(configure=False)
    except (DNSException, ValueError):  # the host has a name that no zone can contain
        return ResolvConf()
    servers: list[str] = []
    for line in text.splitlines():
        # Line by line, because glibc skips a line that it cannot read, while dnspython refuses the
        # whole file.  It refuses each line that names no server, too, but only after reading it.
        try:
            resolver.read_resolv_conf(StringIO(line))
        except (DNSException, ValueError):
            continue
        servers += map(str, resolver.nameservers)
    search = resolver.search or [resolver.domain]
    return ResolvConf(
        tuple(servers[:MAX_SERVERS]) or DEFAULT_SERVERS,
        tuple(domain for domain in search if domain != root),
        1 if resolver.ndots is None else min(max(resolver.ndots, 0), MAX_NDOTS),
    )


# /etc/hosts.


class Hosts:
    """The lines of /etc/hosts, by address and by name."""

    __slots__ = ("_addresses", "_names")

    def __init__(self, text: str = "") -> None:
        """Read *text*; skip lines that are no entries."""
        self._names: dict[Address, str] = {}
        self._addresses: dict[str, list[Address]] = {}
        for line in text.splitlines():
            first, *names = line.partition("#")[0].split() or [""]
            try:
                address = ip_address(first.partition("%")[0])
            except ValueError:
                continue
            for name in names:
                self._names.setdefault(address, name)  # the first name is canonical
                known = self._addresses.setdefault(name.lower(), [])
                if address not in known:
                    known.append(address)

    def name_of(self, address: Address) -> str | None:
        """Return the canonical name of *address*."""
        return self._names.get(address)

    def addresses_of(self, name: str) -> list[Address]:
        """Return the addresses of *name*, of both families."""
        return self._addresses.get(name.lower().rstrip("."), [])


class System:
    """Both files, as they are now."""

    def __init__(self) -> None:
        """Read nothing yet."""
        self._hosts_file = WatchedFile(HOSTS, MAX_HOSTS_OCTETS)
        self._resolv_conf_file = WatchedFile(RESOLV_CONF, MAX_RESOLV_CONF_OCTETS)
        self._hosts = Hosts()
        self._resolv_conf = ResolvConf()
        self._reading: asyncio.Task[Hosts] | None = None

    def reload(self) -> None:
        """Read both files again when they are next needed."""
        self._hosts_file.forget()
        self._resolv_conf_file.forget()

    def resolv_conf(self) -> ResolvConf:
        """Return the present /etc/resolv.conf, which is short."""
        if self._resolv_conf_file.has_changed():
            self._resolv_conf = parse_resolv_conf(self._resolv_conf_file.read())
        return self._resolv_conf

    async def hosts(self) -> Hosts:
        """Return the present /etc/hosts, which may be long: it is read in a thread."""
        if self._reading is None and self._hosts_file.has_changed():
            reading = asyncio.to_thread(_read_hosts, self._hosts_file)
            self._reading = asyncio.get_running_loop().create_task(reading)
            self._reading.add_done_callback(self._keep_hosts)
        if self._reading is not None:
            return await asyncio.shield(self._reading)  # others wait for it too
        return self._hosts

    def _keep_hosts(self, reading: asyncio.Task[Hosts]) -> None:
        self._reading = None
        if not reading.cancelled() and reading.exception() is None:
            self._hosts = reading.result()

    def servers(self) -> tuple[str, ...]:
        """Return the system's DNS servers."""
        return self.resolv_conf().servers


def _read_hosts(file: WatchedFile) -> Hosts:
    return Hosts(file.read())
