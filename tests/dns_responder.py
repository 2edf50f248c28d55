"""A DNS server in the test's own loop, which says what no real one would.

Unbound (tests/integration/lab) answers for the ordinary cases.
"""

import asyncio
import socket
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from dns.flags import TC
from dns.message import Message, from_wire, make_response
from dns.name import Name, from_text
from dns.rcode import NXDOMAIN, Rcode
from dns.rdata import Rdata
from dns.rdata import from_text as rdata_from_text
from dns.rdataclass import IN
from dns.rdatatype import CNAME, PTR, RdataType
from dns.rrset import from_rdata

Record = tuple[Name, int, Rdata]  # owner, TTL
Key = tuple[Name, RdataType]


class Responder:
    """What it is told to answer, and what it was asked."""

    def __init__(self) -> None:
        """Know nothing: every name does not exist."""
        self.address = ""
        self.asked: list[tuple[str, str]] = []
        self.asked_by_tcp = 0
        self._records: dict[Key, list[Record]] = defaultdict(list)
        self._codes: dict[Key, Rcode] = {}
        self._silent: set[Key] = set()
        self._truncated: set[Key] = set()
        self._held: dict[Key, asyncio.Event] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard = asyncio.Condition()

    # What to answer.

    def point(self, address: str, *names: str | Name, ttl: int = 300) -> None:
        """Let the PTR records of *address* hold these names; a text may have escapes."""
        owner = _reverse(address)
        for name in names:
            self._add(owner, ttl, rdata_from_text(IN, PTR, str(name)))

    def point_elsewhere(self, address: str, alias: str, ttl: int = 300) -> None:
        """Let a CNAME stand for the PTR record (RFC 2317)."""
        data = rdata_from_text(IN, CNAME, alias)
        self._records[_reverse(address), PTR].append((_reverse(address), ttl, data))

    def name(self, owner: str, *addresses: str, ttl: int = 300) -> None:
        """Let *owner* have these addresses."""
        for address in addresses:
            kind = RdataType.AAAA if ":" in address else RdataType.A
            self._add(from_text(owner), ttl, rdata_from_text(IN, kind, address))

    def alias(self, owner: str, target: str, *addresses: str, ttl: int = 300) -> None:
        """Let *owner* be another name for *target*, which has these addresses."""
        for address in addresses:
            kind = RdataType.AAAA if ":" in address else RdataType.A
            data = rdata_from_text(IN, kind, address)
            link = rdata_from_text(IN, CNAME, target)
            self._records[from_text(owner), kind] += [
                (from_text(owner), ttl, link),
                (from_text(target), ttl, data),
            ]

    def fail(self, name: str, kind: str, code: Rcode) -> None:
        """Answer with an error."""
        self._codes[_key(name, kind)] = code

    def be_silent(self, name: str, kind: str) -> None:
        """Never answer."""
        self._silent.add(_key(name, kind))

    def truncate(self, name: str, kind: str) -> None:
        """Answer by TCP only."""
        self._truncated.add(_key(name, kind))

    def hold(self, name: str, kind: str) -> asyncio.Event:
        """Answer only once the event is set."""
        return self._held.setdefault(_key(name, kind), asyncio.Event())

    async def wait_asked(self, count: int) -> None:
        """Wait until so many questions have come."""
        async with self._heard:
            await self._heard.wait_for(lambda: len(self.asked) >= count)

    # How it is answered.

    def bind(self, host: str, port: int = 0) -> int:
        """Begin to answer by UDP; return the port."""
        self._socket.setblocking(False)
        self._socket.bind((host, port))
        asyncio.get_running_loop().add_reader(self._socket, self._take_datagram)
        return int(self._socket.getsockname()[1])

    def _take_datagram(self) -> None:
        data, sender = self._socket.recvfrom(4096)
        task = asyncio.create_task(self._answer_datagram(data, sender))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_datagram(self, data: bytes, sender: tuple[str, int]) -> None:
        query = from_wire(data)
        key = query.question[0].name, query.question[0].rdtype
        answer = await self._answer(query)
        if answer is None:
            return
        if key in self._truncated:
            answer.answer.clear()
            answer.flags |= TC
        self._socket.sendto(answer.to_wire(), sender)

    async def answer_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one question that comes by TCP."""
        self.asked_by_tcp += 1
        length = int.from_bytes(await reader.readexactly(2), "big")
        answer = await self._answer(from_wire(await reader.readexactly(length)))
        if answer is not None:
            data = answer.to_wire(max_size=65_535)
            writer.write(len(data).to_bytes(2, "big") + data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _answer(self, query: Message) -> Message | None:
        question = query.question[0]
        key = question.name, question.rdtype
        async with self._heard:
            self.asked.append((str(question.name), question.rdtype.name))
            self._heard.notify_all()
        if key in self._silent:
            return None
        if key in self._held:
            await self._held[key].wait()
        answer = make_response(query)
        for owner, ttl, data in self._records.get(key, ()):
            answer.answer.append(from_rdata(owner, ttl, data))
        if not answer.answer:
            answer.set_rcode(self._codes.get(key, NXDOMAIN))
        return answer

    def _add(self, owner: Name, ttl: int, data: Rdata) -> None:
        self._records[owner, data.rdtype].append((owner, ttl, data))

    async def close(self) -> None:
        """Answer nothing more."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def responder(host: str = "127.0.0.1") -> AsyncIterator[Responder]:
    """Open one on a port of the kernel's choice, by UDP and by TCP."""
    # The kernel's choice for TCP is sometimes somebody's for UDP: then another one.
    served = Responder()
    for _ in range(20):
        tcp = await asyncio.start_server(served.answer_stream, host, 0)
        port = tcp.sockets[0].getsockname()[1]
        try:
            served.bind(host, port)
            break
        except OSError:
            tcp.close()
    else:
        raise AssertionError("no port is free for both UDP and TCP")
    served.address = f"{host}:{port}"
    try:
        yield served
    finally:
        tcp.close()
        await served.close()


def labels(*octets: bytes) -> Name:
    """Return a name of these labels, whatever is in them."""
    return Name([*octets, b""])


def _reverse(address: str) -> Name:
    return from_text(ip_address(address).reverse_pointer)


def _key(name: str, kind: str) -> Key:
    return (_reverse(name) if kind == "PTR" else from_text(name)), RdataType[kind]
