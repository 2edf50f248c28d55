"""The embedded MTA and a real shim in front of it, on one loop and on loopback ports."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from proxyshim import config
from proxyshim.demo.mta import EmbeddedMta, Message
from proxyshim.service.server import Server

# The address that the demo's proxy connects from; the other peers use other addresses in 127/8.
LISTED_PROXY = "127.0.0.2"
# The address that the shim connects from: the only one that may send XCLIENT to the MTA.
SHIM = "127.0.0.1"

START_LIMIT_S = 10.0
CLOSE_LIMIT_S = 10.0

CONFIG = """\
[[listener]]
name          = "demo"
bind          = ["{bind}"]
haproxy_hosts = "haproxy_hosts"
backend       = "{backend}"
ehlo_name     = "proxyshim.example.net"
resolve       = false
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """The running pair: the *mta*, and the *address* that the shim listens on."""

    mta: EmbeddedMta
    address: str


def write_config(folder: Path, bind: str, backend: str) -> Path:
    """Write the shim's configuration and its list of proxies to *folder*."""
    (folder / "haproxy_hosts").write_text(f"{LISTED_PROXY}\n")
    path = folder / "proxyshim.toml"
    path.write_text(CONFIG.format(bind=bind, backend=backend))
    return path


@asynccontextmanager
async def running_pair(
    folder: Path,
    maildir: Path,
    *,
    listen: str = "127.0.0.1:0",
    on_message: Callable[[Message], None] | None = None,
) -> AsyncIterator[Pair]:
    """Start the MTA, then the shim; at the end close the shim, then the MTA.

    Raises OSError and ConfigError.
    """
    mta = EmbeddedMta(maildir, frozenset({ip_address(SHIM)}), on_message)
    await mta.start()
    try:
        server = Server(config.load(write_config(folder, listen, mta.address)))
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await server.start()
            [address] = server.listening("demo")
            yield Pair(mta, address)
        finally:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await server.close()
    finally:
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await mta.close()
