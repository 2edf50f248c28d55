"""Play a script on a twin site, directly or behind proxyshim, and return what was seen.

What differs between any two sessions (ids, dates, ports) is replaced by placeholders, so that
two runs can be compared.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tests.integration.lab.clients import Conversation
from tests.integration.lab.policy import Request
from tests.integration.lab.postfix import queue_id_of
from tests.integration.lab.sasl import PASSWORD, USER
from tests.integration.lab.twin_site import CLIENTS, TwinSite, Way

HELO: Final = "helo.example"
CONTENT: Final = b"Subject: twins\r\n\r\none\r\n..two\r\n.\r\n"
CLOSED: Final = "(closed)"

Script = Callable[[Conversation], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One run of a script, as seen from both ends."""

    replies: list[str]
    logged: list[str]
    headers: list[str]


# The scripts.  They look at a reply only if it decides what may follow.


def mail(talk: Conversation, helo: str = HELO) -> Iterator[str]:
    yield str(talk.reply())
    yield str(talk.ask(f"EHLO {helo}"))
    yield from transaction(talk)
    yield str(talk.ask("QUIT"))


def transaction(talk: Conversation) -> Iterator[str]:
    """Try to relay, then to deliver."""
    yield str(talk.ask("MAIL FROM:<sender@client.example>"))
    yield str(talk.ask("RCPT TO:<someone@elsewhere.example>"))
    yield str(talk.ask("RCPT TO:<user@example.test>"))
    reply = talk.ask("DATA")
    yield str(reply)
    if reply.code == 354:
        talk.send(CONTENT)
        yield str(talk.reply())


def login(talk: Conversation, password: str = PASSWORD) -> Iterator[str]:
    """Relay after AUTH."""
    yield str(talk.reply())
    yield str(talk.ask(f"EHLO {HELO}"))
    secret = base64.b64encode(f"\0{USER}\0{password}".encode()).decode()
    yield str(talk.ask(f"AUTH PLAIN {secret}"))
    yield from transaction(talk)
    yield str(talk.ask("QUIT"))


def inside_tls(talk: Conversation, then: Script) -> Iterator[str]:
    yield str(talk.reply())
    yield str(talk.ask(f"EHLO {HELO}"))
    yield str(talk.ask("STARTTLS"))
    secured = talk.start_tls()
    # The script begins by reading a greeting, but inside TLS the server sends none.
    secured.send(b"NOOP\r\n")
    yield from then(secured)
    secured.close()


def pipelined(talk: Conversation) -> Iterator[str]:
    # One of two recipients is refused, so that one copy of the message is stored.
    yield str(talk.reply())
    yield str(talk.ask(f"EHLO {HELO}"))
    talk.send(
        b"MAIL FROM:<a@client.example> SIZE=1000 BODY=8BITMIME\r\n"
        b"RCPT TO:<user@example.test> NOTIFY=NEVER\r\nRCPT TO:<x@elsewhere.example>\r\n"
        b"BDAT 18\r\nSubject: twins\r\n\r\nBDAT 5 LAST\r\none\r\nVRFY x\r\nQUIT\r\n"
    )
    for _ in range(7):
        yield str(talk.reply())


def hasty(talk: Conversation, octets: bytes) -> Iterator[str]:
    yield str(talk.reply())
    talk.send(octets)
    for _ in range(octets.count(b"\n") + 1):
        yield str(talk.reply())


ENVELOPE: Final = (
    b"MAIL FROM:<sender@client.example>\r\nRCPT TO:<user@example.test>\r\n"
)


def without_ehlo(talk: Conversation, first: str) -> Iterator[str]:
    yield str(talk.reply())
    if first:
        yield str(talk.ask(first))
    yield str(talk.ask("STARTTLS"))


def own_xclient(talk: Conversation) -> Iterator[str]:
    """Send XCLIENT as a client, outside of a transaction and in one."""
    yield str(talk.reply())
    yield str(talk.ask(f"EHLO {HELO}"))
    yield str(talk.ask("XCLIENT ADDR=127.0.0.1"))
    yield str(talk.ask("MAIL FROM:<sender@client.example>"))
    yield str(talk.ask("XCLIENT ADDR=127.0.0.1"))
    yield str(talk.ask("QUIT"))


# Play.


