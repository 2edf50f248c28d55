"""An exception in a callback of a session ends that session, and no other."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from proxyshim.net import connection as connection_module
from proxyshim.net.connection import Connection
from proxyshim.net.deadlines import Limit
from proxyshim.net.fiber import Fiber
from proxyshim.session.admission import Admission
from proxyshim.session.relay import Relay
from proxyshim.session.reports import Reports
from proxyshim.session.timing import RelayClock
from proxyshim.smtp.guard import Guard
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import Mta
from tests.integration.scripted.shim import Rig
from tests.integration.scripted.test_relay import begin_content
from tests.integration.scripted.wire import LIMIT_S, Wire


class Bomb:
    """Makes a method raise, a number of times, once it is armed."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self._error: type[Exception] = MemoryError
        self._left = 0
        original: Callable[..., Any] = getattr(owner, name)

        def explosive(*args: Any, **more: Any) -> Any:
            if self._left:
                self._left -= 1
                raise self._error
            return original(*args, **more)

        patch.setattr(owner, name, explosive)

    def arm(self, error: type[Exception] = MemoryError, times: int = 1) -> None:
        self._error, self._left = error, times

    @property
    def has_exploded(self) -> bool:
        return not self._left


def check_service(client: Wire, mta: Mta) -> None:
    """Check that a session is served."""
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    mta.send(b"250 ok\r\n")
    client.expect(b"250 ok\r\n")


def check_end(rig: Rig, client: Wire, bomb: Bomb) -> None:
    """Check that the session has ended, that this was logged, and that nothing is left."""
    client.end()
    assert rig.story()["outcome"] == "failed"
    assert bomb.has_exploded
    [failed] = rig.events.find("session_failed")
    assert failed["place"].startswith("test_exceptions.py:")
    rig.events.forget("session_failed")


@contextmanager
def sending(mta: Mta, octets: bytes) -> Iterator[None]:
    """Send more than the sockets take, during the block."""

    def send() -> None:
        with suppress(OSError):  # the session ends
            mta.send(octets)

    sender = threading.Thread(target=send)
    sender.start()
    yield
    mta.sock.shutdown(socket.SHUT_RDWR)
    sender.join(LIMIT_S)


def wait_for_backlog(rig: Rig) -> None:
    """Wait until the kernel takes nothing more for the client."""
    [session] = rig.shim.server._sessions
    until = time.monotonic() + LIMIT_S
    while not session._client.backlog_octets:
        assert time.monotonic() < until
        time.sleep(0.01)


def open_two(rig: Rig) -> tuple[Wire, Mta, Wire, Mta]:
    """Open two sessions."""
    return *rig.relaxed_pair(v1()), *rig.relaxed_pair(v1())


