"""Several backends in the order of preference: a bad one is passed over, and tried again."""

from collections.abc import Iterator

import pytest

from proxyshim.backend import address
from proxyshim.backend.lookup import LookupFailed, SystemLookup
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import GREETING, Backend
from tests.integration.scripted.shim import LISTED, STRANGER, Rig

NOT_AVAILABLE = b"421 4.3.0 Mail server not available, try again later\r\n"
BUSY = b"421 4.3.2 All server ports are busy\r\n"
REFUSED = b"554 5.7.1 You are on a blocklist\r\n"
# How long a silent one may keep a client waiting.
PATIENCE_S = 0.4


@pytest.fixture
def first() -> Iterator[Backend]:
    """Return the backend that is preferred to the rig's own one."""
    made = Backend()
    yield made
    made.close()


@pytest.fixture
def rig(rig_with: OpenRig, first: Backend) -> Rig:
    return rig_with(before=[first.name], connect_timeout_s=PATIENCE_S)


def served_by(rig: Rig, backend: Backend, header: bytes = b"") -> bytes:
    """Run a session, which *backend* gets, up to its greeting; return the XCLIENT."""
    with rig.connect(LISTED if header else STRANGER) as client:
        client.send(header)
        with backend.accept() as mta:
            xclient = mta.introduce()
            client.expect(GREETING)
            client.close()
            mta.rest()
    return xclient


def fail(rig: Rig, first: Backend, answer: bytes) -> None:
    """Let one client find out that the first backend is bad; the other one serves it."""
    with rig.connect(STRANGER) as client, first.accept() as bad:
        bad.send(answer)
        with rig.backend.accept() as mta:
            mta.introduce()
            client.expect(GREETING)


def test_sessions_use_the_first_backend_while_it_works(
    rig: Rig, first: Backend
) -> None:
    for _ in range(3):
        served_by(rig, first)
    assert rig.backend.was_left_alone()
    assert rig.story()["backend"] == first.name


def test_a_dead_one_is_passed_over(rig_with: OpenRig) -> None:
    gone = Backend()
    gone.close()
    rig = rig_with(before=[gone.name])
    for _ in range(3):
        served_by(rig, rig.backend)
    assert rig.story()["backend"] == rig.backend.name
    [failed] = rig.events.find("backend_address_failed")
    assert failed["backend"] == gone.name
    assert rig.events.find("backend_failed") == []


@pytest.mark.parametrize("answer", [b"", BUSY, REFUSED], ids=["silent", "busy", "554"])
def test_only_one_client_waits_for_a_bad_one(
    rig: Rig, first: Backend, answer: bytes
) -> None:
    fail(rig, first, answer)
    for _ in range(5):
        served_by(rig, rig.backend)
    assert first.was_left_alone()


def test_a_bad_one_is_tried_again_by_one_client_and_used_when_it_works(
    rig: Rig, first: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(rig, first, BUSY)
    monkeypatch.setattr(address, "AVOID_FAILED_S", 0.0)
    fail(rig, first, BUSY)
    served_by(rig, first)
    monkeypatch.setattr(address, "AVOID_FAILED_S", 3600.0)
    served_by(rig, first)
    assert len(rig.events.find("backend_address_failed")) == 1
    [recovered] = rig.events.find("backend_address_recovered")
    assert recovered["backend"] == first.name


def test_if_all_are_bad_the_client_gets_a_421(rig: Rig, first: Backend) -> None:
    with rig.connect(STRANGER) as client, first.accept() as bad:
        bad.send(BUSY)
        with rig.backend.accept() as worse:
            worse.send(BUSY)
            client.expect(NOT_AVAILABLE)
    [failed] = rig.events.find("backend_failed")
    assert failed["backend"] == f"{first.name}, {rig.backend.name}"


def test_a_verdict_on_the_client_is_final(rig: Rig, first: Backend) -> None:
    with rig.connect(STRANGER) as client, first.accept() as mta:
        mta.introduce(greeting=REFUSED)
        client.expect(REFUSED)
    assert rig.backend.was_left_alone()
    assert rig.events.find("backend_address_failed") == []


def test_a_session_that_lost_its_backend_is_not_moved_to_another(
    rig: Rig, first: Backend
) -> None:
    with rig.connect(STRANGER) as client:
        with first.accept() as mta:
            mta.introduce()
            client.expect(GREETING)
            client.send(b"EHLO client.test\r\n")
            mta.expect(b"EHLO client.test\r\n")
        assert client.last_words().startswith(b"421 ")
    assert rig.backend.was_left_alone()


def test_no_backend_of_the_list_can_be_claimed(
    rig_with: OpenRig, first: Backend
) -> None:
    rig = rig_with(before=[first.name], after=["203.0.113.90:25"])
    served_by(rig, first, v1("203.0.113.91"))
    xclient = served_by(rig, first, v1("203.0.113.90"))
    assert b"ADDR=127.0.0.2 " in xclient  # a health check of the proxy


def test_claims_are_not_believed_while_one_of_the_names_is_unknown(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: SystemLookup, name: str) -> None:
        raise LookupFailed(f"no answer for {name}")

    monkeypatch.setattr(SystemLookup, "find", fails)
    rig = rig_with(after=["mx2.test:25"])
    with rig.connect(LISTED) as client:
        client.send(v1("203.0.113.91"))
        client.expect(NOT_AVAILABLE)
    assert rig.story()["reason"] == "backend_unresolved"
    assert rig.events.wait("backend_unresolved")["backend"] == "mx2.test:25"
    assert not rig.shim.server.metrics.is_ready
    served_by(rig, rig.backend)  # a client of its own


def test_a_reload_adds_a_backend(rig: Rig, first: Backend) -> None:
    third = Backend()
    try:
        config = rig.shim.config
        text = config.read_text()
        old = f'backend = ["{first.name}"'
        config.write_text(
            text.replace(old, f'backend = ["{third.name}", "{first.name}"')
        )
        assert third.name in config.read_text()
        rig.shim.reload()
        served_by(rig, third)
    finally:
        third.close()


def test_a_unix_socket_and_a_port_may_be_mixed(
    rig_with: OpenRig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    unix = Backend(tmp_path_factory.mktemp("mta") / "mta")
    try:
        rig = rig_with(before=[unix.name], connect_timeout_s=PATIENCE_S)
        served_by(rig, unix)
        fail(rig, unix, BUSY)
        served_by(rig, rig.backend)
        assert rig.story()["backend"] == unix.name
    finally:
        unix.close()
