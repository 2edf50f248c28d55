"""The demo's MTA: aiosmtpd, extended by XCLIENT as in Postfix; it stores mail in a Maildir.

This mail server is for demonstration, not for production.  Where it matters here, it behaves as
Postfix 3.7 does (XCLIENT_README and its smtpd):

- It offers XCLIENT to the hosts in *xclient_hosts* and accepts it from them only; others get
  ``550 5.7.0 Error: insufficient authorization``.
- Attributes take effect one by one, and an attribute that is not sent keeps its old value.  A bad
  one is answered with 501, and the client keeps the right to send XCLIENT.
- After a valid command the session starts over with a 220.  The right then depends on the *new*
  address: a client that is not itself in the list has lost it.

``EmbeddedMta.sessions`` keeps the latest sessions as this MTA saw them.
"""

import asyncio
import errno
import logging
import mailbox
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

from proxyshim.addresses import Address, Endpoint, fold_v4_mapped, read_socket_address

HOST_NAME = "mta.example.net"
BANNER = "ESMTP (the proxyshim demo's MTA)"
XCLIENT_ATTRIBUTES = "NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"

# Idle sessions end after this long, as Postfix's smtpd_timeout.
IDLE_LIMIT_S = 300
MAX_VALUE_OCTETS = 255
SESSIONS_KEPT = 100

UNKNOWN = "unknown"
UNAVAILABLE = "[UNAVAILABLE]"
TEMPORARILY_UNAVAILABLE = "[TEMPUNAVAIL]"

XTEXT = re.compile(r"(?:[^+]|\+[0-9A-Fa-f]{2})*")
ENCODED = re.compile(r"\+([0-9A-Fa-f]{2})")
UNPRINTABLE = re.compile(r"[^ -~]")
LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOSTNAME = re.compile(rf"(?![0-9.]+$){LABEL}(?:\.{LABEL})*")
DIGITS = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Client:
    """The client as the MTA believes it to be; each field is an XCLIENT attribute.

    For the address and the ports, None is Postfix's *unknown*.
    """

    addr: Address | None
    port: int | None
    name: str = UNKNOWN
    reverse_name: str = UNKNOWN
    helo: str | None = None
    proto: str = "SMTP"
    login: str | None = None
    destaddr: Address | None = None
    destport: int | None = None

    def __str__(self) -> str:
        """Return the client as the Received header names it: ``name [addr]:port``."""
        if self.addr is None:
            return f"{self.name} [{UNKNOWN}]"
        tag = "IPv6:" if self.addr.version == 6 else ""
        port = "" if self.port is None else f":{self.port}"
        return f"{self.name} [{tag}{self.addr}]{port}"


class BadAttributeError(Exception):
    """The text of the 501 that answers a bad XCLIENT attribute."""


def read_xtext(raw: str) -> str:
    """Decode xtext (RFC 3461, 4); take text that is not xtext literally, as Postfix does."""
    if XTEXT.fullmatch(raw):
        raw = ENCODED.sub(lambda match: chr(int(match[1], 16)), raw)
    return UNPRINTABLE.sub("?", raw)


def read_name(value: str) -> str:
    """Read NAME or REVERSE_NAME; a failed lookup of either kind is *unknown*."""
    if value.upper() in (UNAVAILABLE, TEMPORARILY_UNAVAILABLE):
        return UNKNOWN
    if len(value) > MAX_VALUE_OCTETS or not HOSTNAME.fullmatch(value):
        raise ValueError(value)
    return value


def read_client_address(value: str) -> Address | None:
    """Read ADDR or DESTADDR: IPv4 as it is, IPv6 with its prefix and without a zone id."""
    if value.upper() == UNAVAILABLE:
        return None
    if value[:5].upper() != "IPV6:":
        return IPv4Address(value)
    if "%" in value:
        raise ValueError(value)
    return fold_v4_mapped(IPv6Address(value[5:]))


def read_port(value: str) -> int | None:
    """Read PORT or DESTPORT: at most five digits, which is all that Postfix checks."""
    if value.upper() == UNAVAILABLE:
        return None
    if not DIGITS.fullmatch(value):
        raise ValueError(value)
    return int(value)


def read_proto(value: str) -> str:
    """Read PROTO, which is SMTP or ESMTP."""
    if value.upper() not in ("SMTP", "ESMTP"):
        raise ValueError(value)
    return value.upper()


