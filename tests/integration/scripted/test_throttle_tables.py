"""Strangers never hide a fault of a proxy, and neither hides a fault of the backend or our own."""

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import Backend
from tests.integration.scripted.shim import LISTED, STRANGER, Rig
from tests.integration.scripted.test_throttle import make_short, send_forbidden_header

UNAVAILABLE = b"421 4.3.0 Mail server not available, try again later\r\n"


def fill_the_table_about_strangers(rig: Rig) -> None:
    """Send a forbidden header from each of 15 addresses, to a table that holds 5."""
    for number in range(1, 16):
        send_forbidden_header(rig, f"127.0.1.{number}")


def is_refused_by_us(rig: Rig) -> bool:
    return rig.connect(STRANGER).last_words() == UNAVAILABLE


def test_strangers_do_not_hide_that_the_backend_fails(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_short(monkeypatch, max_sources=5)
    dead = Backend()
    dead.close()
    rig = rig_with(backend=dead)
    fill_the_table_about_strangers(rig)
    assert is_refused_by_us(rig)
    failed = rig.events.wait("backend_failed")
    assert (failed["reason"], failed["level"]) == ("backend_unreachable", "error")


def test_strangers_do_not_hide_that_a_limit_of_all_is_reached(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_short(monkeypatch, max_sources=5)
    rig = rig_with(extra="[limits]\nsessions = 1\n")
    fill_the_table_about_strangers(rig)
    rig.story(15)
    rig.pair(v1())
    rig.connect(STRANGER).last_words()
    assert rig.events.wait("connection_shed")["reason"] == "too_many_sessions"


def test_strangers_do_not_hide_that_a_proxy_sends_rubbish(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_short(monkeypatch, max_sources=5)
    rig = rig_with()
    fill_the_table_about_strangers(rig)
    proxy = rig.connect(LISTED)
    proxy.send(b"EHLO proxy.test\r\n")
    proxy.last_words()
    refused = rig.events.find("header_refused")
    assert refused[-1]["reason"] == "header_unrecognised"


# A backend that fails now and then.


def fail_and_recover(rig: Rig) -> None:
    """Fail one session before the backend has greeted, and serve the next."""
    client = rig.connect(STRANGER)
    rig.accept().close()
    assert client.last_words() == UNAVAILABLE
    client, mta = rig.pair()
    client.close()
    mta.end()


def test_a_backend_that_fails_now_and_then_is_logged_once_a_minute(rig: Rig) -> None:
    for _ in range(10):
        fail_and_recover(rig)
    rig.story(20)
    assert len(rig.events.find("backend_failed")) == 1
    assert len(rig.events.find("backend_recovered")) == 1
    assert rig.shim.server.metrics.backend_failures["backend_closed"] == 10