@pytest.mark.parametrize("error", [MemoryError, ValueError, RuntimeError])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Connection, "on_events"),
        (Connection, "receive_now"),
        (Connection, "_pump"),
        (Connection, "flush"),
        (Relay, "_read_client"),
        (Guard, "pass_command"),
    ],
)
def test_an_exception_at_a_command_ends_the_session(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    error: type[Exception],
) -> None:
    bomb = Bomb(monkeypatch, owner, name)
    client, mta, other, other_mta = open_two(rig)
    bomb.arm(error)
    client.send(b"NOOP\r\n")
    check_end(rig, client, bomb)
    assert mta.rest().replace(b"NOOP\r\n", b"") in (b"", b"QUIT\r\n")
    check_service(other, other_mta)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Connection, "on_events"),
        (Connection, "receive_now"),
        (Connection, "flush"),
        (Relay, "_read_backend"),
        (Guard, "pass_reply"),
    ],
)
def test_an_exception_at_a_reply_ends_the_session(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    bomb = Bomb(monkeypatch, owner, name)
    client, mta, other, other_mta = open_two(rig)
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    bomb.arm()
    mta.send(b"250 ok\r\n")
    check_end(rig, client, bomb)
    check_service(other, other_mta)


def test_an_exception_in_a_read_that_continues_later_ends_the_session(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What exceeds one read is read outside of the reactor's turn."""
    bomb = Bomb(monkeypatch, Connection, "_pump")
    run_scheduled_pump = connection_module._run_scheduled_pump

    def run_without_memory(connection: Connection) -> None:
        bomb.arm()
        run_scheduled_pump(connection)

    monkeypatch.setattr(connection_module, "_run_scheduled_pump", run_without_memory)
    client, mta = rig.relaxed_pair(v1())
    begin_content(client, mta)
    with rig.shim.held():  # so that it finds more than one read of it
        client.send(b"x" * 70_000)
    check_end(rig, client, bomb)


@pytest.mark.parametrize("name", ["_send_backlog", "_note_client_backlog"])
def test_an_exception_while_a_backlog_is_sent_ends_the_session(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    owner = Connection if name == "_send_backlog" else Relay
    bomb = Bomb(monkeypatch, owner, name)
    client, mta = rig.relaxed_pair(v1())
    with sending(mta, (b"250 " + b"x" * 500 + b"\r\n") * 40_000):
        wait_for_backlog(rig)
        bomb.arm()
        check_end(rig, client, bomb)


def test_an_exception_in_a_time_limit_ends_the_session(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rig_with(idle_timeout_s=1.0)
    bomb = Bomb(monkeypatch, RelayClock, "decide")
    client, _ = rig.relaxed_pair(v1())
    bomb.arm()
    check_end(rig, client, bomb)


def test_a_time_limit_that_fails_fires_again(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rig_with(header_timeout_s=0.2)
    bomb = Bomb(monkeypatch, Limit, "expire")
    bomb.arm()
    proxy = rig.connect("127.0.0.2")
    assert proxy.last_words() == b"421 4.4.2 PROXY timed out\r\n"
    assert bomb.has_exploded
    [unhandled] = rig.events.find("exception_unhandled")
    assert (unhandled["error"], "exception" in unhandled) == ("MemoryError", False)


def test_an_exception_before_the_relay_is_answered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = Bomb(monkeypatch, Admission, "run")
    bomb.arm()
    client = rig.connect()
    assert client.line() == b"421 4.3.0 Internal error, try again later\r\n"
    check_end(rig, client, bomb)
    check_service(*rig.relaxed_pair(v1()))


@pytest.mark.parametrize("times", [1, 2])
def test_an_exception_while_a_wait_ends_is_given_to_the_session(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The relay's end wakes its session with it; the second time, its error as well."""
    monkeypatch.setattr("proxyshim.net.reactor._RETRY_S", 0.01)
    wake = Bomb(monkeypatch, Fiber, "wake")
    fail = Bomb(monkeypatch, Fiber, "fail")
    client, mta = rig.relaxed_pair(v1())
    client.send(b"QUIT\r\n")
    mta.expect(b"QUIT\r\n")
    wake.arm()
    fail.arm(times=times - 1)
    mta.send(b"221 bye\r\n")
    mta.close()
    client.end()
    assert rig.story()["outcome"] == "failed"
    assert wake.has_exploded
    assert fail.has_exploded
    rig.events.forget("session_failed")


@pytest.mark.parametrize("name", ["closed", "defect"])
def test_a_session_whose_end_cannot_be_logged_is_over_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bomb = Bomb(monkeypatch, Reports, name)
    cause = Bomb(monkeypatch, Guard, "pass_command")
    client, _, other, other_mta = open_two(rig)
    bomb.arm()
    cause.arm()
    client.send(b"NOOP\r\n")
    client.end()
    check_service(other, other_mta)
    assert rig.shim.server.sessions_open == 1
    assert rig.shim.server.metrics.sessions_open == 1
    assert bomb.has_exploded
    rig.events.forget("session_failed")


def test_a_drain_reaches_the_sessions_after_one_that_fails(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = Bomb(monkeypatch, RelayClock, "start_drain")
    client, _, other, _ = open_two(rig)
    bomb.arm()
    rig.shim.drain()
    assert {client.end()[-5:], other.end()[-5:]} >= {b"ter\r\n"}
    rig.shim.stop()
    rig.events.forget("session_failed")


def test_tracebacks_of_one_place_are_logged_once_a_minute(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = Bomb(monkeypatch, Guard, "pass_command")
    for number in range(1, 6):
        client, _ = rig.relaxed_pair(v1())
        bomb.arm(ValueError)
        client.send(b"NOOP\r\n")
        client.end()
        assert rig.story(number)["reason"] == "internal_error"
    [failed] = rig.events.find("session_failed")
    assert "ValueError" in failed["exception"]
    rig.events.forget("session_failed")
