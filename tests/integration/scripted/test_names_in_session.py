"""How a session conveys the client's host names, and what happens without them."""

from collections.abc import Callable

import pytest
from dns.rcode import SERVFAIL

from tests.dns_responder import labels
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import CLIENT, LOCAL_CHECK, v1, v2
from tests.integration.scripted.mta import GREETING, OFFER
from tests.integration.scripted.name_server import Dns
from tests.integration.scripted.shim import LISTED, Rig
from tests.integration.scripted.wire import LIMIT_S

NAME = "client.example."
OTHER, OTHER_NAME = "203.0.113.8", "other.example."
ADDR = b"XCLIENT ADDR=203.0.113.7 PORT=40001 "
TO = b" DESTADDR=198.51.100.25 DESTPORT=25\r\n"
WITHOUT_NAMES = ADDR + b"NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]" + TO
FOR_NOW = ADDR + b"NAME=[TEMPUNAVAIL] REVERSE_NAME=[TEMPUNAVAIL]" + TO
NAMED = ADDR + b"NAME=client.example" + TO


def of_other(line: bytes) -> bytes:
    """Return the XCLIENT line for the other client."""
    return line.replace(CLIENT.encode(), OTHER.encode())


def test_a_confirmed_name_is_conveyed(dns: Dns, resolving: Callable[..., Rig]) -> None:
    dns.add_confirmed_name(CLIENT, NAME)
    rig = resolving()
    client = rig.connect(LISTED)
    client.send(v2())
    assert rig.accept().introduce() == NAMED
    client.expect(GREETING)


def test_an_unconfirmed_name_is_conveyed_as_the_reverse_name(
    dns: Dns, resolving: Callable[..., Rig]
) -> None:
    dns.served.add_ptr(CLIENT, NAME)
    rig = resolving()
    rig.connect(LISTED).send(v1())
    names = b"NAME=[UNAVAILABLE] REVERSE_NAME=client.example"
    assert rig.accept().introduce() == ADDR + names + TO


def test_a_failed_lookup_is_conveyed_as_temporary(
    dns: Dns, resolving: Callable[..., Rig]
) -> None:
    dns.served.fail(CLIENT, "PTR", SERVFAIL)
    rig = resolving()
    rig.connect(LISTED).send(v1())
    assert rig.accept().introduce() == FOR_NOW


def test_names_are_looked_up_while_the_backend_is_being_opened(
    dns: Dns, resolving: Callable[..., Rig]
) -> None:
    """The lookup starts before the backend has greeted; XCLIENT waits for its result."""
    dns.add_confirmed_name(CLIENT, NAME)
    answering = dns.call(lambda: dns.served.hold(CLIENT, "PTR"))
    rig = resolving(resolve_timeout_s=LIMIT_S)
    rig.connect(LISTED).send(v2())
    mta = rig.accept()
    dns.wait(dns.served.wait_asked(1))

    mta.send(b"220 mx.test for the shim alone\r\n")
    mta.expect(b"EHLO shim.test\r\n")
    mta.send(OFFER)
    assert mta.is_silent(0.05)
    dns.call(answering.set)
    mta.expect(NAMED)


def test_a_session_waits_for_names_only_up_to_its_limit(
    dns: Dns, resolving: Callable[..., Rig]
) -> None:
    dns.served.be_silent(CLIENT, "PTR")
    rig = resolving(resolve_timeout_s=0.05)
    rig.connect(LISTED).send(v2())
    assert rig.accept().introduce() == FOR_NOW


def test_a_client_with_cached_names_does_not_wait_for_others(
    dns: Dns, resolving: Callable[..., Rig]
) -> None:
    """The lookup of the other client hangs, and takes the only place."""
    dns.add_confirmed_name(CLIENT, NAME)
    dns.served.be_silent(OTHER, "PTR")
    rig = resolving("max_in_flight = 1\n", resolve_timeout_s=LIMIT_S)
    rig.connect(LISTED).send(v2())
    assert rig.accept().introduce() == NAMED
    rig.connect(LISTED).send(v2(OTHER))
    waiting = rig.accept()
    dns.wait(dns.served.wait_asked(3))

    rig.connect(LISTED).send(v2())
    assert rig.accept().introduce() == NAMED
    rig.connect(LISTED).send(v2("203.0.113.9"))
    third = rig.accept().introduce()
    assert third == FOR_NOW.replace(CLIENT.encode(), b"203.0.113.9")
    assert waiting.received == b""


