"""A session's objects are freed when it ends, and a defect in it harms no other session."""

import gc
from collections.abc import Callable

import pytest

from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.conveyance.contract import Relayed
from proxyshim.net.connection import Connection
from proxyshim.net.fiber import Fiber
from proxyshim.session.admission import Admission
from proxyshim.session.record import SessionRecord
from proxyshim.session.relay import Relay
from proxyshim.session.session import Session
from proxyshim.session.timing import RelayClock
from proxyshim.smtp.dialogue import Dialogue
from proxyshim.smtp.guard import Guard
from tests.integration.scripted.headers import v1
from tests.integration.scripted.shim import LISTED, STRANGER, Rig

SESSION_TYPES = {
    Admission,
    BackendDialogue,
    Connection,
    Dialogue,
    Fiber,
    Guard,
    Relay,
    RelayClock,
    Relayed,
    Session,
    SessionRecord,
}


def complete(rig: Rig) -> None:
    client, mta = rig.relaxed_pair()
    client.send(b"QUIT\r\n")
    mta.expect(b"QUIT\r\n")
    mta.send(b"221 bye\r\n")
    mta.finish()
    assert client.last_words() == b"221 bye\r\n"
    mta.close()


def be_forbidden(rig: Rig) -> None:
    with rig.shim.held():
        client = rig.connect(STRANGER)
        client.send(v1())
    assert client.last_words().startswith(b"421 4.7.1 PROXY not allowed")


def break_off_in_a_header(rig: Rig) -> None:
    client = rig.connect(LISTED)
    client.send(b"PROXY TCP4 ")
    client.finish()
    assert client.last_words().startswith(b"421 4.7.1 PROXY header expected")


def find_no_backend(rig: Rig) -> None:
    client = rig.connect(LISTED)
    client.send(v1())
    rig.accept().close()
    assert client.last_words().startswith(b"421 4.3.0 Mail server not available")


def is_session_object(one: object) -> bool:
    return type(one) in SESSION_TYPES


@pytest.mark.parametrize(
    "live", [complete, be_forbidden, break_off_in_a_header, find_no_backend]
)
def test_a_session_leaves_nothing_for_the_garbage_collector(
    rig: Rig, live: Callable[[Rig], None]
) -> None:
    """Its objects form no reference cycle, so they are freed when it ends."""
    gc.collect()
    older = {id(one): one for one in gc.get_objects() if is_session_object(one)}
    gc.disable()
    try:
        for _ in range(2):
            live(rig)
        rig.story(2)
        with rig.shim.held():  # so that no callback of a session is still running
            left = [
                type(one).__name__
                for one in gc.get_objects()
                if is_session_object(one) and id(one) not in older
            ]
    finally:
        gc.enable()
    assert left == []


@pytest.mark.parametrize("method", ["pass_command", "pass_reply"])
def test_a_defect_while_bytes_are_relayed_ends_only_that_session(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*_: object) -> bool:
        raise ValueError("made up")

    client, mta = rig.relaxed_pair()
    other, other_mta = rig.relaxed_pair()
    with monkeypatch.context() as broken:
        broken.setattr(Guard, method, fail)
        if method == "pass_command":
            client.send(b"NOOP\r\n")
        else:
            mta.send(b"250 ok\r\n")
        assert client.rest() == b""
        assert mta.rest() == b""
    [failed] = rig.events.find("session_failed")
    assert "made up" in failed["exception"]
    assert rig.story()["reason"] == "internal_error"
    rig.events.forget("session_failed")
    other.send(b"NOOP\r\n")
    other_mta.expect(b"NOOP\r\n")
    other_mta.send(b"250 ok\r\n")
    other.expect(b"250 ok\r\n")
