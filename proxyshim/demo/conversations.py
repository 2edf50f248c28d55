"""The demo's four conversations: what each peer sends, and how its session should end.

A conversation is a coroutine that reads like its transcript, and a judge that checks what the
MTA saw.  Both raise ExpectationError if something is wrong; the judge returns the verdict.  The
claimed addresses are documentation addresses (RFC 5737, RFC 3849).
"""

import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from proxyshim.addresses import Endpoint
from proxyshim.demo.dialogue import Dialogue, ExpectationError
from proxyshim.demo.mta import EmbeddedMta, MtaSession
from proxyshim.demo.pair import LISTED_PROXY
from proxyshim.proxy_header import read_header

DIRECT_CLIENT = "127.0.0.3"
UNLISTED_PEER = "127.0.0.4"

CLIENT_V4 = Endpoint(ip_address("203.0.113.7"), 40111)
CLIENT_V6 = Endpoint(ip_address("2001:db8::7"), 40112)
FRONT_V4 = Endpoint(ip_address("198.51.100.25"), 25)
FRONT_V6 = Endpoint(ip_address("2001:db8::25"), 25)

V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2_PROXY, V2_TCP4, V2_TCP6 = 0x21, 0x11, 0x21
V2_AUTHORITY = 0x02


def write_v1(source: Endpoint, destination: Endpoint) -> bytes:
    """Write a PROXY header of version 1 (PROXY spec, 2.1)."""
    return (
        f"PROXY TCP{source.address.version} {source.address} {destination.address} "
        f"{source.port} {destination.port}\r\n"
    ).encode("ascii")


def write_v2(source: Endpoint, destination: Endpoint, authority: bytes) -> bytes:
    """Write a PROXY header of version 2, with one TLV (PROXY spec, 2.2)."""
    body = source.address.packed + destination.address.packed
    body += struct.pack("!HH", source.port, destination.port)
    body += struct.pack("!BH", V2_AUTHORITY, len(authority)) + authority
    family = V2_TCP6 if source.address.version == 6 else V2_TCP4
    return V2_SIGNATURE + struct.pack("!BBH", V2_PROXY, family, len(body)) + body


def describe_header(octets: bytes) -> list[str]:
    """Return lines with the content of a header of version 2, followed by its octets."""
    read = read_header(octets)
    assert read is not None, "the header is complete"
    header, length = read
    tlvs = (f"   {name} {value}" for name, value in header.log_details().items())
    text = octets.hex(" ")
    return [
        f"PROXY header, version {header.version}, {length} octets, which mean:",
        f"   {header.command} {header.family}, {header.source} to {header.destination}",
        *tlvs,
        *(f"   {text[at : at + 72].strip()}" for at in range(0, len(text), 72)),
    ]


# --- what the peers send --------------------------------------------------------------


async def greet(talk: Dialogue) -> None:
    """Read the greeting and send EHLO; the reply must not offer XCLIENT."""
    await talk.reply("220 ")
    offered = await talk.command("EHLO client.example", "250")
    if any(line[4:11].upper() == "XCLIENT" for line in offered):
        raise ExpectationError("the EHLO reply shows XCLIENT to a client")


async def send_mail(talk: Dialogue) -> None:
    """Send one message, then QUIT."""
    await talk.command("MAIL FROM:<alice@client.example>", "250")
    await talk.command("RCPT TO:<bob@example.net>", "250")
    await talk.command("DATA", "354")
    await talk.send(
        b"From: alice@client.example\r\n"
        b"To: bob@example.net\r\n"
        b"Subject: Who am I to you?\r\n"
        b"\r\n"
        b"Look at the Received header.\r\n"
        b".\r\n"
    )
    await talk.reply("250")
    await talk.command("QUIT", "221")
    await talk.closed()


async def play_listed_v1(talk: Dialogue) -> None:
    """Play HAProxy with send-proxy: a header, then the client's own session."""
    await talk.send(write_v1(CLIENT_V4, FRONT_V4))
    await greet(talk)
    await send_mail(talk)


async def play_listed_v2(talk: Dialogue) -> None:
    """Play HAProxy with send-proxy-v2: the same in binary, with a TLV."""
    header = write_v2(CLIENT_V6, FRONT_V6, b"mx.example.net")
    await talk.send(header, describe_header(header))
    await greet(talk)
    await send_mail(talk)


async def play_direct(talk: Dialogue) -> None:
    """Play an ordinary mail server that also tries to pose as another client."""
    await greet(talk)
    await talk.command(f"XCLIENT ADDR={CLIENT_V4.address}", "550 5.7.0")
    await send_mail(talk)


