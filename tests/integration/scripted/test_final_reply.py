"""The final reply is never lost: neither to a limit, nor to a drain, nor to our own close."""

import itertools
import signal
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.lab.certificates import make_certificate
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import EXTENSIONS, GREETING, Backend, Mta
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import LISTED, Rig, connect
from tests.integration.scripted.test_drain import opaque_pair
from tests.integration.scripted.test_ends import slow_reader
from tests.integration.scripted.test_process import configure, open_session
from tests.integration.scripted.test_relay import (
    ENVELOPE,
    MODES,
    QUEUED,
    begin_content,
    sending,
)
from tests.integration.scripted.wire import LIMIT_S, Wire

SHUTTING_DOWN = b"421 4.3.2 Service shutting down, try again later\r\n"
OUT_OF_PLACE = b"421 4.7.0 Command not allowed here, closing\r\n"
ODD_DOTS = {
    "LF.LF": b"\n.\n",
    "LF.CRLF": b"\n.\r\n",
    "CRLF.LF": b"\r\n.\n",
    "CRLF.NUL": b"\r\n.\0\r\n",
}
RECORD = b"\x17\x03\x03 a record"
HELP = b"214-" + b"x" * 900 + b"\r\n214 end\r\n"


def send_message(rig: Rig, mode: str, end: bytes) -> tuple[Wire, Mta]:
    """Play a message up to its *end*, which the mail server has not answered yet."""
    client, mta = MODES[mode](rig)
    begin_content(client, mta)
    client.send(b"hello" + end)
    mta.expect(b"hello" + end)
    return client, mta


# A reply that is possible is waited for.


@pytest.mark.parametrize("end", ODD_DOTS.values(), ids=ODD_DOTS)
@pytest.mark.parametrize("mode", MODES)
def test_a_drain_does_not_cut_the_reply_to_an_odd_dot(
    rig_with: OpenRig, mode: str, end: bytes
) -> None:
    rig = rig_with(drain_timeout_s=0.1)
    client, mta = send_message(rig, mode, end)
    rig.shim.drain()
    assert client.is_silent(0.5)
    mta.send(QUEUED)
    assert client.last_words() == QUEUED + SHUTTING_DOWN
    story = rig.story()
    assert (story["outcome"], story["messages"]) == ("shutdown", 1)


@pytest.mark.parametrize("mode", MODES)
def test_an_idle_limit_does_not_cut_the_reply_to_an_odd_dot(
    rig_with: OpenRig, mode: str
) -> None:
    rig = rig_with(idle_timeout_s=0.1)
    client, mta = send_message(rig, mode, b"\n.\n")
    assert client.is_silent(0.5)
    mta.send(QUEUED)
    client.expect(QUEUED)


