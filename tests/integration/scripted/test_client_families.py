"""A mail server that takes no IPv6 clients: a reason of its own, and the others are served."""

from collections.abc import Callable

import pytest

from tests.integration.scripted.headers import CLIENT, CLIENT6, v1, v2
from tests.integration.scripted.mta import GREETING
from tests.integration.scripted.name_server import Dns
from tests.integration.scripted.shim import LISTED, Rig

UNAVAILABLE = b"421 4.3.0 Mail server not available, try again later\r\n"
BAD_ADDR = b"501 5.5.4 Bad ADDR syntax: IPV6:2001:db8::7\r\n"
BAD_NAME = b"501 5.5.4 Bad NAME syntax: client.example\r\n"
FAILURES = 'proxyshim_backend_failures_total{reason="client_family_refused"}'


def refuse(rig: Rig, header: bytes, times: int = 1, answer: bytes = BAD_ADDR) -> None:
    """Play a session in which every XCLIENT is refused."""
    client = rig.connect(LISTED)
    client.send(header)
    for _ in range(times):
        mta = rig.accept()
        mta.greet()
        mta.send(answer)
        assert mta.end() == b"QUIT\r\n"
    assert client.last_words() == UNAVAILABLE


def serve(rig: Rig) -> None:
    """Play a session of an IPv4 client, to its end."""
    with rig.connect(LISTED) as client:
        client.send(v1())
        with rig.backend.accept() as mta:
            mta.introduce()
            client.expect(GREETING)
            client.send(b"QUIT\r\n")
            mta.expect(b"QUIT\r\n")
            mta.send(b"221 2.0.0 bye\r\n")
            client.expect(b"221 2.0.0 bye\r\n")


@pytest.mark.parametrize("header", [v1(CLIENT6), v2(CLIENT6)], ids=["v1", "v2"])
def test_a_501_for_an_ipv6_address_has_its_own_reason(rig: Rig, header: bytes) -> None:
    refuse(rig, header)
    story = rig.story()
    assert (story["outcome"], story["reason"]) == (
        "backend_failed",
        "client_family_refused",
    )
    event = rig.events.wait("backend_failed")
    assert event["level"] == "warning"
    assert event["reason"] == "client_family_refused"
    assert "takes no IPv6 client" in event["detail"]
    assert BAD_ADDR.decode().strip() in event["detail"]
    assert "inet_protocols" in event["hint"]


def test_it_is_logged_once_a_minute_though_ipv4_clients_are_served(rig: Rig) -> None:
    for count in range(3):
        refuse(rig, v1(CLIENT6))
        serve(rig)
        rig.story(2 * count + 2)
    assert len(rig.events.find("backend_failed")) == 1
    assert rig.events.find("backend_recovered") == []  # it was never failing
    assert rig.events.at_least("error") == []


def test_it_does_not_count_as_a_failure_of_the_backend(rig: Rig) -> None:
    refuse(rig, v1(CLIENT6))
    rig.story()
    reports = rig.shim.server.metrics
    assert "client_family_refused" not in reports.backend_failures
    assert reports.refusals["client_family_refused"] == 1


def test_a_retry_without_names_has_the_same_reason(
    dns: Dns, resolving: Callable[..., Rig]
) -> None:
    dns.add_confirmed_name(CLIENT6, "client.example.")
    rig = resolving()
    refuse(rig, v2(CLIENT6), times=2)
    assert rig.story()["reason"] == "client_family_refused"
    assert rig.events.find("names_refused") == []  # the names were not the cause


def test_names_refused_is_logged_once_a_minute(
    dns: Dns, resolving: Callable[..., Rig]
) -> None:
    dns.add_confirmed_name(CLIENT, "client.example.")
    rig = resolving()
    for _ in range(3):
        with rig.connect(LISTED) as client:
            client.send(v2())
            with rig.backend.accept() as first:
                first.greet()
                first.send(BAD_NAME)
                with rig.backend.accept() as second:
                    second.introduce()
                    client.expect(GREETING)
    assert len(rig.events.find("names_refused")) == 1


@pytest.mark.parametrize(
    "answer", [b"502 5.5.1 not implemented\r\n", b"550 5.7.0 not authorized\r\n"]
)
def test_another_refusal_is_not_about_the_family(rig: Rig, answer: bytes) -> None:
    refuse(rig, v1(CLIENT6), answer=answer)
    assert rig.story()["reason"] == "xclient_refused"
