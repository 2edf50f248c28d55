"""When we close, the peer can read our last reply; and a drain harms no message."""

import socket
import threading
from contextlib import suppress

import pytest

from proxyshim.conveyance.contract import Answered, HandedOff, Relayed
from proxyshim.identity import Identity
from proxyshim.session.session import Session
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import EXTENSIONS, GREETING, Mta
from tests.integration.scripted.shim import LISTED, STRANGER, Rig, connect
from tests.integration.scripted.test_relay import ENVELOPE, QUEUED, begin_content
from tests.integration.scripted.wire import LIMIT_S, Wire

FORBIDDEN = b"421 4.7.1 PROXY not allowed from [127.0.0.3]\r\n"
LOST = b"421 4.3.0 Connection to the mail server lost\r\n"
SHUTTING_DOWN = b"421 4.3.2 Service shutting down, try again later\r\n"


# A peer that is still writing can read why it has to stop.


def test_a_peer_that_is_writing_when_we_close_reads_our_reply(rig: Rig) -> None:
    client = forbidden(rig)
    for _ in range(90):
        client.send(b"x" * 10_000)  # under 1 MB in all, and the peer reads nothing
    client.finish()
    assert client.rest() == FORBIDDEN  # and no reset follows


def forbidden(rig: Rig) -> Wire:
    """Connect as a peer that is answered 421 at once."""
    with rig.shim.held():
        client = rig.connect(STRANGER)
        client.send(v1())
    return client


def test_a_peer_that_never_stops_writing_reads_our_reply_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.net.closing.LINGER_S", 0.3)
    client = forbidden(rig)
    with suppress(ConnectionError):
        while True:
            client.send(b"x" * 100_000)
    with suppress(ConnectionError):
        client.rest()
    assert bytes(client.received) == FORBIDDEN
    # 1 MB, plus what one read returns at most
    assert 1_000_000 < rig.story()["octets_in"] < 2_000_000


def test_a_close_waits_two_seconds_at_most(rig: Rig) -> None:
    client = forbidden(rig)
    assert client.rest() == FORBIDDEN
    assert 1.9 < rig.story()["duration_s"] < 5


def test_a_close_is_over_when_the_peer_has_closed(rig: Rig) -> None:
    client = forbidden(rig)
    assert client.last_words() == FORBIDDEN
    assert rig.story()["duration_s"] < 1.5


