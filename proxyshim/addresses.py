"""Addresses in the one form in which we compare and convey them: folded, without zone ids.

Every address that comes in (from a socket, a PROXY header or a list) passes through here once,
so that from then on ``::ffff:192.0.2.1`` and ``192.0.2.1`` are the same client.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a TCP connection: a folded address and a port, 0 to 65535."""

    address: Address
    port: int
    _host: str = field(default="", init=False, repr=False, compare=False)

    @property
    def host(self) -> str:
        """The address as text.  We keep it, because both the log and the backend need it."""
        if not self._host:
            object.__setattr__(self, "_host", str(self.address))
        return self._host

    def __str__(self) -> str:
        """Return ``192.0.2.1:25`` or ``[2001:db8::1]:25``."""
        if isinstance(self.address, IPv6Address):
            return f"[{self.host}]:{self.port}"
        return f"{self.host}:{self.port}"


def fold_v4_mapped(address: Address) -> Address:
    """Return the IPv4 address inside ``::ffff:a.b.c.d``, and any other address unchanged.

    Nothing else is folded: ``64:ff9b::/96`` and ``::a.b.c.d`` are ordinary IPv6 addresses.
    """
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


# The same few proxies connect again with every session.
@lru_cache(maxsize=4096)
def read_address(text: str) -> Address:
    """Parse an address as the kernel prints it; drop its zone id and fold it.

    Raises ValueError if *text* is not an address.
    """
    return fold_v4_mapped(ip_address(text.partition("%")[0]))


def read_socket_address(sockaddr: object) -> Endpoint | None:
    """Convert what accept() and getsockname() return; None for a unix socket."""
    if isinstance(sockaddr, tuple) and len(sockaddr) >= 2:
        return Endpoint(read_address(sockaddr[0]), sockaddr[1])
    return None


@dataclass(frozen=True, slots=True)
class SocketName:
    """Where to listen or connect, as the configuration writes it.

    It is one of three things: the *path* of a unix socket; a *host* (an address or a name) and
    a *port*, 0 to 65535; or the FileDescriptorName of a systemd socket unit, as *descriptor*,
    where a *port* means the unit's sockets with that port only.
    """

    path: str = ""
    host: str = ""
    port: int = 0
    descriptor: str = ""

    def __str__(self) -> str:
        """Return the name as the configuration writes it."""
        if self.path:
            return f"unix:{self.path}"
        if self.descriptor:
            port = f":{self.port}" if self.port else ""
            return f"systemd:{self.descriptor}{port}"
        return (
            f"[{self.host}]:{self.port}"
            if ":" in self.host
            else f"{self.host}:{self.port}"
        )


_UNIT_AND_PORT = re.compile(r"([^:]+)(?::([1-9][0-9]{0,4}))?")
_HOST_AND_PORT = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):(0|[1-9][0-9]{0,4})")


def read_socket_name(text: str) -> SocketName:
    """Read ``unix:/path``, ``systemd:NAME[:port]``, ``host:port`` or ``[v6]:port``.

    Raises ValueError, whose text names what was expected.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "unix":
        if not rest.startswith("/"):
            raise ValueError("expected an absolute path after unix:")
        return SocketName(path=rest)
    if scheme == "systemd":
        unit = _UNIT_AND_PORT.fullmatch(rest)
        if unit is None or int(unit[2] or 1) > 65535:
            raise ValueError(
                "expected a socket unit's FileDescriptorName after systemd:, and perhaps"
                " :port after that"
            )
        return SocketName(descriptor=unit[1], port=int(unit[2] or 0))
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None or int(found[3]) > 65535:
        raise ValueError('expected "address:port", "[v6 address]:port" or "unix:/path"')
    return SocketName(host=found[1] or found[2], port=int(found[3]))
