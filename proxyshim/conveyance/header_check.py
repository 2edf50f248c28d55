"""What ``proxyshim check`` asks a backend about PROXY headers, and what the answers mean.

Four questions, of each address: does it greet a stranger whom a header names; does it refuse a
second header; does it refuse to serve a connection without a header; and may other addresses of
this host send one?
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address
from typing import Final

from proxyshim.addresses import Address
from proxyshim.backend.address import BackendAddress, SecondHeader
from proxyshim.backend.dial import Dial, Only
from proxyshim.conveyance.asking import examine_sessions, quitting
from proxyshim.conveyance.contract import Conveyance, Examined
from proxyshim.conveyance.second_header import (
    OwnHeader,
    WriteHeader,
    judge_second_header,
)
from proxyshim.conveyance.servers import how_to_expect_header
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Finding, Severity, Subject
from proxyshim.net.connect import connect_tcp
from proxyshim.net.reactor import Reactor
from proxyshim.net.stream import Stream

# A server that waits for a header does not greet at all, and one that greets may refuse to serve.
_SILENCE_S: Final = 4.0
# Our own address towards a backend on this host, and another one that every host has.
_OURS: Final = (ip_address("127.0.0.1"),)
_NEIGHBOUR: Final = "127.0.0.2"
_NO_SESSIONS: Final = "every client would get a 421"


async def examine(
    conveyance: Conveyance,
    dial: Dial,
    clients: Sequence[Address],
    write: WriteHeader,
) -> Examined:
    """Ask each address of the backend, and a session for each of *clients*."""
    subject = Subject(f"backend {dial.name}")
    findings: list[Finding] = []
    for address in dial.addresses.current:
        findings += [each async for each in _examine(subject, dial, address, write)]
    if not dial.addresses.current:
        findings.append(subject.error(f"has no address; {_NO_SESSIONS}"))
    if any(finding.severity is Severity.ERROR for finding in findings):
        return Examined(findings, ())
    return await examine_sessions(
        conveyance, dial, clients, findings, "greets the client {} in a PROXY header"
    )


async def _examine(
    subject: Subject, dial: Dial, address: BackendAddress, write: WriteHeader
) -> AsyncIterator[Finding]:
    try:
        verdict = await judge_second_header(dial, address, write)
    except BackendError as error:
        said = await _hear_without(dial)
        advice = ""
        # Some close, or greet with an error, because the header comes too early for them.
        if error.reason is Reason.HEADER_NOT_UNDERSTOOD or said.startswith(b"220"):
            advice = (
                f"; it does not expect a PROXY header: {how_to_expect_header(said)}"
            )
        yield subject.error(f"{error.detail}; {_NO_SESSIONS}{advice}")
        return
    if verdict is SecondHeader.OBEYED:
        yield subject.error(
            f"obeys a second PROXY header, so a client could pose as another one;"
            f' {_NO_SESSIONS}; set convey = "xclient", or use another server'
        )
    elif verdict is None:
        yield subject.error(
            "answered a second PROXY header neither with a refusal nor with a greeting;"
            f" {_NO_SESSIONS}; its log may say why"
        )
    else:
        yield subject.ok("takes a PROXY header, and refuses a second one")
        yield await _judge_without(subject, dial, address)
        if address.ip in _OURS and await _takes_from_neighbour(dial, address, write):
            yield subject.note(
                f"takes a PROXY header from {_NEIGHBOUR} too, not only from proxyshim's"
                f" {address.ip}: any program on this host can name any client to it; if"
                f" it has a list of proxies, name {address.ip} alone; otherwise let no"
                " other users log in on this host, or use a unix socket"
            )


async def _hear_without(dial: Dial) -> bytes:
    """Return what the backend says to a connection that sends no header."""
    said = b""
    with contextlib.suppress(BackendError):
        dialogue = await dial.connect()
        async with quitting(dialogue):
            said = (await dialogue.greeting(_SILENCE_S)).raw
            said += (await dialogue.command(b"EHLO [127.0.0.1]\r\n")).raw
    return said


class _FromNeighbour(OwnHeader):
    """Connects from another loopback address than we do, and sends our header there."""

    async def connect(self, reactor: Reactor, address: BackendAddress) -> Stream:
        stream = await connect_tcp(
            reactor,
            address.family,
            address.socket_address,
            lambda sock: sock.bind((_NEIGHBOUR, 0)),
        )
        self.send_header(stream)
        return stream


async def _takes_from_neighbour(
    dial: Dial, address: BackendAddress, write: WriteHeader
) -> bool:
    with contextlib.suppress(BackendError):
        dialogue = await dial.open(_FromNeighbour(write, address))
        async with quitting(dialogue):
            reply = await dialogue.command(b"EHLO [127.0.0.1]\r\n")
            return reply.code == 250
    return False


async def _judge_without(
    subject: Subject, dial: Dial, address: BackendAddress
) -> Finding:
    """Judge whether the backend serves a connection that sends no header."""
    is_served = False
    with contextlib.suppress(BackendError):
        dialogue = await dial.connect(Only(address))
        async with quitting(dialogue):
            await dialogue.greeting(_SILENCE_S)
            reply = await dialogue.command(b"EHLO [127.0.0.1]\r\n")
            is_served = reply.code == 250
    if is_served:
        return subject.unsafe(
            "serves connections without a PROXY header too, as their own address: if the"
            " header ever were not understood, it would serve clients as proxyshim; let"
            " this service require the header"
        )
    return subject.ok("serves nobody without a PROXY header")
