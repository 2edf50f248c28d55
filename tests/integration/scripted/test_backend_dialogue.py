"""The dialogue that opens a backend: connect, greeting, EHLO, XCLIENT, fresh greeting."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from proxyshim.backend.lookup import Found, LookupFailed, SystemLookup
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import XCLIENT, v1
from tests.integration.scripted.mta import (
    EHLO,
    EXTENSIONS,
    FIRST_GREETING,
    GREETING,
    OFFER,
    Backend,
)
from tests.integration.scripted.shim import LISTED, Rig
from tests.integration.scripted.wire import Wire

UNAVAILABLE = b"421 4.3.0 Mail server not available, try again later\r\n"

GREETINGS = {
    "one-line": b"220 mx.test\r\n",
    "no-text": b"220\r\n",
    "lines": b"220-mx.test ESMTP\r\n220-we do not like spam\r\n220 welcome\r\n",
    "bare-lf": b"220-mx.test\n220 bare\n",
    "odd-octets": b"220-\t  \x80\xff\xc3\xa4\r\n220-\r\n220 \r\n",
    "long": b"220-" + b"x" * 5_000 + b"\r\n220 end\r\n",
}

ADDR = b"XCLIENT ADDR=203.0.113.7"
SELECTED = {
    b"XCLIENT ADDR": ADDR,
    b"XCLIENT NAME ADDR": ADDR + b" NAME=[UNAVAILABLE]",
    b"XCLIENT PORT ADDR NAME": ADDR + b" PORT=40001 NAME=[UNAVAILABLE]",
    b"XCLIENT NAME REVERSE_NAME ADDR PORT": ADDR
    + b" PORT=40001 NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]",
    b"XCLIENT DESTADDR ADDR": ADDR + b" DESTADDR=198.51.100.25",
    b"XCLIENT ADDR DESTPORT": ADDR + b" DESTPORT=25",
    b"XCLIENT PROTO HELO LOGIN ADDR UNHEARD_OF": ADDR,
    b"xclient addr port": ADDR + b" PORT=40001",
    b"XCLIENT  ADDR\tPORT ": ADDR + b" PORT=40001",
}


def listed(rig: Rig) -> Wire:
    """Connect as a listed proxy, and send a PROXY header."""
    client = rig.connect(LISTED)
    client.send(v1())
    return client


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
def test_the_fresh_greeting_is_relayed_byte_for_byte(rig: Rig, greeting: bytes) -> None:
    client = listed(rig)
    rig.accept().introduce(greeting=greeting)
    client.expect(greeting)
    assert client.is_silent(0.01)


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
def test_the_first_greeting_is_not_relayed(rig: Rig, greeting: bytes) -> None:
    client = listed(rig)
    mta = rig.accept()
    mta.send(greeting)
    mta.expect(EHLO)
    mta.send(OFFER)
    mta.expect(XCLIENT)
    mta.send(GREETING)
    client.expect(GREETING)


def test_replies_may_arrive_byte_by_byte(rig: Rig) -> None:
    client = listed(rig)
    mta = rig.accept()
    mta.send_each_octet(GREETINGS["lines"])
    mta.expect(EHLO)
    mta.send_each_octet(OFFER)
    mta.expect(XCLIENT)
    mta.send_each_octet(GREETINGS["lines"])
    client.expect(GREETINGS["lines"])
    client.send(b"EHLO client.test\r\n")
    mta.expect(b"EHLO client.test\r\n")
    mta.send_each_octet(EXTENSIONS)
    client.expect(EXTENSIONS)


@pytest.mark.parametrize("reply", [FIRST_GREETING, OFFER, GREETING])
def test_a_reply_may_be_split_anywhere(rig: Rig, reply: bytes) -> None:
    for cut in range(1, len(reply)):
        with listed(rig) as client, rig.backend.accept() as mta:
            for step in (FIRST_GREETING, OFFER, GREETING):
                at = cut if step is reply else len(step)
                mta.send(step[:at])
                mta.send(step[at:])
                if step is not GREETING:
                    mta.line()
            client.expect(GREETING)


def test_a_reply_that_follows_the_fresh_greeting_is_relayed(rig: Rig) -> None:
    client = listed(rig)
    mta = rig.accept()
    mta.greet()
    mta.send(GREETING + b"421 4.3.2 mx.test shutting down\r\n")
    mta.finish()
    assert client.last_words() == GREETING + b"421 4.3.2 mx.test shutting down\r\n"
    mta.close()
    assert rig.story()["last_code"] == 421


@pytest.mark.parametrize(("offered", "command"), SELECTED.items())
def test_only_offered_attributes_are_sent(
    rig: Rig, offered: bytes, command: bytes
) -> None:
    listed(rig)
    offer = b"250-mx.test\r\n250-" + offered + b"\r\n250 PIPELINING\r\n"
    assert rig.accept().introduce(offer) == command + b"\r\n"


def test_the_xclient_command_is_shorter_than_512_octets(rig: Rig) -> None:
    client = rig.connect(LISTED)
    longest = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"
    client.send(f"PROXY TCP6 {longest} {longest} 65535 65535\r\n".encode())
    xclient = rig.accept().introduce()
    assert xclient.startswith(b"XCLIENT ADDR=IPV6:2001:db8:ffff:")
    assert len(xclient) < 512


def test_a_backend_connection_that_is_no_longer_needed_is_ended_with_quit(
    rig: Rig,
) -> None:
    client = rig.connect()
    mta = rig.accept()
    mta.greet()
    client.close()
    mta.send(GREETING)
    mta.expect(b"QUIT\r\n")
    mta.send(b"221 2.0.0 bye\r\n")  # the shim reads this, so it sends no reset
    assert mta.rest() == b""
    mta.close()
    assert rig.story()["outcome"] == "client_lost"


# Kinds of backend addresses.


def test_a_backend_can_be_a_unix_socket(rig_with: OpenRig, tmp_path: Path) -> None:
    rig = rig_with(backend=Backend(path=tmp_path / "mta"))
    client = listed(rig)
    assert rig.accept().introduce() == XCLIENT
    client.expect(GREETING)


def test_a_missing_unix_socket_means_421(rig_with: OpenRig, tmp_path: Path) -> None:
    rig = rig_with(backend=Backend(path=tmp_path / "mta"))
    (tmp_path / "mta").unlink()
    assert listed(rig).last_words() == UNAVAILABLE
    failed = rig.events.wait("backend_failed", reason="backend_unreachable")
    assert failed["detail"] == f"unix:{tmp_path}/mta: No such file or directory"


def test_the_shim_waits_for_a_unix_socket_whose_queue_is_full(
    rig_with: OpenRig, tmp_path: Path
) -> None:
    path = tmp_path / "mta"
    rig = rig_with(backend=Backend(path=path, backlog=0))
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        client = listed(rig)
        assert client.is_silent(0.1)
        rig.accept().close()  # the first one's
        assert rig.accept().introduce() == XCLIENT
        client.expect(GREETING)


def test_a_backend_can_have_an_ipv6_address(rig_with: OpenRig) -> None:
    rig = rig_with(backend=Backend(host="::1"))
    client = listed(rig)
    assert rig.accept().introduce() == XCLIENT
    client.expect(GREETING)


def test_a_backend_can_be_given_by_name(rig_with: OpenRig) -> None:
    backend = Backend()
    backend.name = f"localhost:{backend.port}"
    rig = rig_with(backend=backend)
    client = listed(rig)
    assert rig.accept().introduce() == XCLIENT
    client.expect(GREETING)


def test_a_backend_name_without_an_address_means_421(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find(_: SystemLookup, __: str) -> Found:
        raise LookupFailed("Name or service not known")

    monkeypatch.setattr(SystemLookup, "find", find)
    backend = Backend()
    backend.name = f"mx.test:{backend.port}"
    rig = rig_with(backend=backend)
    assert rig.connect().last_words() == UNAVAILABLE
    failed = rig.events.wait("backend_failed", reason="backend_unreachable")
    assert failed["detail"] == f"{rig.backend.name}: Name or service not known"


@contextmanager
def refusing(_: int) -> Iterator[str]:
    """Yield an address that refuses connections to the port."""
    yield "127.0.0.91"


@contextmanager
def hanging(port: int) -> Iterator[str]:
    """Yield an address that does not answer attempts to connect to *port*."""
    with ExitStack() as cleanup:
        full = cleanup.enter_context(socket.socket())
        full.bind(("127.0.0.92", port))
        full.listen(0)
        for _ in range(2):  # the kernel queues one more than the backlog
            waiting = cleanup.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield "127.0.0.92"


Dead = Callable[[int], AbstractContextManager[str]]


@pytest.mark.parametrize("dead", [refusing, hanging])
def test_a_dead_address_of_a_backend_name_is_skipped(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch, dead: Dead
) -> None:
    backend = Backend()
    with dead(backend.port) as nowhere:
        resolves_to(monkeypatch, nowhere, "127.0.0.1")
        backend.name = f"mx.test:{backend.port}"
        rig = rig_with(backend=backend, connect_timeout_s=0.5)
        client = listed(rig)
        assert rig.accept().introduce() == XCLIENT
        client.expect(GREETING)


@pytest.mark.parametrize("dead", [refusing, hanging])
def test_a_backend_without_a_live_address_means_421(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch, dead: Dead
) -> None:
    backend = Backend()
    with dead(backend.port) as nowhere:
        resolves_to(monkeypatch, nowhere, "127.0.0.93")
        backend.name = f"mx.test:{backend.port}"
        rig = rig_with(backend=backend, connect_timeout_s=0.2)
        assert listed(rig).last_words() == UNAVAILABLE
        story = rig.story()
        assert story["reason"] == "backend_unreachable"
        assert story["duration_s"] < 2


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Make every name resolve to these addresses."""

    async def find(_: SystemLookup, __: str) -> Found:
        return Found({4: tuple(map(IPv4Address, addresses)), 6: ()})

    monkeypatch.setattr(SystemLookup, "find", find)