def read_word(value: str) -> str | None:
    """Read HELO or LOGIN: any text."""
    return None if value.upper() == UNAVAILABLE else value


READERS: dict[str, Callable[[str], str | int | Address | None]] = {
    "NAME": read_name,
    "ADDR": read_client_address,
    "PROTO": read_proto,
    "HELO": read_word,
    "REVERSE_NAME": read_name,
    "PORT": read_port,
    "LOGIN": read_word,
    "DESTADDR": read_client_address,
    "DESTPORT": read_port,
}


def apply_attribute(client: Client, attribute: str) -> Client:
    """Return *client* with one ``NAME=value`` applied.  Raises BadAttributeError."""
    name, _, raw = attribute.partition("=")
    if not raw:
        raise BadAttributeError("Error: attribute=value expected")
    if len(raw) > MAX_VALUE_OCTETS:
        raise BadAttributeError("Error: attribute value too long")
    key, value = name.upper(), read_xtext(raw)
    if key not in READERS:
        raise BadAttributeError(
            f"Bad XCLIENT attribute name: {UNPRINTABLE.sub('?', name)}"
        )
    try:
        known = READERS[key](value)
    except ValueError as error:
        raise BadAttributeError(f"Bad {key} syntax: {value}") from error
    changes = {key.lower(): known}
    if key == "NAME" and known != UNKNOWN:
        changes["reverse_name"] = known
    return replace(client, **changes)  # type: ignore[arg-type]  # READERS pairs them


@dataclass(frozen=True, slots=True)
class Message:
    """A stored message: its key in the Maildir, and its envelope."""

    key: str
    client: Client
    mail_from: str
    rcpt_tos: tuple[str, ...]
    octets: int


@dataclass(slots=True, eq=False)
class MtaSession:
    """One session as the MTA sees it; *peer* is the socket's address."""

    transport: asyncio.BaseTransport
    peer: Endpoint
    client: Client
    may_xclient: bool
    xclients: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


def open_maildir(path: Path) -> mailbox.Maildir:
    """Open a Maildir, or create one.  Raises OSError for a folder with other content."""
    path.mkdir(mode=0o700, exist_ok=True)
    if not any(path.iterdir()):
        for name in ("tmp", "new", "cur"):
            (path / name).mkdir(mode=0o700)
    if not (path / "new").is_dir():
        raise OSError(errno.ENOTEMPTY, "neither empty nor a Maildir", str(path))
    return mailbox.Maildir(path, create=False)


class EmbeddedMta:
    """The MTA on a loopback port that the kernel chooses."""

    def __init__(
        self,
        maildir: Path,
        xclient_hosts: frozenset[Address],
        on_message: Callable[[Message], None] | None = None,
    ) -> None:
        """Store mail in *maildir*, accept XCLIENT from *xclient_hosts*, call *on_message*."""
        self.maildir = open_maildir(maildir)
        self.xclient_hosts = xclient_hosts
        self.sessions: deque[MtaSession] = deque(maxlen=SESSIONS_KEPT)
        self.address = ""
        self._on_message = on_message
        self._open: set[MtaSession] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Start listening, and set *address*."""
        # aiosmtpd logs warnings about clients' mistakes, which the transcript shows anyway.
        logging.getLogger("mail.log").setLevel(logging.ERROR)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: XclientSmtp(self), "127.0.0.1", 0
        )
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    async def close(self) -> None:
        """Stop listening and end every session."""
        if self._server is not None:
            self._server.close()
        for session in self._open:
            session.transport.close()
        await self.wait_until_idle()

    async def wait_until_idle(self) -> None:
        """Wait until no session is open."""
        for session in list(self._open):
            await session.closed.wait()

    def add_session(
        self, peer: Endpoint, transport: asyncio.BaseTransport
    ) -> MtaSession:
        """Add a new session, with its socket's address as the client."""
        name = "localhost" if peer.address.is_loopback else UNKNOWN
        client = Client(peer.address, peer.port, name, name)
        may_xclient = peer.address in self.xclient_hosts
        session = MtaSession(transport, peer, client, may_xclient)
        self.sessions.append(session)
        self._open.add(session)
        return session

    def end_session(self, session: MtaSession) -> None:
        """Record that a session has ended."""
        self._open.discard(session)
        session.closed.set()

    def store(self, session: MtaSession, received: str, envelope: Envelope) -> Message:
        """Store the message with its Received header.  Raises OSError."""
        content = (envelope.original_content or b"").replace(b"\r\n", b"\n")
        sender = "" if envelope.mail_from == "<>" else str(envelope.mail_from)
        head = f"Return-Path: <{UNPRINTABLE.sub('?', sender)}>\n{received}\n"
        message = Message(
            self.maildir.add(head.encode("ascii") + content),
            session.client,
            sender,
            tuple(envelope.rcpt_tos),
            len(content),
        )
        session.messages.append(message)
        if self._on_message:
            self._on_message(message)
        return message

    def received_header(self, message: Message) -> str:
        """Return the Received header of a stored message, read from the Maildir and unfolded."""
        header = self.maildir[message.key]["Received"]
        return " ".join(str(header).split())