def play(site: TwinSite, way: Way, service: str, client: str, script: Script) -> Seen:
    """Play the script that way; return what was seen, without ids, dates and ports."""
    log = site.postfix.lines
    mark = log.mark()
    address = CLIENTS[client]
    with Conversation.open(site.client, way.to(service, address), address) as talk:
        port = talk.port
        replies = list(until_closed(script(talk)))
    log.wait_for(r"smtpd\[\d+\]: disconnect from", since=mark)
    logged = [line for line in log.since(mark) if "postfix/smtpd[" in line]
    headers = [
        header
        for reply in replies
        if "queued as" in reply
        for header in headers_of(site.postfix.stored(queue_id_of(reply)))
    ]
    events = [line.split("]: ", 1)[1] for line in logged]
    return Seen(*(timeless(texts, port) for texts in (replies, events, headers)))


def until_closed(replies: Iterator[str]) -> Iterator[str]:
    for reply in replies:
        yield reply or CLOSED
        if not reply:
            return


def headers_of(stored: str) -> list[str]:
    """Return the headers, each on one line."""
    return re.sub(r"\n[ \t]+", " ", stored.partition("\n\n")[0]).split("\n")


TIMELESS: Final = [
    (r"\b[0-9A-F]{10,12}\b", "ID"),
    (r"\w{3}, +\d+ \w{3} \d{4} [\d:]{8} [+-]\d{4} \(\w+\)", "DATE"),
    (r"<\d{14}\.ID@", "<DATE.ID@"),
    (r"/inbox/\S+", "/inbox/FILE"),
]


def timeless(texts: list[str], port: int) -> list[str]:
    """Replace queue ids, dates and the client's port by placeholders."""
    rules = [*TIMELESS, (rf"\]:{port}\b", "]:PORT")]
    return [rewritten(text, rules) for text in texts]


def rewritten(text: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def greetings(site: TwinSite, way: Way, service: str, at_once: bool) -> list[str]:
    """Connect three times, either at once or in turn; return the greetings."""
    address = CLIENTS[service]
    log = site.postfix.lines
    mark = log.mark()
    talks, found = [], []
    for count in (1, 2, 3):
        talk = Conversation.open(site.client, way.to(service, address), address)
        talks.append(talk)
        found.append(str(talk.reply()))
        if not at_once:
            if found[-1].startswith("220"):  # otherwise the server closes or resets
                talk.ask("QUIT")
            talk.close()
            log.wait_for("disconnect from", since=mark, count=count)
    for talk in talks:
        talk.close()
    log.wait_for("disconnect from", since=mark, count=3)
    return found


def policy_request(site: TwinSite, way: Way, client: str) -> Request:
    site.policy.requests.clear()
    play(site, way, "policy", client, mail)
    [first] = site.policy.requests
    fleeting = {"instance", "client_port"}
    return {key: value for key, value in first.items() if key not in fleeting}


def milter_saw(site: TwinSite, way: Way, client: str) -> dict[str, str]:
    """Return what the milter saw of the client, with "PORT" for the client's own port.

    It must see one session of the client.  It sees some of proxyshim's too.
    """
    mark = site.milter.lines.mark()
    ports = []

    def script(talk: Conversation) -> Iterator[str]:
        ports.append(str(talk.port))
        yield from mail(talk)

    seen = play(site, way, "milter", client, script)
    assert any("queued as" in reply for reply in seen.replies)
    sessions = map(json.loads, site.milter.lines.since(mark))
    [values] = [each for each in sessions if each["host"] == CLIENTS[client]]
    return {key: "PORT" if values[key] == ports[0] else values[key] for key in values}


# Who is refused at connect (smtpd_delay_reject = no), and how the refusal begins.
AT_CONNECT: Final = [
    ("blocklist", "named", "220"),
    ("blocklist", "blocklisted", "554 5.7.1"),
    ("blocklist", "blocklisted_v6", "554 5.7.1"),
    ("access", "access_by_address", "554 5.7.1"),
    ("access", "access_by_name", "554 5.7.1"),
    ("access", "access_by_parent", "554 5.7.1"),
    ("access", "access_by_reverse_name", "554 5.7.1"),
    ("names", "named", "220"),
    ("names", "no_ptr", "550 5.7.25"),
    ("names", "dns_timeout", "450 4.7.25"),
    ("reverse", "no_ptr", "550 5.7.1"),
    ("reverse", "mismatch", "220"),
    ("reverse", "dns_refused", "450 4.7.1"),
]
