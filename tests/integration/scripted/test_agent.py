"""The answers to agent checks; test_agent_check.py tests how HAProxy reacts to them."""

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import EHLO, FIRST_GREETING, OFFER, Backend, Mta
from tests.integration.scripted.shim import LISTED, STRANGER, Rig, connect
from tests.integration.scripted.test_relay import begin_content
from tests.integration.scripted.wire import Wire


@pytest.fixture
def rig(rig_with: OpenRig) -> Rig:
    return rig_with(agent_bind="127.0.0.1:0")


def ask(rig: Rig, source: str = LISTED) -> Wire:
    """Connect as HAProxy does for an agent check, without sending anything."""
    address = rig.events.wait("agent_opened")["address"]
    return rig.opened.enter_context(connect(address, source))


def answer_health_check(mta: Mta, offer: bytes = OFFER) -> None:
    """Play a healthy backend that the shim checks."""
    mta.send(FIRST_GREETING)
    mta.expect(EHLO)
    mta.send(offer)
    mta.expect(b"QUIT\r\n")
    mta.send(b"221 bye\r\n")
    mta.close()


def test_a_backend_that_offers_xclient_is_up(rig: Rig) -> None:
    check = ask(rig)
    answer_health_check(rig.accept())
    assert check.last_words() == b"up ready\n"


def test_a_backend_without_xclient_is_down(rig: Rig) -> None:
    check = ask(rig)
    answer_health_check(rig.accept(), b"250 mx.test\r\n")
    assert check.last_words() == b"down ready\n"


@pytest.mark.parametrize(
    "greeting", [b"421 no\r\n", b"554 5.7.1 go away\r\n", b"rubbish\n"]
)
def test_a_backend_with_a_bad_greeting_is_down(rig: Rig, greeting: bytes) -> None:
    check = ask(rig)
    rig.accept().send(greeting)
    assert check.last_words() == b"down ready\n"


def test_an_unreachable_backend_is_down(rig_with: OpenRig) -> None:
    dead = Backend()
    dead.close()
    rig = rig_with(backend=dead, agent_bind="127.0.0.1:0")
    assert ask(rig).last_words() == b"down ready\n"


def test_a_silent_backend_is_down_before_haproxy_gives_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.service.agent.ANSWER_WITHIN_S", 0.2)
    check = ask(rig)
    mta = rig.accept()
    assert check.last_words() == b"down ready\n"
    assert mta.rest() == b""


def test_ready_is_sent_only_after_the_start(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because it cancels a state that an operator set in HAProxy by hand."""
    monkeypatch.setattr("proxyshim.service.agent._SEND_READY_S", 0.0)
    check = ask(rig)
    answer_health_check(rig.accept())
    assert check.last_words() == b"up\n"


def test_concurrent_checks_share_one_connection_to_the_backend(rig: Rig) -> None:
    checks = [ask(rig) for _ in range(10)]
    answer_health_check(rig.accept())
    assert {check.last_words() for check in checks} == {b"up ready\n"}
    assert rig.backend.was_left_alone()


def test_an_unlisted_peer_gets_no_answer(rig: Rig) -> None:
    assert ask(rig, STRANGER).end() == b""
    assert rig.backend.was_left_alone()


def test_checks_report_drain_while_the_last_session_goes_on(rig: Rig) -> None:
    client, mta = rig.relaxed_pair(v1())
    begin_content(client, mta)
    rig.shim.drain()
    assert ask(rig).last_words() == b"drain\n"
    assert ask(rig, STRANGER).end() == b""


def test_a_check_is_not_a_session_and_not_logged(rig: Rig) -> None:
    check = ask(rig)
    answer_health_check(rig.accept())
    check.last_words()
    rig.shim.stop()
    logged = [e["event"] for e in rig.events.at_least("info", "warning", "error")]
    assert logged == [
        "listener_opened",
        "agent_opened",
        "service_ready",
        "drain_started",
        "service_stopped",
    ]
    assert rig.events.find("session_closed") == []


def test_checks_after_a_reload_use_the_new_backend(rig: Rig) -> None:
    other = Backend()
    rig.opened.callback(other.close)
    text = rig.shim.config.read_text()
    rig.shim.config.write_text(text.replace(rig.backend.name, other.name))
    rig.shim.reload()
    check = ask(rig)
    answer_health_check(rig.opened.enter_context(other.accept()))
    assert check.last_words() == b"up ready\n"
