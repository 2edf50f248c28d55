"""Repeated events are logged once a minute per source, with a count."""

import pytest

from proxyshim.throttle import Throttle
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1, v2
from tests.integration.scripted.mta import Backend
from tests.integration.scripted.shim import LISTED, STRANGER, Rig

TRIES = 20


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the minute to a second, and check for its end often."""
    make_short(monkeypatch, max_sources=1_000)


def make_short(monkeypatch: pytest.MonkeyPatch, max_sources: int) -> None:
    monkeypatch.setattr(
        "proxyshim.service.server.Throttle", lambda: Throttle(1.0, max_sources)
    )
    monkeypatch.setattr("proxyshim.service.server.HEARTBEAT_S", 0.05)


def send_forbidden_header(rig: Rig, source: str = STRANGER) -> None:
    """Send a header from an unlisted proxy."""
    with rig.shim.held():  # so that the header has arrived when the shim accepts
        client = rig.connect(source)
        client.send(v2())
    assert client.last_words().startswith(b"421 4.7.1 PROXY not allowed from")


def count_above_debug(rig: Rig, event: str) -> int:
    """Return how many events of that name are above debug."""
    return len([e for e in rig.events.find(event) if e["level"] != "debug"])


def check_session_lines(rig: Rig, tries: int = TRIES) -> None:
    """Check that each attempt has a line, and that all lines but one are at debug."""
    rig.story(tries)
    levels = [each["level"] for each in rig.events.find("session_closed")]
    assert sorted(levels) == ["debug"] * (tries - 1) + ["info"]


def test_a_proxy_that_is_not_listed_is_logged_once(rig: Rig) -> None:
    with rig.shim.held():
        clients = [rig.connect(STRANGER) for _ in range(TRIES)]
        for client in clients:
            client.send(v1())
    for client in clients:
        client.last_words()
    check_session_lines(rig)
    [refused] = rig.events.find("header_refused")
    assert (refused["reason"], refused["level"]) == ("header_forbidden", "warning")
    assert rig.shim.server.metrics.refusals["header_forbidden"] == TRIES


def test_a_proxy_that_sends_no_header_is_logged_once(rig_with: OpenRig) -> None:
    rig = rig_with(header_timeout_s=0.1)
    clients = [rig.connect(LISTED) for _ in range(TRIES)]
    for client in clients:
        assert client.last_words() == b"421 4.4.2 PROXY timed out\r\n"
    check_session_lines(rig)
    [refused] = rig.events.find("header_refused")
    assert (refused["reason"], refused["level"]) == ("header_timeout", "warning")


def test_a_proxy_that_sends_rubbish_is_logged_once(rig: Rig) -> None:
    for _ in range(TRIES):
        client = rig.connect(LISTED)
        client.send(b"EHLO proxy.test\r\n")
        client.last_words()
    check_session_lines(rig)
    assert len(rig.events.find("header_refused")) == 1


def test_each_source_and_reason_has_its_own_line(rig: Rig) -> None:
    for source in (STRANGER, "127.0.0.5", STRANGER):
        send_forbidden_header(rig, source)
    for octets in (b"EHLO proxy.test\r\n", b"PROXY TCP4 x\r\n"):
        client = rig.connect(LISTED)
        client.send(octets)
        client.last_words()
    rig.story(5)
    found = [
        (e["peer"].partition(":")[0], e["reason"])
        for e in rig.events.find("header_refused")
    ]
    assert found == [
        (STRANGER, "header_forbidden"),
        ("127.0.0.5", "header_forbidden"),
        (LISTED, "header_unrecognised"),
        (LISTED, "header_malformed"),
    ]


@pytest.mark.usefixtures("soon")
def test_the_count_is_logged_after_a_minute(rig: Rig) -> None:
    for _ in range(5):
        send_forbidden_header(rig)
    suppressed = rig.events.wait("events_suppressed")
    assert (suppressed["reason"], suppressed["source"]) == (
        "header_forbidden",
        STRANGER,
    )
    assert (suppressed["count"], suppressed["level"]) == (4, "warning")
    send_forbidden_header(rig)  # the next one is logged again
    rig.story(6)
    assert count_above_debug(rig, "header_refused") == 2
    assert count_above_debug(rig, "session_closed") == 2


@pytest.mark.usefixtures("soon")
def test_suppressed_events_that_need_no_action_stay_below_warning(rig: Rig) -> None:
    for _ in range(3):
        client = rig.connect(LISTED)
        client.send(b"PROXY TCP4 ")
        client.finish()
        client.last_words()
    suppressed = rig.events.wait("events_suppressed")
    assert (suppressed["reason"], suppressed["level"]) == ("header_incomplete", "info")
    assert rig.events.at_least("warning", "error") == []


def test_strangers_with_many_addresses_fill_neither_log_nor_memory(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_short(monkeypatch, max_sources=5)
    rig = rig_with()
    with rig.shim.held():
        clients = [rig.connect(f"127.0.1.{number}") for number in range(1, 31)]
        for client in clients:
            client.send(v1())
    for client in clients:
        client.last_words()
    suppressed = rig.events.wait("events_suppressed")
    assert (suppressed["reason"], suppressed["source"]) == (
        "header_forbidden",
        "others",
    )
    assert suppressed["count"] == 25
    assert (
        count_above_debug(rig, "header_refused")
        == count_above_debug(rig, "session_closed")
        == 5
    )


def test_the_addresses_of_an_ipv6_client_are_one_source(rig_with: OpenRig) -> None:
    rig = rig_with(extra="[limits]\nsessions_per_client = 1\n")
    rig.pair(v2("2001:db8:1:2::1"))
    for last in range(2, 12):
        client = rig.connect(LISTED)
        client.send(v2(f"2001:db8:1:2::{last}"))
        assert client.last_words().startswith(b"421 4.7.0 ")
    rig.story(10)
    assert len(rig.events.find("client_limited")) == 1
    rig.shim.stop()  # reports the count before the minute is over
    suppressed = rig.events.wait("events_suppressed")
    assert (suppressed["reason"], suppressed["count"]) == ("too_many_from_client", 9)
    assert suppressed["source"] == "2001:db8:1:2::/64"


def test_a_dead_mail_server_is_reported_once_a_minute(rig_with: OpenRig) -> None:
    dead = Backend()
    dead.close()
    rig = rig_with(backend=dead)
    for _ in range(5):
        assert rig.connect(STRANGER).last_words().startswith(b"421 4.3.0 ")
    rig.story(5)
    assert len(rig.events.find("backend_failed")) == 1
    assert (
        count_above_debug(rig, "session_closed") == 5
    )  # each session of a client keeps its line
    assert rig.shim.server.metrics.backend_failures["backend_unreachable"] == 5
