"""A DNS server in the test's own loop, for answers that no real server would give.

Unbound (tests/integration/lab) covers the ordinary cases.
"""

import asyncio
import socket
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
from dns.flags import TC
from dns.message import Message, from_wire, make_response
from dns.name import Name, from_text
from dns.rcode import NXDOMAIN, Rcode
from dns.rdata import Rdata
from dns.rdata import from_text as rdata_from_text
from dns.rdataclass import IN
from dns.rdatatype import CNAME, PTR, RdataType
from dns.rrset import from_rdata

from proxyshim.dns import client

Record = tuple[Name, int, Rdata]  # owner, TTL
Key = tuple[Name, RdataType]


class Responder:
    """The answers that a test prescribes, and the questions that came."""

    def __init__(self) -> None:
        """Start without records: no name exists."""
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
        self._question_came = asyncio.Condition()

    # What the server answers.

    def add_ptr(self, address: str, *names: str | Name, ttl: int = 300) -> None:
        """Give *address* PTR records with these names; a string may have escapes."""
        owner = _reverse(address)
        for name in names:
            self._add(owner, ttl, rdata_from_text(IN, PTR, str(name)))

    def add_ptr_alias(self, address: str, alias: str, ttl: int = 300) -> None:
        """Put a CNAME in place of the PTR record (RFC 2317)."""
        data = rdata_from_text(IN, CNAME, alias)
        self._records[_reverse(address), PTR].append((_reverse(address), ttl, data))

    def add_host(self, owner: str, *addresses: str, ttl: int = 300) -> None:
        """Give *owner* these addresses."""
        for address in addresses:
            kind = RdataType.AAAA if ":" in address else RdataType.A
            self._add(from_text(owner), ttl, rdata_from_text(IN, kind, address))

    def add_alias(
        self, owner: str, target: str, *addresses: str, ttl: int = 300
    ) -> None:
        """Make *owner* an alias of *target*, which has these addresses."""
        for address in addresses:
            kind = RdataType.AAAA if ":" in address else RdataType.A
            data = rdata_from_text(IN, kind, address)
            link = rdata_from_text(IN, CNAME, target)
            self._records[from_text(owner), kind] += [
                (from_text(owner), ttl, link),
                (from_text(target), ttl, data),
            ]

    def fail(self, name: str, kind: str, code: Rcode) -> None:
        """Answer this question with an error."""
        self._codes[_key(name, kind)] = code

    def be_silent(self, name: str, kind: str) -> None:
        """Never answer this question."""
        self._silent.add(_key(name, kind))

    def speak_again(self) -> None:
        """Answer every question again."""
        self._silent.clear()

    def truncate(self, name: str, kind: str) -> None:
        """Answer this question by TCP only."""
        self._truncated.add(_key(name, kind))

    def hold(self, name: str, kind: str) -> asyncio.Event:
        """Answer this question only once the returned event is set."""
        return self._held.setdefault(_key(name, kind), asyncio.Event())

    async def wait_asked(self, count: int) -> None:
        """Wait until *count* questions have come."""
        async with self._question_came:
            await self._question_came.wait_for(lambda: len(self.asked) >= count)

    # Where it answers.

    @property
    def host(self) -> str:
        """The address without the port, as in /etc/resolv.conf."""
        return self.address.rpartition(":")[0]

    def replace_port_53(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have questions to this address, and port 53, come here: resolv.conf names no port."""
        host, address = self.host, self.address
        find = client._socket_address

        def find_it(server: str) -> tuple[int, tuple[object, ...]]:
            return find(address if server == host else server)

        monkeypatch.setattr(client, "_socket_address", find_it)

    # How the server answers.

    def bind(self, host: str, port: int = 0) -> int:
        """Start answering by UDP; return the port."""
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
        # However long it is: no real server sends more than the question allows.
        self._socket.sendto(answer.to_wire(max_size=65_000), sender)

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
        async with self._question_came:
            self.asked.append((str(question.name), question.rdtype.name))
            self._question_came.notify_all()
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
        """Stop answering."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def responder(host: str = "127.0.0.1") -> AsyncIterator[Responder]:
    """Open a server by UDP and by TCP, on a port that the kernel chooses."""
    # The port that the kernel chooses for TCP may be in use for UDP.  Then try another.
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
        raise AssertionError("found no port that is free for both UDP and TCP")
    served.address = f"{host}:{port}"
    try:
        yield served
    finally:
        tcp.close()
        await served.close()


def labels(*octets: bytes) -> Name:
    """Return a name made of these labels, which may hold any bytes."""
    return Name([*octets, b""])


def _reverse(address: str) -> Name:
    return from_text(ip_address(address).reverse_pointer)


def _key(name: str, kind: str) -> Key:
    return (_reverse(name) if kind == "PTR" else from_text(name)), RdataType[kind]
