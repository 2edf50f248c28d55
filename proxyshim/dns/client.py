"""Asks DNS servers: by UDP, and by TCP if the answer does not fit; in order, with retries.

Each question has a socket and a random id of its own, so that a forged answer has to guess the
port as well (RFC 5452).  A server that was silent is asked last for a while.

The sockets are ours, because ``dns.asyncquery`` has no bounds: it receives up to 64 kB and reads
all of that before its caller could look at the size.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from dns.name import Name
from dns.rcode import FORMERR, NOERROR, NXDOMAIN, to_text
from dns.rdatatype import RdataType

from proxyshim.dns.message import (
    MAX_ANSWER_OCTETS,
    Answer,
    BadAnswer,
    read_answer,
    write_query,
)

DNS_PORT: Final = 53
# The time limit for the first try at each server; it doubles for each further round.  glibc, which
# the MTA uses, tries twice, for 5 s each.
TRY_S: Final = 1.5
TRIES: Final = 3
# For this long, a server that was silent is asked after the others.
AVOID_SILENT_S: Final = 10.0
# Datagrams that do not answer the question are ignored, up to this many.
_MAX_STRAYS: Final = 20

_ANSWERS: Final = (NOERROR, NXDOMAIN)


class DnsError(Exception):
    """There is no answer at the moment.  *silent* is True if no server said anything."""

    def __init__(self, detail: str, *, silent: bool) -> None:
        """Keep the *detail*, for the log."""
        super().__init__(detail)
        self.detail = detail
        self.silent = silent


class DnsClient:
    """Asks the servers that *find_servers* returns: "address", "address:port" or "[v6]:port".

    Calls *note_answer* for each answer, even "no such name".
    """

    def __init__(
        self,
        find_servers: Callable[[], Sequence[str]],
        note_answer: Callable[[], None] = lambda: None,
    ) -> None:
        """Ask nobody yet."""
        self._find_servers = find_servers
        self._note_answer = note_answer
        self._silent_at: dict[str, float] = {}

    async def ask(self, name: Name, kind: RdataType) -> Answer:
        """Return the records of *name*, followed through CNAMEs.  Raises DnsError.

        The name is asked for as it is, without a search domain.
        """
        heard = False
        detail = "no DNS server is configured"
        useless: set[str] = set()  # it has answered, without an answer
        for attempt in range(TRIES):
            for server in self._in_order():
                if server in useless:
                    continue
                try:
                    async with asyncio.timeout(TRY_S * 2**attempt):
                        answer = await _ask_server(server, name, kind)
                except (TimeoutError, OSError) as error:
                    self._silent_at[server] = time.monotonic()
                    detail = f"{server}: {_reason(error)}"
                    continue
                except BadAnswer as error:
                    self._silent_at.pop(server, None)
                    # Another server would have it from the same source.
                    self._note_answer()
                    raise DnsError(f"{server}: {error}", silent=False) from None
                self._silent_at.pop(server, None)
                if answer.code in _ANSWERS:
                    self._note_answer()
                    return answer
                heard = True
                useless.add(server)
                detail = f"{server}: {to_text(answer.code)}"
        raise DnsError(detail, silent=not heard)

    def _in_order(self) -> list[str]:
        """Return the servers, those that were silent lately last."""
        servers, silent_at = list(self._find_servers()), self._silent_at
        if not silent_at:
            return servers
        now = time.monotonic()
        for server in set(silent_at) - set(servers):
            del silent_at[server]
        due = {each: silent_at.get(each, -AVOID_SILENT_S) for each in servers}
        order = sorted(servers, key=lambda each: max(due[each], now - AVOID_SILENT_S))
        if order and order[0] in silent_at:
            # This question is the test.  Others meanwhile ask the next one.
            silent_at[order[0]] = now
        return order


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return os.strerror(error.errno) if error.errno else str(error)


async def _ask_server(server: str, name: Name, kind: RdataType) -> Answer:
    """Ask one server.  Raises OSError and BadAnswer.  It has no time limit of its own."""
    answer = await _ask_by_udp(server, name, kind, extended=True)
    if answer.code == FORMERR:  # it may not know EDNS
        answer = await _ask_by_udp(server, name, kind, extended=False)
    if answer.truncated:
        answer = await _ask_by_tcp(server, name, kind)
    if answer.truncated:
        raise BadAnswer("a truncated answer")
    return answer


async def _ask_by_udp(
    server: str, name: Name, kind: RdataType, *, extended: bool
) -> Answer:
    loop = asyncio.get_running_loop()
    query = write_query(name, kind, extended=extended)
    with _open(server, socket.SOCK_DGRAM) as (sock, address):
        sock.connect(address)  # only this server's answers arrive
        sock.send(query.to_wire())
        for _ in range(_MAX_STRAYS):
            # One octet more shows that it was longer; the rest is dropped.
            data = await loop.sock_recv(sock, MAX_ANSWER_OCTETS + 1)
            answer = read_answer(data, query)
            if answer is not None:
                return answer
    raise BadAnswer("answers to other questions")


async def _ask_by_tcp(server: str, name: Name, kind: RdataType) -> Answer:
    loop = asyncio.get_running_loop()
    query = write_query(name, kind, extended=True)
    with _open(server, socket.SOCK_STREAM) as (sock, address):
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, query.to_wire(prepend_length=True))
        length = int.from_bytes(await _receive(loop, sock, 2), "big")
        if length > MAX_ANSWER_OCTETS:
            raise BadAnswer(
                f"an answer of {length} octets, more than {MAX_ANSWER_OCTETS}"
            )
        answer = read_answer(await _receive(loop, sock, length), query)
    if answer is None:
        raise BadAnswer("an answer to another question")
    return answer


async def _receive(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, length: int
) -> bytes:
    data = b""
    while len(data) < length:
        more = await loop.sock_recv(sock, length - len(data))
        if not more:
            raise BadAnswer("an answer that ends too early")
        data += more
    return data


class _open:  # noqa: N801 - a context manager, used like a function
    """Open a socket to *server*; return it with the address to connect to."""

    def __init__(self, server: str, kind: socket.SocketKind) -> None:
        family, self._address = _socket_address(server)
        self._sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)

    def __enter__(self) -> tuple[socket.socket, tuple[object, ...]]:
        return self._sock, self._address

    def __exit__(self, *_: object) -> None:
        self._sock.close()


# Cached, because the same few servers are asked for every client.
@lru_cache(maxsize=64)
def _socket_address(server: str) -> tuple[int, tuple[object, ...]]:
    """Return the family and the address to connect to.  Raises OSError."""
    host, port = split_server(server)
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    [found, *_] = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=flags)
    return found[0], found[4]


def split_server(server: str) -> tuple[str, int]:
    """Return the address and the port of "address", "address:port" or "[v6]:port"."""
    host, _, port = server.rpartition(":")
    if host.startswith("["):
        return host.strip("[]"), int(port)
    if host and ":" not in host:
        return host, int(port)
    return server.strip("[]"), DNS_PORT
