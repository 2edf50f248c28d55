"""What the tests need to know of a mail server."""

import abc
import ipaddress
import re
import smtplib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.integration.lab.netns import Host
from tests.integration.lab.programs import DEADLINE_S, Lines

T = TypeVar("T")

DOMAIN = "example.test"  # the domain of the server's own users
USER = f"user@{DOMAIN}"
HOST_NAME = f"mail.{DOMAIN}"
# Who may relay: its address, and every address that must not help a stranger.
FRIEND, FRIEND6 = "198.51.100.77", "2001:db8:51::77"
TRUSTED = ("127.0.0.1", "::1", "192.0.2.25", "2001:db8:2::25", FRIEND, FRIEND6)

XCLIENT = "xclient"
V1, V2 = "proxy-v1", "proxy-v2"
SOURCE = "source-address"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of mail server."""

    name: str
    conveyances: Sequence[str]
    start: Callable[["Home"], "Server"]
    # How it differs from what most do.
    without_tls: Sequence[str] = ()  # conveyances with which a client cannot use TLS
    relays: bool = True  # for clients whose own address is listed
    in_log: str = "{address}"  # an IPv4 client in the log (a format; see ``pattern``)
    in_log6: str = "{address}"
    received: str = ""  # empty if it writes no such header
    received6: str = ""
    # Further keys of the listener, by conveyance.
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    # What ``proxyshim check`` advises where the backend is not prepared, by conveyance.
    advice: Mapping[str, str] = field(default_factory=dict)
    # Notes of ``check`` about a prepared backend.
    notes: Mapping[str, str] = field(default_factory=dict)

    def pattern(self, address: str, port: int) -> str:
        """Return the pattern of the log line with that client."""
        form = self.in_log6 if ":" in address else self.in_log
        return _format(form, address, port)

    def received_matches(self, header: str, address: str, port: int) -> bool:
        """Return True if the ``Received:`` *header* names that client."""
        form = self.received6 if ":" in address else self.received
        return re.search(_format(form, address, port), header) is not None


def all_groups(address: str) -> str:
    """Return an IPv6 address with no group left out."""
    groups = ipaddress.ip_address(address).exploded.split(":")
    return ":".join(group.lstrip("0") or "0" for group in groups)


def _format(form: str, address: str, port: int) -> str:
    words = {
        "{address}": re.escape(address),
        "{all_groups}": all_groups(address),
        "{port}": str(port),
    }
    for word, value in words.items():
        form = form.replace(word, value)
    return form


@dataclass(frozen=True, slots=True)
class Home:
    """Where a mail server is started."""

    host: Host
    directory: Path  # exists, and every user can enter it
    certificate: Path  # for HOST_NAME, with its key; every user can read it


class Server(abc.ABC):
    """A running mail server."""

    # The ``backend`` by conveyance, and services that are not prepared for any.
    backends: Mapping[str, Sequence[str]]
    unprepared: Sequence[str]
    log: Lines

    def lacking(self, convey: str) -> Sequence[str]:
        """Return the ``backend`` that is not prepared for *convey*."""
        return self.unprepared

    def log_of(self, convey: str) -> Lines:
        """Return the log that names the clients that come that way."""
        return self.log

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop it, and remove what it left."""

    @abc.abstractmethod
    def find_message(self, message_id: str) -> str | None:
        """Return the stored message with that id, or None as long as there is none."""

    def log_in(self, smtp: smtplib.SMTP) -> None:  # noqa: B027  (most need no login)
        """Log in, where a server takes mail only after that."""

    def use_privilege(self, smtp: smtplib.SMTP, recipient: str) -> None:
        """Do what only a client with a listed address may do: relay."""
        expect(250, smtp.mail("someone@sender.example"))
        expect(250, smtp.rcpt(recipient))

    def message(self, message_id: str) -> str:
        """Wait for the message with that id, and return it."""
        try:
            return wait_until(
                lambda: self.find_message(message_id), f"message {message_id}"
            )
        except AssertionError as problem:
            problem.add_note("\n".join(self.log.since()[-200:]))
            raise


def search_files(folder: Path, message_id: str) -> str | None:
    """Return the first file below *folder* with that message id."""
    for path in folder.rglob("*"):
        try:
            text = path.read_text("utf-8", "replace") if path.is_file() else ""
        except FileNotFoundError:  # the server moved it meanwhile
            continue
        if f"<{message_id}>" in text:
            return text
    return None


def wait_until(look: Callable[[], T | None], what: str) -> T:
    """Return the first result of *look* that is not None; look often, up to a limit."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.02)
    return found


def expect(code: int, reply: tuple[int, bytes]) -> None:
    """Fail, and show the *reply*, unless it has that *code*."""
    assert reply[0] == code, reply
