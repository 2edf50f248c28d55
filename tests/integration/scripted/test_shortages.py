"""The kernel lacks something while a connection is taken over or opened."""

import errno
import os
from typing import Any

import pytest

from proxyshim.net.reactor import Reactor
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.shim import Rig
from tests.integration.scripted.test_metrics import METRICS, value

TOO_MANY = b"421 4.7.0 Too many connections, try again later\r\n"
UNAVAILABLE = b"421 4.3.0 Mail server not available, try again later\r\n"
REFUSALS = 'proxyshim_refusals_total{reason="out_of_resources"}'


@pytest.fixture
def metered(rig_with: OpenRig) -> Rig:
    return rig_with(extra=METRICS)


def fail_to_watch(patch: pytest.MonkeyPatch, number: int, after: int) -> None:
    """Let epoll_ctl(2) fail with the error *number*, after it has succeeded *after* times."""
    watch, calls = Reactor.watch, []

    def fail(reactor: Reactor, descriptor: int, owner: Any) -> None:
        calls.append(descriptor)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        watch(reactor, descriptor, owner)

    patch.setattr(Reactor, "watch", fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_a_client_that_cannot_be_watched_gets_a_421_and_is_counted(
    metered: Rig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        fail_to_watch(patch, number, after=0)
        for _ in range(3):
            assert metered.connect().last_words() == TOO_MANY
    assert value(metered, REFUSALS) == 3
    [shed] = metered.events.find("connection_shed")
    assert (shed["level"], shed["reason"]) == ("error", "out_of_resources")
    assert metered.events.find("exception_unhandled") == []
    metered.pair(v1())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_a_backend_that_cannot_be_watched_is_not_blamed(
    metered: Rig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        fail_to_watch(patch, number, after=1)
        assert metered.connect().last_words() == UNAVAILABLE
    assert value(metered, REFUSALS) == 1
    [failed] = metered.events.find("backend_failed")
    assert failed["reason"] == "out_of_resources"
    assert failed["detail"] == os.strerror(number)


def test_what_a_callback_raises_is_an_event_of_the_log(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("a defect")

    for _ in range(3):
        rig.shim._loop.call_soon_threadsafe(fail)
    rig.pair(v1())
    [unhandled] = rig.events.find("exception_unhandled")
    assert unhandled["error"] == "ValueError"
    assert "a defect" in unhandled["exception"]
    assert unhandled["place"].startswith("test_shortages.py:")
    assert capfd.readouterr() == ("", "")
