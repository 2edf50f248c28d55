"""A backend that is busy is not down; one that refuses is, whatever it did before."""

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import Backend
from tests.integration.scripted.shim import Rig
from tests.integration.scripted.test_agent import ask


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxyshim.service.agent.ANSWER_WITHIN_S", 0.2)


@pytest.fixture
def rig(rig_with: OpenRig) -> Rig:
    return rig_with(agent_bind="127.0.0.1:0")


def forget_replies(rig: Rig) -> None:
    """Forget the replies so far, as if they were older than a minute."""
    rig.shim.server._shared["mx"].dial.last_reply.at = float("-inf")


def test_a_backend_that_is_busy_with_other_clients_is_up(rig: Rig) -> None:
    """Its process limit is reached: it accepts connections and greets nobody."""
    rig.pair(v1())
    check = ask(rig)
    rig.accept()
    assert check.last_words() == b"up ready\n"


def test_a_reply_in_an_open_session_shows_that_the_backend_is_alive(rig: Rig) -> None:
    client, mta = rig.relaxed_pair(v1())
    forget_replies(rig)
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    mta.send(b"250 ok\r\n")
    client.expect(b"250 ok\r\n")
    check = ask(rig)
    rig.accept()
    assert check.last_words() == b"up ready\n"


def test_a_backend_that_has_not_replied_for_a_minute_and_does_not_greet_is_down(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.service.agent.REPLIED_WITHIN_S", 0.0)
    rig.pair(v1())
    check = ask(rig)
    rig.accept()
    assert check.last_words() == b"down ready\n"


def test_a_backend_whose_queue_is_full_is_busy(rig_with: OpenRig) -> None:
    backend = Backend(backlog=0)
    rig = rig_with(backend=backend, agent_bind="127.0.0.1:0")
    rig.pair(v1())
    rig.connect()  # its session or the check takes the only place in the queue
    assert ask(rig).last_words() == b"up ready\n"


@pytest.mark.parametrize("how", ["refuses", "greets with 421", "closes"])
def test_a_backend_that_fails_is_down_however_recently_it_has_replied(
    rig: Rig, how: str
) -> None:
    rig.pair(v1())
    if how == "refuses":
        rig.backend.close()
    check = ask(rig)
    if how != "refuses":
        mta = rig.accept()
        if how == "greets with 421":
            mta.send(b"421 4.3.2 All server ports are busy\r\n")
        mta.close()
    assert check.last_words() == b"down ready\n"


def test_the_last_reply_is_remembered_across_a_reload(rig: Rig) -> None:
    rig.pair(v1())
    rig.shim.reload()
    check = ask(rig)
    rig.accept()
    assert check.last_words() == b"up ready\n"


def test_a_lack_of_descriptors_is_not_taken_for_a_dead_backend(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.pair(v1())

    async def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("proxyshim.backend.dial.connect_tcp", fail)
    assert ask(rig).last_words() == b"up ready\n"