@pytest.mark.parametrize(
    "header",
    [LOCAL_CHECK, v1("127.0.0.1"), b"PROXY UNKNOWN\r\n"],
    ids=["local", "not-believed", "unknown"],
)
def test_no_names_are_looked_up_for_a_check(
    dns: Dns, resolving: Callable[..., Rig], header: bytes
) -> None:
    rig = resolving()
    rig.connect(LISTED).send(header)
    assert b"NAME=[UNAVAILABLE]" in rig.accept().introduce()
    assert dns.asked() == []


def test_no_names_are_looked_up_if_resolve_is_off(dns: Dns, rig_with: OpenRig) -> None:
    table = f'[dns]\nnameservers = ["{dns.served.address}"]\n'
    rig = rig_with(extra=table, resolve=False)
    rig.connect(LISTED).send(v2())
    assert rig.accept().introduce() == WITHOUT_NAMES
    assert dns.asked() == []


HOSTILE = {
    "attribute": labels(b"x=1 ADDR=127", b"attacker", b"example"),
    "nul": labels(b"localhost\0", b"attacker", b"example"),
    "line": labels(b"a\r\nXCLIENT ADDR=127", b"0", b"0", b"1"),
    "octets": labels(b"\xff\xfe\x1b[2J", b"example"),
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_name_reaches_neither_the_backend_nor_the_log(
    dns: Dns, resolving: Callable[..., Rig], name: object
) -> None:
    dns.add_confirmed_name(CLIENT, str(name))
    rig = resolving()
    client = rig.connect(LISTED)
    client.send(v2())
    mta = rig.accept()
    assert mta.introduce() == WITHOUT_NAMES
    client.close()
    mta.close()
    rig.story()
    logged = repr(rig.events.at_least("debug", "info", "warning", "error"))
    for word in ("attacker", "XCLIENT", "example", "\\xff", "\\x1b", "\\255"):
        assert word not in logged


# If the backend refuses a name, the session is tried once more without names.


def test_a_session_is_retried_without_a_refused_name(
    dns: Dns, resolving: Callable[..., Rig]
) -> None:
    dns.add_confirmed_name(CLIENT, NAME)
    rig = resolving()
    client = rig.connect(LISTED)
    client.send(v2())
    first = rig.accept()
    assert first.greet() == NAMED
    first.send(b"501 5.5.4 Bad NAME syntax: client.example\r\n")
    assert rig.accept().introduce() == WITHOUT_NAMES
    client.expect(GREETING)
    assert first.last_words() == b"QUIT\r\n"
    refused = rig.events.wait("names_refused")
    assert refused["level"] == "warning"
    assert refused["detail"].startswith("XCLIENT was answered: 501")


def test_without_a_name_a_501_is_final(dns: Dns, resolving: Callable[..., Rig]) -> None:
    rig = resolving()
    client = rig.connect(LISTED)
    client.send(v2())
    mta = rig.accept()
    assert mta.greet() == WITHOUT_NAMES
    mta.send(b"501 5.5.4 Bad ADDR syntax: 203.0.113.7\r\n")
    assert client.last_words().startswith(b"421 ")
    assert rig.story()["reason"] == "xclient_refused"
    assert rig.backend.was_left_alone()


def test_a_second_501_is_final(dns: Dns, resolving: Callable[..., Rig]) -> None:
    dns.add_confirmed_name(CLIENT, NAME)
    rig = resolving()
    client = rig.connect(LISTED)
    client.send(v2())
    for xclient in (NAMED, WITHOUT_NAMES):
        mta = rig.accept()
        assert mta.greet() == xclient
        mta.send(b"501 5.5.4 no\r\n")
    assert client.last_words().startswith(b"421 ")
    assert rig.story()["reason"] == "xclient_refused"
    assert rig.backend.was_left_alone()