class Hooks:
    """The handler that aiosmtpd calls."""

    async def handle_EHLO(  # noqa: N802
        self,
        server: "XclientSmtp",
        session: Session,
        envelope: Envelope,
        hostname: str,
        responses: list[str],
    ) -> list[str]:
        """Offer XCLIENT only to clients that may send it."""
        session.host_name = hostname
        if server.seen.may_xclient:
            responses.insert(-1, f"250-XCLIENT {XCLIENT_ATTRIBUTES}")
        return responses

    async def handle_DATA(  # noqa: N802
        self, server: "XclientSmtp", session: Session, envelope: Envelope
    ) -> str:
        """Store the message; acknowledge it only when it is on disk."""
        try:
            message = server.mta.store(server.seen, server.received(), envelope)
        except OSError as error:
            return f"451 4.3.0 Error: cannot store the message: {error.strerror}"
        return f"250 2.0.0 Ok: stored as {message.key}"


class XclientSmtp(SMTP):
    """One connection to the MTA."""

    def __init__(self, mta: EmbeddedMta) -> None:
        """Create a connection of *mta*."""
        super().__init__(
            Hooks(),
            hostname=HOST_NAME,
            ident=BANNER,
            timeout=IDLE_LIMIT_S,
            loop=asyncio.get_running_loop(),
        )
        self.mta = mta
        self.seen: MtaSession

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start with the socket's address as the client."""
        peer = read_socket_address(transport.get_extra_info("peername"))
        assert peer is not None, "the MTA listens on TCP only"
        self.seen = self.mta.add_session(peer, transport)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """End the session."""
        super().connection_lost(error)
        self.mta.end_session(self.seen)

    def received(self) -> str:
        """Return the Received header for a message that arrives now."""
        assert self.session is not None
        assert self.envelope is not None
        protocol = "ESMTP" if self.session.extended_smtp else "SMTP"
        if self.seen.client.login:
            protocol += "A"
        helo = UNPRINTABLE.sub("?", self.session.host_name or UNKNOWN)
        to = UNPRINTABLE.sub("?", self.envelope.rcpt_tos[0])
        return (
            f"Received: from {helo} ({self.seen.client})\n"
            f"\tby {HOST_NAME} with {protocol}\n"
            f"\tfor <{to}>; {format_datetime(datetime.now(UTC))}"
        )

    async def smtp_XCLIENT(self, arg: str | None) -> None:  # noqa: N802
        """Switch to another client's identity, if the client may (Postfix, smtpd.c)."""
        await self.push(self._answer_xclient(arg))

    def _answer_xclient(self, arg: str | None) -> str:
        assert self.envelope is not None
        attributes = (arg or "").split()
        self.seen.xclients.append(" ".join(attributes))
        if self.envelope.mail_from is not None:
            return "503 5.5.1 Error: MAIL transaction in progress"
        if not attributes:
            return "501 5.5.4 Syntax: XCLIENT attribute=value..."
        if not self.seen.may_xclient:
            return "550 5.7.0 Error: insufficient authorization"
        try:
            for attribute in attributes:
                self.seen.client = apply_attribute(self.seen.client, attribute)
        except BadAttributeError as error:
            return f"501 5.5.4 {error}"
        self._start_over()
        return f"220 {HOST_NAME} {BANNER}"

    def _start_over(self) -> None:
        assert self.session is not None
        client = self.seen.client
        self.seen.may_xclient = client.addr in self.mta.xclient_hosts
        self.session.host_name = client.helo
        self.session.extended_smtp = client.proto == "ESMTP"
        self.session.authenticated = client.login is not None