def test_a_close_does_not_wait_for_a_client_that_has_ended_its_input(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.net.closing.LINGER_S", 3600.0)
    client, mta = rig.relaxed_pair(v1())
    client.send(b"QUIT\r\n")
    client.finish()
    mta.expect(b"QUIT\r\n")
    mta.send(b"221 2.0.0 Bye\r\n")
    mta.close()
    assert client.rest() == b"221 2.0.0 Bye\r\n"
    assert rig.story()["outcome"] == "completed"


def test_content_that_continues_after_our_421_is_read(rig: Rig) -> None:
    client, mta = rig.relaxed_pair(v1())
    begin_content(client, mta)
    mta.close()
    for _ in range(50):
        client.send(b"text and more of it\r\n" * 500)
    client.finish()
    assert client.rest() == LOST


# A close does not lose the answer to a message.


def slow_reader(rig: Rig) -> Wire:
    """Connect with a very small receive buffer."""
    host, _, port = rig.shim.address().rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.bind((LISTED, 0))
    sock.connect((host, int(port)))
    return rig.opened.enter_context(Wire(sock))


def send_message_with_a_long_answer(rig: Rig) -> tuple[Wire, Mta, bytes]:
    """Play a session up to an answer that does not fit into the client's buffer."""
    client = slow_reader(rig)
    client.send(v1() + b"EHLO client.test\r\n")
    mta = rig.accept()
    mta.introduce()
    mta.expect(b"EHLO client.test\r\n")
    mta.send(EXTENSIONS)
    client.expect(GREETING + EXTENSIONS)
    begin_content(client, mta)
    client.send(b"hello\r\n.\r\nQUIT\r\n")
    mta.expect(b"hello\r\n.\r\nQUIT\r\n")
    long = b"250-2.0.0 " + b"x" * 900 + b"\r\n"
    answer = long * 200 + QUEUED + b"221 2.0.0 bye\r\n"
    # The server's own sends may block: the shim reads as fast as its client does.
    sender = threading.Thread(target=send_and_finish, args=(mta, answer))
    sender.start()
    rig.opened.callback(sender.join, LIMIT_S)
    return client, mta, answer


def send_and_finish(mta: Mta, answer: bytes) -> None:
    with suppress(OSError):  # the test is over
        mta.send(answer)
        mta.finish()


@pytest.mark.parametrize("more", [0, 3_000_000])
def test_a_slow_reader_gets_the_answer_to_its_message(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    monkeypatch.setattr("proxyshim.net.closing.LINGER_S", 0.1)
    client, _, answer = send_message_with_a_long_answer(rig)
    send_as_much_as_fits(client, b"x" * more)
    # Five times the limit of an ordinary close.
    assert rig.events.lacks("session_closed", for_s=0.5)
    client.expect(answer)
    client.close()
    assert rig.story()["messages"] == 1


def send_as_much_as_fits(client: Wire, octets: bytes) -> None:
    client.sock.settimeout(0.5)
    with suppress(TimeoutError):
        client.send(octets)
    client.sock.settimeout(LIMIT_S)


def test_a_close_waits_for_a_slow_reader_only_for_a_limited_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.net.closing.LINGER_S", 0.1)
    monkeypatch.setattr("proxyshim.net.closing.STALLED_S", 0.3)
    send_message_with_a_long_answer(rig)
    assert rig.story()["duration_s"] < 5


def test_a_close_does_not_wait_for_a_slow_reader_without_a_message(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.net.closing.LINGER_S", 0.1)
    client = slow_reader(rig)
    client.send(v1() + b"EHLO client.test\r\nHELP\r\n")
    mta = rig.accept()
    mta.introduce()
    mta.expect(b"EHLO client.test\r\n")
    mta.send(EXTENSIONS)
    mta.expect(b"HELP\r\n")
    with suppress(ConnectionError):
        mta.send((b"214-" + b"x" * 900 + b"\r\n") * 200 + b"214 end\r\n")
    mta.close()
    assert rig.story()["outcome"] == "backend_failed"


# A drain.


def test_a_drain_ends_an_idle_session_at_once(rig: Rig) -> None:
    client, mta = rig.relaxed_pair()
    rig.shim.drain()
    assert client.last_words() == SHUTTING_DOWN
    assert mta.rest() == b"QUIT\r\n"
    mta.close()
    story = rig.story()
    assert (story["outcome"], story["reason"]) == ("shutdown", "shutdown")
    assert rig.events.at_least("warning", "error") == []


def test_a_drain_refuses_new_connections(rig: Rig) -> None:
    client, mta = rig.relaxed_pair()
    begin_content(client, mta)
    address = rig.shim.address()
    rig.shim.drain()
    with pytest.raises(ConnectionRefusedError):
        connect(address)


@pytest.mark.parametrize("phase", ["header", "backend"])
def test_a_drain_ends_an_unopened_session_at_once(rig: Rig, phase: str) -> None:
    client = rig.connect(LISTED)
    if phase == "backend":
        client.send(v1())
        mta = rig.accept()
        mta.greet()
    rig.shim.drain()
    assert client.last_words() == SHUTTING_DOWN
    assert rig.story()["outcome"] == "shutdown"
    if phase == "backend":
        assert mta.rest() in (b"", b"QUIT\r\n")


def test_a_connection_accepted_when_the_drain_begins_ends_at_once(rig: Rig) -> None:
    connected = threading.Event()
    rig.shim.begin(accept_and_drain(rig, connected))
    client = rig.connect(LISTED)
    connected.set()
    assert client.last_words() == SHUTTING_DOWN


async def accept_and_drain(rig: Rig, connected: threading.Event) -> None:
    """Hold the loop, then accept a session and drain before it has run."""
    connected.wait(LIMIT_S)
    server = rig.shim.server
    for listener, listening in server._smtp_acceptor.sockets:
        server._smtp_acceptor._accept(listener, listening.sock)
    for session in server._sessions:
        session.drain()


def test_a_close_that_has_begun_continues_during_a_drain(rig: Rig) -> None:
    client = rig.connect(LISTED)
    client.send(b"no header\r\n")
    client.expect(b"421 4.7.1 PROXY header expected, closing\r\n")
    rig.events.wait("header_refused")
    rig.shim.drain()
    for _ in range(20):
        client.send(b"x" * 10_000)
    client.finish()
    assert client.rest() == b""


def test_a_message_gets_its_answer_before_the_drain_ends_its_session(rig: Rig) -> None:
    client, mta = rig.relaxed_pair()
    begin_content(client, mta)
    client.send(b"hello\r\n.\r\n")
    mta.expect(b"hello\r\n.\r\n")
    rig.shim.drain()
    assert client.is_silent(0.05)
    mta.send(QUEUED)
    assert client.last_words() == QUEUED + SHUTTING_DOWN
    assert mta.rest() == b"QUIT\r\n"
    mta.close()
    assert rig.story()["messages"] == 1


def test_a_message_may_be_finished_during_a_drain(rig_with: OpenRig) -> None:
    rig = rig_with(drain_timeout_s=LIMIT_S)
    client, mta = rig.relaxed_pair()
    client.send(b"MAIL FROM:<a@client.test>\r\n")
    mta.expect(b"MAIL FROM:<a@client.test>\r\n")
    mta.send(b"250 a\r\n")
    client.expect(b"250 a\r\n")
    rig.shim.drain()
    client.send(b"RCPT TO:<b@mx.test>\r\nDATA\r\n")
    mta.expect(b"RCPT TO:<b@mx.test>\r\nDATA\r\n")
    mta.send(b"250 b\r\n354 c\r\n")
    client.expect(b"250 b\r\n354 c\r\n")
    client.send(b"hello\r\n.\r\n")
    mta.expect(b"hello\r\n.\r\n")
    mta.send(QUEUED)
    assert client.last_words() == QUEUED + SHUTTING_DOWN


def test_a_message_that_does_not_end_in_time_is_cut_before_its_dot(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(drain_timeout_s=0.2)
    client, mta = rig.relaxed_pair()
    begin_content(client, mta)
    client.send(b"hello\r\n")
    rig.shim.drain()
    assert client.last_words() == SHUTTING_DOWN
    assert mta.rest() == b"hello\r\n"


def test_a_drain_waits_longer_than_its_limit_for_an_answer(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(drain_timeout_s=0.1)
    client, mta = rig.relaxed_pair()
    begin_content(client, mta)
    client.send(b"hello\r\n.\r\n")
    mta.expect(b"hello\r\n.\r\n")
    rig.shim.drain()
    assert client.is_silent(0.5)
    mta.send(QUEUED)
    assert client.last_words() == QUEUED + SHUTTING_DOWN


def test_the_421_of_a_drain_does_not_overtake_an_owed_reply(rig: Rig) -> None:
    client, mta = rig.relaxed_pair()
    client.send(b"NOOP\r\nVRFY a\r\n")
    mta.expect(b"NOOP\r\nVRFY a\r\n")
    rig.shim.drain()
    mta.send(b"250 a\r\n252 b\r\n")
    assert client.last_words() == b"250 a\r\n252 b\r\n" + SHUTTING_DOWN


def test_a_pipelined_message_counts_as_begun_in_a_drain(rig: Rig) -> None:
    client, mta = rig.relaxed_pair()
    client.send(ENVELOPE)
    mta.expect(ENVELOPE)
    rig.shim.drain()
    mta.send(b"250 a\r\n250 b\r\n354 c\r\n")
    client.expect(b"250 a\r\n250 b\r\n354 c\r\n")
    client.send(b"hello\r\n.\r\n")
    mta.expect(b"hello\r\n.\r\n")
    mta.send(QUEUED)
    assert client.last_words() == QUEUED + SHUTTING_DOWN


def test_a_drain_at_the_moment_of_the_greeting_sends_only_the_421(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    convey = Session._convey

    async def convey_and_drain(
        session: Session, identity: Identity
    ) -> Relayed | HandedOff | Answered:
        backend = await convey(session, identity)
        session.drain()
        return backend

    monkeypatch.setattr(Session, "_convey", convey_and_drain)
    client = rig.connect(LISTED)
    client.send(v1())
    mta = rig.accept()
    mta.introduce()
    assert client.last_words() == SHUTTING_DOWN
    assert mta.rest() == b"QUIT\r\n"
