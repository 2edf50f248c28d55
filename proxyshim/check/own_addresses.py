"""The addresses of this host, as Linux lists them in /proc/net."""

import re
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

from proxyshim.addresses import Address

# Pairs of lines such as
#     |-- 192.0.2.25
#        /32 host LOCAL
_IPV4: Final = re.compile(r"\|-- ([0-9.]+)\n +/32 host LOCAL$", re.MULTILINE)


def read_own_addresses(directory: Path = Path("/proc/net")) -> tuple[Address, ...]:
    """Return each address of this host once, loopback included; none if /proc hides them."""
    return tuple(dict.fromkeys([*_read_ipv4(directory), *_read_ipv6(directory)]))


def _read_ipv4(directory: Path) -> Iterator[Address]:
    for found in _IPV4.findall(_read(directory / "fib_trie")):
        yield ip_address(found)


def _read_ipv6(directory: Path) -> Iterator[Address]:
    for line in _read(directory / "if_inet6").splitlines():
        yield IPv6Address(bytes.fromhex(line.split()[0]))


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:  # a host without IPv6, or a sandbox
        return ""
