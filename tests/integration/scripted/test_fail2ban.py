"""The example filter for fail2ban: which addresses it finds in our real log."""

import re
import signal
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.scripted.headers import LOCAL_CHECK, v1
from tests.integration.scripted.mta import GREETING, Backend
from tests.integration.scripted.process import ROOT, Process
from tests.integration.scripted.shim import LISTED, STRANGER, connect
from tests.integration.scripted.test_process import configure

FILTER = ROOT / "etc" / "fail2ban" / "proxyshim.conf"

# The pattern that fail2ban 1.0.2 puts in place of <ADDR>.
ADDR = (
    r"\[?(?:(?:::f{4,6}:)?(?P<ip4>(?:\d{1,3}\.){3}\d{1,3})"
    r"|(?P<ip6>(?:[0-9a-fA-F]{1,4}::?|::){1,7}(?:[0-9a-fA-F]{1,4}|(?<=:):)))\]?"
)


def failregexes() -> list[re.Pattern[str]]:
    parser = ConfigParser()
    parser.read(FILTER, "utf-8")
    lines = parser["Definition"]["failregex"].splitlines()
    return [re.compile(line.replace("<ADDR>", ADDR)) for line in lines]


def found_in(line: str) -> str | None:
    """Return the address that fail2ban would ban for a line."""
    matches = [each.search(line) for each in failregexes()]
    found = [m["ip4"] or m["ip6"] for m in matches if m is not None]
    return found[0] if found else None


def without_time(line: str) -> str:
    """Remove the timestamp, as fail2ban does before it matches."""
    return re.sub(r',"timestamp":"[^"]*"', "", line)


class Conversations:
    """A shim, and the sessions that fill its log."""

    def __init__(self, directory: Path, backend: Backend, opened: ExitStack) -> None:
        """Start the shim."""
        self._backend = backend
        self._opened = opened
        self.shim = opened.enter_context(Process(configure(directory, backend)))
        self.sessions = 0

    def play(self, octets: bytes, header: bytes = b"") -> None:
        """Have a client send something, and disconnect."""
        client = connect(self.shim.address, LISTED if header else STRANGER)
        with client:
            client.send(header)
            with self._backend.accept() as mta:
                mta.introduce()
                client.expect(GREETING)
                client.send(octets)
                if octets.startswith(b"NOOP\r\n"):
                    mta.expect(b"NOOP\r\n")
                    mta.send(b"250 ok\r\n")
                if octets.startswith(b"X"):
                    client.line()  # the 550, after which the session continues
                else:
                    client.rest()
        self.sessions += 1
        self.shim.wait_event("session_closed", number=self.sessions)

    def banned(self) -> list[str]:
        """Return the addresses that the filter finds, line by line."""
        lines = [without_time(line) for line in self.shim.lines.since()]
        journal = [f"mx1 proxyshim[123]: {line}" for line in lines]
        found = [found_in(line) for line in lines]
        assert found == [found_in(line) for line in journal]
        return [address for address in found if address is not None]


@pytest.fixture
def conversations(tmp_path: Path, backend: Backend) -> Iterator[Conversations]:
    with ExitStack() as opened:
        yield Conversations(tmp_path, backend, opened)


def test_a_direct_client_that_injects_is_banned(conversations: Conversations) -> None:
    conversations.play(b"XCLIENT ADDR=127.0.0.1\r\n")
    conversations.play(b"XFORWARD NAME=localhost\r\n")
    conversations.play(b"NOOP\r\nPROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n")
    assert conversations.banned() == [STRANGER] * 3


@pytest.mark.parametrize("header", [v1(), LOCAL_CHECK], ids=["client", "check"])
def test_a_proxy_is_never_banned_for_its_client(
    conversations: Conversations, header: bytes
) -> None:
    conversations.play(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", v1())
    conversations.play(b"XCLIENT ADDR=127.0.0.1\r\n", v1())
    with connect(conversations.shim.address, LISTED) as proxy:
        proxy.send(header + b"XCLIENT ADDR=127.0.0.1\r\n")
        conversations.shim.wait_event("command_refused")
    assert conversations.banned() == []


def test_honest_mistakes_ban_nobody(conversations: Conversations) -> None:
    for octets in (b"NOOP\0\r\n", b"x" * 13_000, b"BDAT 3\r\n"):
        conversations.play(octets)
    # Stopped, so that the header has arrived when the shim accepts.
    conversations.shim.signal(signal.SIGSTOP)
    with connect(conversations.shim.address, STRANGER) as forgotten:
        forgotten.send(v1())  # a proxy that is not listed
        conversations.shim.signal(signal.SIGCONT)
        forgotten.end()
    conversations.shim.wait_event("header_refused")
    assert conversations.banned() == []


def test_an_ipv6_client_that_injects_is_banned() -> None:
    line = (
        '{"event":"command_refused","session":"a-1","listener":"mx",'
        '"peer":"[2001:db8::7]:4321","reason":"xclient_injected",'
        '"client":"[2001:db8::7]:4321","level":"info"}'
    )
    assert found_in(line) == "2001:db8::7"
    assert found_in(line.replace('"client":"[2001:db8::7]', '"client":"[::7]')) is None


def test_a_peers_text_in_a_log_line_bans_nobody() -> None:
    """Text from peers is always quoted, and each line begins with our own event."""
    line = '{"event":"backend_failed","detail":"{\\"event\\":\\"command_refused\\"'
    assert found_in(line) is None