async def play_unlisted(talk: Dialogue) -> None:
    """Play a proxy that is missing from haproxy_hosts, or a client that poses as a proxy."""
    await talk.send(write_v1(CLIENT_V4, FRONT_V4))
    refusal = f"421 4.7.1 PROXY not allowed from [{UNLISTED_PEER}]"
    # As with any client, the greeting may have been sent before the header arrived.
    [first, *_] = await talk.reply(refusal, "220 ")
    if first.startswith("220 "):
        await talk.reply(refusal)
    await talk.closed()


# --- and how it should end ------------------------------------------------------------

Judge = Callable[[EmbeddedMta, Sequence[MtaSession], Endpoint], str]


def check_delivered_as(
    mta: EmbeddedMta, sessions: Sequence[MtaSession], client: Endpoint
) -> None:
    """Check that one message arrived, and that *client* is the only client the MTA saw."""
    seen = [
        Endpoint(s.client.addr, s.client.port or 0) for s in sessions if s.client.addr
    ]
    if seen != [client]:
        found = ", ".join(map(str, seen)) or "no client"
        raise ExpectationError(f"the MTA should have seen {client}; it saw {found}")
    if any(len(session.xclients) != 1 for session in sessions):
        raise ExpectationError(
            "the MTA should receive exactly one XCLIENT, from proxyshim"
        )
    if any(session.may_xclient for session in sessions):
        raise ExpectationError("the client may still send XCLIENT to the MTA")
    messages = [message for session in sessions for message in session.messages]
    if len(messages) != 1:
        raise ExpectationError(
            f"one message should be in the Maildir; there are {len(messages)}"
        )
    received = mta.received_header(messages[0])
    tag = "IPv6:" if client.address.version == 6 else ""
    if f" [{tag}{client.address}]:{client.port})" not in received:
        raise ExpectationError(f"the Received header does not name {client}")


def expect_claimed_v4(
    mta: EmbeddedMta, sessions: Sequence[MtaSession], local: Endpoint
) -> str:
    """Expect the client that the v1 header names."""
    check_delivered_as(mta, sessions, CLIENT_V4)
    return f"The MTA saw {CLIENT_V4}, the client in the header, not {local.address}."


def expect_claimed_v6(
    mta: EmbeddedMta, sessions: Sequence[MtaSession], local: Endpoint
) -> str:
    """Expect the client that the v2 header names."""
    check_delivered_as(mta, sessions, CLIENT_V6)
    return f"The MTA saw {CLIENT_V6}, the client in the header, not {local.address}."


def expect_own_address(
    mta: EmbeddedMta, sessions: Sequence[MtaSession], local: Endpoint
) -> str:
    """Expect the socket's own address."""
    check_delivered_as(mta, sessions, local)
    return f"The MTA saw {local}, as if there were no proxyshim; XCLIENT was refused."


def expect_refusal(
    mta: EmbeddedMta, sessions: Sequence[MtaSession], local: Endpoint
) -> str:
    """Expect no message, and no session as the claimed client."""
    if any(session.client.addr == CLIENT_V4.address for session in sessions):
        raise ExpectationError(f"the MTA believed the claim to be {CLIENT_V4.address}")
    if any(session.messages for session in sessions):
        raise ExpectationError("the MTA accepted a message")
    return f"421 and closed; the MTA never saw {CLIENT_V4.address}."


@dataclass(frozen=True, slots=True)
class Conversation:
    """A title, the peer's address, what the peer sends, and the judge of the result."""

    title: str
    about: str
    source: str
    play: Callable[[Dialogue], Awaitable[None]]
    judge: Judge


CONVERSATIONS = (
    Conversation(
        "A listed proxy sends a PROXY header, version 1",
        f"{LISTED_PROXY} is in haproxy_hosts, and states who its client is.",
        LISTED_PROXY,
        play_listed_v1,
        expect_claimed_v4,
    ),
    Conversation(
        "A listed proxy sends a PROXY header, version 2",
        f"{LISTED_PROXY} again, with the binary header and an IPv6 client.",
        LISTED_PROXY,
        play_listed_v2,
        expect_claimed_v6,
    ),
    Conversation(
        "A client comes directly",
        f"{DIRECT_CLIENT} is not listed and sends no header, but it tries XCLIENT.",
        DIRECT_CLIENT,
        play_direct,
        expect_own_address,
    ),
    Conversation(
        "A peer that is not listed sends a PROXY header",
        f"{UNLISTED_PEER} is not in haproxy_hosts.",
        UNLISTED_PEER,
        play_unlisted,
        expect_refusal,
    ),
)
