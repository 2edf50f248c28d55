"""Keeps the pair running on a port, explains how to use it, and prints what arrives."""

import asyncio
import errno
import socket
from pathlib import Path

from proxyshim import logs
from proxyshim.addresses import Endpoint
from proxyshim.demo.conversations import (
    CLIENT_V4,
    CLIENT_V6,
    DIRECT_CLIENT,
    FRONT_V4,
    FRONT_V6,
    UNLISTED_PEER,
    write_v1,
)
from proxyshim.demo.mta import Message
from proxyshim.demo.pair import LISTED_PROXY, Pair, running_pair
from proxyshim.demo.play import say
from proxyshim.proxy_header import printable

INTRO = """\
proxyshim demo: proxyshim on {shim}, its MTA on {mta}.
The mail is stored in {maildir} ({fate}).
Ctrl-C ends it.

A client that connects directly:
  swaks --server {shim} --to bob@example.net --local-interface {direct}
  nc -C {host} {port}

A proxy that haproxy_hosts lists, {proxy}, with a header of version 1, then of version 2:
  swaks --server {shim} --to bob@example.net --local-interface {proxy} \\
        {v1}
  swaks --server {shim} --to bob@example.net --local-interface {proxy} \\
        --proxy-version 2 {v2}

The same by hand, then a health check, then a peer that is not listed:
  {{ echo '{header}'; cat; }} | nc -C -s {proxy} {host} {port}
  printf 'PROXY UNKNOWN\\nQUIT\\n' | nc -C -s {proxy} {host} {port}
  echo '{header}' | nc -C -s {unlisted} {host} {port}
"""


async def serve_until_cancelled(folder: Path, maildir: Path | None, listen: str) -> int:
    """Serve on *listen*, or on a free port if that one is taken."""
    logs.configure("console", "info")
    kept = maildir or folder / "Maildir"
    arrived: list[Message] = []

    def report(message: Message) -> None:
        arrived.append(message)
        say(describe(len(arrived), message, kept))

    host, _, port = listen.rpartition(":")
    if is_taken(host, int(port)):
        say(f"{listen} is taken; using a free port.\n")
        port = "0"
    async with running_pair(
        folder, kept, listen=f"{host}:{port}", on_message=report
    ) as pair:
        fate = "kept" if maildir else "removed at the end"
        say(instructions(pair, kept, fate))
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            say(f"\nstopping; messages that arrived: {len(arrived)}")
    return 0


def is_taken(host: str, port: int) -> bool:
    """Return True if another process already listens there."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def instructions(pair: Pair, maildir: Path, fate: str) -> str:
    """Return the commands that play each of the four kinds of peer."""
    host, _, port = pair.address.rpartition(":")
    host = "127.0.0.1" if host == "0.0.0.0" else host
    return INTRO.format(
        shim=f"{host}:{port}",
        mta=pair.mta.address,
        maildir=maildir,
        fate=fate,
        host=host,
        port=port,
        proxy=LISTED_PROXY,
        direct=DIRECT_CLIENT,
        unlisted=UNLISTED_PEER,
        header=write_v1(CLIENT_V4, FRONT_V4).decode("ascii").rstrip(),
        v1=swaks_header("TCP4", CLIENT_V4, FRONT_V4),
        v2=swaks_header("AF_INET6", CLIENT_V6, FRONT_V6),
    )


def swaks_header(family: str, source: Endpoint, destination: Endpoint) -> str:
    """Return the options of swaks for a PROXY header."""
    return (
        f"--proxy-family {family} \\\n        "
        f"--proxy-source {source.address} --proxy-source-port {source.port} \\\n        "
        f"--proxy-dest {destination.address} --proxy-dest-port {destination.port}"
    )


def describe(number: int, message: Message, maildir: Path) -> str:
    """Return the lines to print when a message arrives, including the path of its file."""
    sender, *recipients = (
        printable(address.encode("ascii", "replace"))
        for address in (message.mail_from, *message.rcpt_tos)
    )
    return (
        f"message {number}: client {message.client}\n"
        f"  from <{sender}> to {', '.join(f'<{to}>' for to in recipients)}, "
        f"{message.octets} bytes\n"
        f"  {maildir / 'new' / message.key}"
    )
