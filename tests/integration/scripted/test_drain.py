"""A drain's deadline, and drains of opaque sessions; test_ends.py tests the rest."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import Mta
from tests.integration.scripted.shim import Rig
from tests.integration.scripted.test_relay import QUEUED, begin_content
from tests.integration.scripted.wire import LIMIT_S, Wire

SHUTTING_DOWN = b"421 4.3.2 Service shutting down, try again later\r\n"
# They look like records of TLS to the shim.
FROM_CLIENT, FROM_BACKEND = b"\x16\x03\x01 client", b"\x16\x03\x01 backend"


def opaque_pair(rig: Rig) -> tuple[Wire, Mta]:
    """Open a session up to the 220 to STARTTLS."""
    client, mta = rig.relaxed_pair(v1())
    client.send(b"STARTTLS\r\n")
    mta.expect(b"STARTTLS\r\n")
    mta.send(b"220 2.0.0 go ahead\r\n")
    client.expect(b"220 2.0.0 go ahead\r\n")
    return client, mta


def talk(client: Wire, mta: Mta) -> None:
    """Send something each way, the backend last."""
    client.send(FROM_CLIENT)
    mta.expect(FROM_CLIENT)
    mta.send(FROM_BACKEND)
    client.expect(FROM_BACKEND)


def is_cut(rig: Rig, transaction: str) -> bool:
    """Return True if the session was cut, and this was counted and logged."""
    story = rig.story()
    counted = rig.shim.server.metrics.sessions
    return (
        (story["outcome"], story["reason"]) == ("cut", "shutdown")
        and story["level"] == "warning"
        and story["detail"] == f"drain_timeout_s expired during: {transaction}"
        and counted["mx", "cut"] == 1
    )


def is_ended_by_shutdown(story: Mapping[str, Any]) -> bool:
    return (story["outcome"], story["level"]) == ("shutdown", "info")


# At the deadline.


def test_unfinished_content_is_cut_counted_and_logged(rig_with: OpenRig) -> None:
    rig = rig_with(drain_timeout_s=0.3)
    client, mta = rig.relaxed_pair(v1())
    begin_content(client, mta)
    rig.shim.drain()
    client.send(b"hello\r\n")
    assert client.last_words() == SHUTTING_DOWN
    assert mta.rest() == b"hello\r\n"  # without the final dot
    mta.close()
    assert is_cut(rig, "content")


def test_an_unfinished_envelope_is_cut(rig_with: OpenRig) -> None:
    rig = rig_with(drain_timeout_s=0.3)
    client, mta = rig.relaxed_pair(v1())
    client.send(b"MAIL FROM:<a@client.test>\r\n")
    mta.expect(b"MAIL FROM:<a@client.test>\r\n")
    mta.send(b"250 2.1.0 ok\r\n")
    client.expect(b"250 2.1.0 ok\r\n")
    rig.shim.drain()
    assert client.last_words() == SHUTTING_DOWN
    mta.expect(b"QUIT\r\n")
    mta.close()
    assert is_cut(rig, "envelope")


def test_a_client_that_resets_its_envelope_is_not_cut(rig_with: OpenRig) -> None:
    rig = rig_with(drain_timeout_s=LIMIT_S)
    client, mta = rig.relaxed_pair(v1())
    client.send(b"MAIL FROM:<a@client.test>\r\n")
    mta.expect(b"MAIL FROM:<a@client.test>\r\n")
    mta.send(b"250 2.1.0 ok\r\n")
    client.expect(b"250 2.1.0 ok\r\n")
    rig.shim.drain()
    client.send(b"RSET\r\n")
    mta.expect(b"RSET\r\n")
    mta.send(b"250 2.0.0 ok\r\n")
    assert client.last_words() == b"250 2.0.0 ok\r\n" + SHUTTING_DOWN
    assert is_ended_by_shutdown(rig.story())


def test_a_drain_lets_one_message_through_and_no_second_one(rig_with: OpenRig) -> None:
    rig = rig_with(drain_timeout_s=LIMIT_S)
    client, mta = rig.relaxed_pair(v1())
    begin_content(client, mta)
    rig.shim.drain()
    client.send(b"hello\r\n.\r\nMAIL FROM:<c@client.test>\r\n")
    mta.expect(b"hello\r\n.\r\nMAIL FROM:<c@client.test>\r\n")
    mta.send(QUEUED + b"250 2.1.0 ok\r\n")
    client.expect(QUEUED + b"250 2.1.0 ok\r\n")  # it began before we could refuse it
    client.send(b"RSET\r\n")
    mta.expect(b"RSET\r\n")
    mta.send(b"250 2.0.0 ok\r\n")
    assert client.last_words() == b"250 2.0.0 ok\r\n" + SHUTTING_DOWN
    assert rig.story()["messages"] == 1


def test_a_backend_that_hangs_between_messages_does_not_prolong_the_drain(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(drain_timeout_s=0.3)
    client, mta = rig.relaxed_pair(v1())
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    rig.shim.drain()
    assert client.last_words() == SHUTTING_DOWN
    assert is_ended_by_shutdown(rig.story())


# Inside TLS.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorten the silence that ends an opaque session."""
    settled_s = 0.4
    monkeypatch.setattr("proxyshim.session.timing._SETTLED_S", settled_s)
    monkeypatch.setattr("proxyshim.session.timing.POSSIBLE_REPLY_S", settled_s)
    return settled_s


def test_in_tls_silence_after_the_backend_spoke_ends_the_session(
    rig_with: OpenRig, impatient: float
) -> None:
    rig = rig_with(drain_timeout_s=LIMIT_S)
    client, mta = opaque_pair(rig)
    talk(client, mta)
    rig.shim.drain()
    assert client.is_silent(impatient / 2)
    assert client.last_words() == b""  # a 421 would not be TLS
    assert mta.rest() == b""
    assert is_ended_by_shutdown(rig.story())


@pytest.mark.usefixtures("impatient")
def test_in_tls_a_client_that_waits_for_the_backend_is_not_cut_early(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(drain_timeout_s=LIMIT_S)
    client, mta = opaque_pair(rig)
    talk(client, mta)
    client.send(FROM_CLIENT)  # it may be the end of a message
    mta.expect(FROM_CLIENT)
    rig.shim.drain()
    assert client.is_silent(1.0)
    mta.send(FROM_BACKEND)
    assert client.last_words() == FROM_BACKEND
    assert is_ended_by_shutdown(rig.story())


@pytest.mark.usefixtures("impatient")
def test_in_tls_a_client_that_goes_on_talking_is_served(rig_with: OpenRig) -> None:
    rig = rig_with(drain_timeout_s=LIMIT_S)
    client, mta = opaque_pair(rig)
    rig.shim.drain()
    for _ in range(5):
        assert client.is_silent(0.2)
        talk(client, mta)
    assert client.last_words() == b""
    assert is_ended_by_shutdown(rig.story())


def test_in_tls_the_deadline_cuts_and_logs_it(rig_with: OpenRig) -> None:
    rig = rig_with(drain_timeout_s=0.3, drain_opaque_timeout_s=0.3)
    client, mta = opaque_pair(rig)
    client.send(FROM_CLIENT)
    mta.expect(FROM_CLIENT)
    rig.shim.drain()
    assert client.last_words() == b""
    assert mta.rest() == b""
    assert is_cut(rig, "opaque")