def test_a_drain_waits_for_an_odd_dot_no_longer_than_configured(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(drain_timeout_s=0.1, drain_opaque_timeout_s=0.3)
    client, mta = send_message(rig, "relaxed", b"\n.\n")
    rig.shim.drain()
    assert client.last_words() == b""  # a 421 could be taken for the reply
    assert mta.rest() == b""
    story = rig.story()
    assert (story["outcome"], story["detail"]) == (
        "cut",
        "drain_timeout_s expired during: content",
    )


def test_our_421_does_not_overtake_the_reply_to_an_odd_dot(rig: Rig) -> None:
    client, mta = send_message(rig, "strict", b"\n.\n")
    client.send(b"XCLIENT ADDR=192.0.2.1\r\n")
    rig.events.wait("command_refused")
    assert client.is_silent(0.3)
    mta.send(QUEUED)
    assert client.last_words() == QUEUED + OUT_OF_PLACE


def test_our_421_is_left_out_when_no_reply_to_an_odd_dot_comes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.session.timing.POSSIBLE_REPLY_S", 0.3)
    client, _ = send_message(rig, "strict", b"\n.\n")
    client.send(b"XCLIENT ADDR=192.0.2.1\r\n")
    assert client.last_words() == b""
    assert rig.story()["reason"] == "verb_in_content"


# Inside TLS.


@contextmanager
def answers_late(rig: Rig) -> Iterator[None]:
    """Play a client that pipelines two chunks in TLS; the second answer comes in the block."""
    client, mta = opaque_pair(rig)
    client.send(RECORD * 2)
    mta.expect(RECORD * 2)
    mta.send(RECORD)
    client.expect(RECORD)
    yield
    assert client.is_silent(0.6)
    mta.send(QUEUED)
    client.expect(QUEUED)


def test_in_tls_an_idle_limit_does_not_cut_a_second_reply(rig_with: OpenRig) -> None:
    with answers_late(rig_with(idle_timeout_s=0.1)):
        pass


def test_in_tls_a_drain_does_not_cut_a_second_reply(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.session.timing._SETTLED_S", 0.1)
    rig = rig_with(drain_timeout_s=0.2, drain_opaque_timeout_s=LIMIT_S)
    with answers_late(rig):
        rig.shim.drain()
        monkeypatch.setattr("proxyshim.session.timing.POSSIBLE_REPLY_S", 1.0)


@pytest.mark.parametrize("limit", ["idle", "drain"])
def test_in_tls_a_client_that_pipelines_two_chunks_gets_both_replies(
    rig_with: OpenRig, tmp_path: Path, limit: str
) -> None:
    rig = rig_with(idle_timeout_s=0.2 if limit == "idle" else 60.0, drain_timeout_s=0.2)
    client, mta = opaque_pair(rig)
    certificate = make_certificate(tmp_path)
    at_mta = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    at_mta.load_cert_chain(certificate)
    at_client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    at_client.check_hostname, at_client.verify_mode = False, ssl.CERT_NONE
    wrapped: list[ssl.SSLSocket] = []
    server = threading.Thread(
        target=lambda: wrapped.append(at_mta.wrap_socket(mta.sock, server_side=True))
    )
    server.start()
    with at_client.wrap_socket(client.sock) as secure:
        server.join(LIMIT_S)
        [secure_mta] = wrapped
        chunks = b"BDAT 2\r\nhiBDAT 3 LAST\r\nyou"
        secure.sendall(chunks)
        with secure_mta:
            received = b""
            while len(received) < len(chunks):
                received += secure_mta.recv(1_000)
            secure_mta.sendall(b"250 2 octets\r\n")
            assert secure.recv(1_000) == b"250 2 octets\r\n"
            if limit == "drain":
                rig.shim.drain()
            assert rig.events.lacks("session_closed", for_s=4.0)
            secure_mta.sendall(QUEUED)
            assert secure.recv(1_000) == QUEUED


# What the kernel has not taken is not dropped, and what it has taken is waited for.


def limit_send_buffers(rig: Rig) -> None:
    """Let the kernel take only a few kilobytes for a client, so that the rest stays with us."""
    for _, listening in rig.shim.server._smtp_acceptor.sockets:
        listening.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)


def introduced(rig: Rig) -> Mta:
    """Play the mail server up to its reply to the client's EHLO."""
    mta = rig.accept()
    mta.introduce()
    mta.expect(b"EHLO client.test\r\n")
    mta.send(EXTENSIONS)
    return mta


@pytest.mark.parametrize("leave", [Wire.finish, lambda _: None], ids=["eof", "open"])
@pytest.mark.parametrize("is_kept_by", ["the kernel", "us"])
def test_a_client_that_reads_late_gets_its_final_reply(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    leave: Callable[[Wire], None],
    is_kept_by: str,
) -> None:
    monkeypatch.setattr("proxyshim.net.closing.LINGER_S", 0.1)
    if is_kept_by == "us":
        limit_send_buffers(rig)
    client = slow_reader(rig)
    client.send(v1() + b"EHLO client.test\r\n" + ENVELOPE + b"hello\r\n.\r\n")
    leave(client)
    mta = introduced(rig)
    mta.expect(ENVELOPE + b"hello\r\n.\r\n")
    replies = (
        b"250 a\r\n250 b\r\n354 c\r\n" + (b"250-" + b"x" * 900 + b"\r\n") * 60 + QUEUED
    )
    with rig.shim.held():  # so that the last of it and its end are read together
        mta.send(replies)
        mta.close()
    assert rig.events.lacks("session_closed", for_s=0.5)
    # A backend that closes unexpectedly has our 421 follow.
    assert client.rest().startswith(GREETING + EXTENSIONS + replies)
    client.close()
    assert rig.story()["messages"] == 1


def test_an_end_of_file_does_not_drop_what_the_kernel_has_not_taken(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.net.closing.LINGER_S", 0.1)
    limit_send_buffers(rig)
    client = slow_reader(rig)
    client.send(v1() + b"EHLO client.test\r\n" + b"HELP\r\n" * 60)
    client.finish()
    mta = introduced(rig)
    assert mta.rest() == b"HELP\r\n" * 60
    with rig.shim.held():
        mta.send(HELP * 60)
        mta.close()
    assert rig.events.lacks("session_closed", for_s=0.5)
    assert client.rest() == GREETING + EXTENSIONS + HELP * 60


def send_and_close(mta: Mta, octets: bytes) -> None:
    with suppress(OSError):  # the test is over
        mta.send(octets)
        mta.close()


# Urgent data.


def test_urgent_data_of_a_client_does_not_stop_the_session(rig: Rig) -> None:
    client, mta = rig.relaxed_pair(v1())
    begin_content(client, mta)
    with rig.shim.held():
        client.send(b"hello\r\n")
        client.sock.send(b"!", socket.MSG_OOB)
        client.send(b"more\r\n.\r\n")
    # The urgent octet is not part of the stream, for a mail server as for us.
    mta.expect(b"hello\r\nmore\r\n.\r\n")
    mta.send(QUEUED)
    client.expect(QUEUED)


def test_urgent_data_of_a_backend_does_not_stop_the_session(rig: Rig) -> None:
    client, mta = rig.relaxed_pair(v1())
    client.send(b"NOOP\r\nNOOP\r\n")
    mta.expect(b"NOOP\r\nNOOP\r\n")
    with rig.shim.held():
        mta.send(b"250 a\r\n")
        mta.sock.send(b"!", socket.MSG_OOB)
        mta.send(b"250 b\r\n")
    client.expect(b"250 a\r\n250 b\r\n")


def test_urgent_data_in_front_of_the_greeting_does_no_harm(rig: Rig) -> None:
    with rig.shim.held():
        client = rig.connect(LISTED)
        client.send(v1()[:10])
        client.sock.send(b"!", socket.MSG_OOB)
        client.send(v1()[10:])
    rig.accept().introduce()
    client.expect(GREETING)


# A drain ends.


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_reads_nothing_does_not_hold_a_drain(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr("proxyshim.net.closing.LINGER_S", 0.1)
    monkeypatch.setattr("proxyshim.net.closing.STALLED_S", 0.3)
    monkeypatch.setattr("proxyshim.session.timing._SETTLED_S", 0.1)
    rig = rig_with(drain_timeout_s=0.1, drain_opaque_timeout_s=0.2)
    client = slow_reader(rig)
    client.send(v1() + b"EHLO client.test\r\n" + ENVELOPE + b"hello\r\n.\r\n")
    mta = introduced(rig)
    mta.expect(ENVELOPE + b"hello\r\n.\r\n")
    mta.send(b"250 a\r\n250 b\r\n354 c\r\n" + QUEUED)
    client.send(b"HELP\r\n" * 200 + (b"STARTTLS\r\n" if tls else b""))
    mta.expect(b"HELP\r\n" * 200)
    answers = HELP * 200 + (b"220 go\r\n" if tls else b"")
    sender = threading.Thread(target=send_and_close, args=(mta, answers))
    sender.start()
    rig.opened.callback(sender.join, LIMIT_S)
    rig.shim.drain()
    rig.story()
    rig.events.wait("service_stopped")


def test_a_final_reply_behind_what_a_client_does_not_read_does_not_hold_a_drain(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.net.closing.LINGER_S", 0.1)
    monkeypatch.setattr("proxyshim.net.closing.STALLED_S", 0.3)
    rig = rig_with(drain_timeout_s=0.3)
    client = slow_reader(rig)
    said = b"HELP\r\n" * 300 + ENVELOPE
    client.send(v1() + b"EHLO client.test\r\n" + said + b"hello\r\n.\r\n")
    mta = introduced(rig)
    mta.expect(said + b"hello\r\n.\r\n")
    answers = HELP * 300 + b"250 a\r\n250 b\r\n354 c\r\n" + QUEUED
    with sending(mta, [answers]):
        rig.shim.drain()
        story = rig.story()
    assert story["messages"] == 1


def test_a_client_that_pipelines_without_end_does_not_hold_a_drain(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(drain_timeout_s=0.2)
    client, mta = rig.relaxed_pair(v1())
    stopped = threading.Event()
    chunk = b"BDAT 5 LAST\r\nhello"

    def pipeline() -> None:
        with suppress(OSError):
            for _ in itertools.takewhile(lambda _: not stopped.is_set(), forever()):
                client.send(b"MAIL FROM:<a@client.test>\r\n" + chunk)

    def answer() -> None:
        with suppress(OSError):
            while not stopped.is_set() and mta.line():
                mta.send(QUEUED)

    threads = [threading.Thread(target=each) for each in (pipeline, answer)]
    for thread in threads:
        thread.start()
    try:
        client.expect(QUEUED)
        rig.shim.drain()
        while client.line() not in (b"", SHUTTING_DOWN):
            pass
        assert client.received.endswith(SHUTTING_DOWN)
    finally:
        stopped.set()
        client.end()
        mta.close()
        for thread in threads:
            thread.join(LIMIT_S)
    assert rig.story()["outcome"] in ("cut", "shutdown")


def forever() -> Iterator[None]:
    return itertools.repeat(None)


def test_at_the_deadline_what_has_not_reached_the_backend_is_dropped(
    rig_with: OpenRig,
) -> None:
    """The backend does not read; when it does, exactly what it has taken is answered."""
    rig = rig_with(drain_timeout_s=0.3)
    client, mta = rig.relaxed_pair(v1())
    chunk = b"BDAT 50000 LAST\r\n" + b"x" * 50_000

    def send() -> None:
        with suppress(OSError):
            client.send(chunk * 900)

    sender = threading.Thread(target=send)
    sender.start()
    wait_until(lambda: backlog_octets(rig) > 0)
    rig.shim.drain()
    wait_until(lambda: backlog_octets(rig) == 0)
    with suppress(TimeoutError):
        mta.sock.settimeout(1.0)
        mta.rest()
    complete = len(mta.received) // len(chunk)
    assert len(mta.received) % len(chunk) != 0
    mta.send(QUEUED * complete)
    client.expect(QUEUED * complete + SHUTTING_DOWN)
    client.end()
    sender.join(LIMIT_S)
    mta.close()
    story = rig.story()
    assert (story["outcome"], story["messages"]) == ("cut", complete)


def backlog_octets(rig: Rig) -> int:
    """Return what the session has for its mail server and the kernel has not taken."""
    [session] = rig.shim.server._sessions
    backend = session._backend
    return backend.backlog_octets if backend is not None else 0


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


# The backend has said goodbye.


@pytest.mark.parametrize("leave", [Wire.close, lambda _: None], ids=["close", "stay"])
def test_a_backend_that_does_not_close_after_its_221_is_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, leave: Callable[[Wire], None]
) -> None:
    monkeypatch.setattr("proxyshim.session.timing.QUIT_GRACE_S", 0.2)
    client, mta = rig.relaxed_pair(v1())
    client.send(b"QUIT\r\n")
    mta.expect(b"QUIT\r\n")
    mta.send(b"221 bye\r\n")
    client.expect(b"221 bye\r\n")
    leave(client)
    assert mta.rest() == b""  # our end of file, and no second QUIT
    client.close()
    assert rig.story()["outcome"] == "completed"


# Memory.


def test_early_octets_are_not_kept_for_the_session(rig: Rig) -> None:
    """Compare sessions that began with much and with little early data."""

    def measure(early: bytes) -> int:
        before = traced(rig)
        for _ in range(10):
            client = rig.connect(LISTED)
            client.send(v1() + b"EHLO client.test\r\n" + early)
            mta = introduced(rig)
            mta.expect(early)
            mta.received.clear()
        return traced(rig) - before

    tracemalloc.start()
    try:
        measure(b"")  # so that one-time allocations are not counted
        little = measure(b"NOOP\r\n")
        much = measure((b"NOOP " + b"x" * 10_000 + b"\r\n") * 5)
    finally:
        tracemalloc.stop()
    assert much - little < 10 * 5_000


def traced(rig: Rig) -> int:
    with rig.shim.held():
        return tracemalloc.get_traced_memory()[0]


# Time that stood still.

# Long enough that a busy machine does not reach the limit before the process is frozen.
SHORT_S, LONGER_S = 1.5, 2.0


@contextmanager
def frozen(shim: Process, for_s: float) -> Iterator[None]:
    """Freeze the process for longer than its limit; the block is run in the meantime."""
    shim.signal(signal.SIGSTOP)
    try:
        yield
        time.sleep(for_s)
    finally:
        shim.signal(signal.SIGCONT)


@pytest.fixture
def start(tmp_path: Path, backend: Backend) -> Iterator[Callable[..., Process]]:
    """Return a function that starts a shim of its own process, with settings."""
    with ExitStack() as cleanup:
        yield lambda **settings: cleanup.enter_context(
            Process(configure(tmp_path, backend, **settings))
        )


StartProcess = Callable[..., Process]


def test_a_reply_that_came_while_time_stood_still_counts(
    start: StartProcess, backend: Backend
) -> None:
    shim = start(idle_timeout_s=SHORT_S)
    with ExitStack() as cleanup:
        client, mta = open_session(shim, backend, cleanup)
        for _ in range(2):
            client.send(b"NOOP\r\n")
            mta.expect(b"NOOP\r\n")
            with frozen(shim, LONGER_S):
                mta.send(b"250 ok\r\n")
            client.expect(b"250 ok\r\n")


def test_a_header_that_came_while_time_stood_still_counts(
    start: StartProcess, backend: Backend
) -> None:
    shim = start(header_timeout_s=SHORT_S)
    for _ in range(2):
        with connect(shim.address, LISTED) as client:
            client.send(v1()[:10])
            wait_until(lambda: not shim.events("header_refused"))
            with frozen(shim, LONGER_S):
                client.send(v1()[10:])
            with backend.accept() as mta:
                mta.introduce()
                client.expect(GREETING)


def test_a_greeting_that_came_while_time_stood_still_counts(
    start: StartProcess, backend: Backend
) -> None:
    shim = start(reply_timeout_s=SHORT_S)
    for _ in range(2):
        with connect(shim.address, LISTED) as client:
            client.send(v1())
            with backend.accept() as mta:
                with frozen(shim, LONGER_S):
                    mta.send(b"220 mx.test for the shim alone\r\n")
                assert mta.line() == b"EHLO shim.test\r\n"


def test_a_final_reply_that_came_while_time_stood_still_ends_a_drain(
    start: StartProcess, backend: Backend
) -> None:
    shim = start(drain_timeout_s=0.2, drain_opaque_timeout_s=0.5)
    with ExitStack() as cleanup:
        client, mta = open_session(shim, backend, cleanup)
        begin_content(client, mta)
        client.send(b"hello\n.\n")
        mta.expect(b"hello\n.\n")
        shim.signal(signal.SIGTERM)
        shim.wait_event("drain_started")
        with frozen(shim, 1.5):
            mta.send(QUEUED)
        assert client.last_words() == QUEUED + SHUTTING_DOWN
