"""A listed peer that waits for a greeting and leaves without a PROXY header."""

from collections.abc import Callable
from pathlib import Path

import pytest

from proxyshim.session import silence
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.shim import LISTED, STRANGER, Rig, connect
from tests.integration.scripted.wire import Wire

TIMES = silence.TIMES


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "WAITED_S", 0.05)


def wait_and_leave(peer: Wire, vanish: Callable[[Wire], None] = Wire.close) -> None:
    assert peer.is_silent(0.1)
    vanish(peer)


@pytest.mark.parametrize("vanish", [Wire.close, Wire.reset])
def test_a_proxy_that_waits_and_leaves_again_and_again_is_warned_of_once(
    rig: Rig, vanish: Callable[[Wire], None]
) -> None:
    for number in range(1, TIMES + 3):
        wait_and_leave(rig.connect(LISTED), vanish)
        assert rig.story(number)["outcome"] == "probed"
        warnings = rig.events.find("proxy_silent", level="warning")
        assert len(warnings) == (1 if number >= TIMES else 0)
    [warning] = rig.events.at_least("warning", "error")
    assert str(warning["peer"]).startswith(f"{LISTED}:")
    assert "send-proxy" in str(warning["hint"])
    assert rig.backend.was_left_alone()


def test_bare_tcp_checks_cause_no_warning(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real limit, which a check on a busy test machine does not reach
    for number in range(1, 2 * TIMES + 1):
        rig.connect(LISTED).close()
        rig.story(number)
    assert rig.events.at_least("warning", "error") == []


def test_a_proxy_that_leaves_after_its_header_causes_no_warning(rig: Rig) -> None:
    for number in range(1, 2 * TIMES + 1):
        proxy = rig.connect(LISTED)
        proxy.send(v1())
        mta = rig.accept()
        wait_and_leave(proxy)
        mta.close()
        rig.story(number)
    assert rig.events.find("proxy_silent") == []


def test_a_stranger_that_waits_and_leaves_causes_no_warning(rig: Rig) -> None:
    for number in range(1, 2 * TIMES + 1):
        stranger = rig.connect(STRANGER)
        mta = rig.accept()
        wait_and_leave(stranger)
        mta.close()
        rig.story(number)
    assert rig.events.find("proxy_silent") == []


def test_the_peer_on_a_unix_socket_is_warned_of(
    rig_with: OpenRig, tmp_path: Path
) -> None:
    rig = rig_with(bind=[f"unix:{tmp_path}/mx.sock"])
    for number in range(1, TIMES + 1):
        with connect(rig.shim.address()) as peer:
            wait_and_leave(peer)
        rig.story(number)
    assert rig.events.wait("proxy_silent")["peer"] == "unix"


def test_waits_that_are_far_apart_cause_no_warning(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "_MEMORY_S", 0.0)
    for number in range(1, 2 * TIMES + 1):
        wait_and_leave(rig.connect(LISTED))
        rig.story(number)
    assert rig.events.find("proxy_silent") == []


def test_the_memory_of_silent_proxies_is_bounded(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "_MAX_PEERS", 1)
    rig = rig_with(hosts=f"{LISTED}\n127.0.0.4\n")
    for number in range(1, 2 * TIMES + 1):
        wait_and_leave(rig.connect(LISTED if number % 2 else "127.0.0.4"))
        rig.story(number)
    assert rig.events.find("proxy_silent") == []
