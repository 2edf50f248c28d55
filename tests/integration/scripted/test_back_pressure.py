"""Back pressure both ways: a slow end makes the other end wait, and costs no memory."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import EXTENSIONS, GREETING, Backend, Mta
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import LISTED, SETTINGS, connect, write_config
from tests.integration.scripted.test_relay import QUEUED, begin_content
from tests.integration.scripted.tls_wire import TlsWire, client_context
from tests.integration.scripted.wire import LIMIT_S, Wire

MEGABYTE = 1_000_000
BODY = 200 * MEGABYTE
# Room for one read each way, and for Python's overhead.
ALLOWED = 8 * MEGABYTE

LINE = bytes(range(33, 127)) * 10 + b"\r\n"


Session = tuple[Process, Wire, Mta]


@contextmanager
def open_session(directory: Path, ca: Authority | None = None) -> Iterator[Session]:
    """Open a relaxed session through a shim in its own process; with *ca*, inside its TLS."""
    (directory / "haproxy_hosts").write_text(f"{LISTED}\n")
    with ExitStack() as cleanup:
        backend = Backend()
        cleanup.callback(backend.close)
        listener: dict[str, object] = {
            **SETTINGS,
            "name": "mx",
            "bind": "127.0.0.1:0",
            "backend": backend.name,
            "haproxy_hosts": "haproxy_hosts",
        }
        if ca is not None:
            listener["tls"] = "implicit"
            listener["certificates"] = [ca.sign("mx.test").as_setting()]
        shim = cleanup.enter_context(Process(write_config(directory, [listener])))
        client = cleanup.enter_context(connect(shim.address, LISTED))
        client.send(v1())
        if ca is not None:
            client = TlsWire(client, client_context(ca.path), "mx.test")
        client.send(b"EHLO client.test\r\n")
        mta = cleanup.enter_context(backend.accept())
        mta.introduce()
        mta.expect(b"EHLO client.test\r\n")
        mta.send(EXTENSIONS)
        client.expect(GREETING + EXTENSIONS)
        yield shim, client, mta


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with open_session(tmp_path) as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def either_session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    with open_session(
        tmp_path, Authority(tmp_path) if request.param else None
    ) as opened:
        yield opened


class Sender:
    """Sends in a thread, and counts."""

    def __init__(self, wire: Wire, chunk: bytes, octets: int) -> None:
        """Send *chunk* over and over, *octets* bytes in all."""
        self.sent = 0
        self._wire, self._chunk, self._octets = wire, chunk, octets
        self._progress = threading.Condition()
        # Half a million replies pass while one send waits, which takes many seconds on a
        # busy machine.
        wire.sock.settimeout(4 * LIMIT_S)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while self.sent < self._octets:
            start = self.sent % len(self._chunk)
            end = start + self._octets - self.sent
            try:
                count = self._wire.sock.send(self._chunk[start:end])
            except ConnectionError:
                return
            with self._progress:
                self.sent += count
                self._progress.notify_all()

    def wait_until_stuck(self) -> int:
        """Wait until the other end takes no more; return how much was sent."""
        with self._progress:
            while self._progress.wait(0.3):
                pass
            return self.sent

    def join(self) -> None:
        """Wait until everything is sent."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


def take(wire: Wire, octets: int, chunk: bytes) -> None:
    """Read *octets* bytes of repeated *chunk*, and check each, but keep none."""
    block = memoryview(bytearray(1_048_576))
    expected = chunk * (len(block) // len(chunk) + 2)
    position = 0
    while position < octets:
        count = wire.sock.recv_into(block[: octets - position])
        assert count > 0
        start = position % len(chunk)
        assert block[:count] == expected[start : start + count]
        position += count


def test_a_slow_backend_makes_the_client_wait(either_session: Session) -> None:
    shim, client, mta = either_session
    begin_content(client, mta)
    before = shim.forget_peak_memory()
    sender = Sender(client, LINE * 200, BODY)
    stuck_at = sender.wait_until_stuck()
    assert stuck_at < BODY / 4  # what the kernel's buffers hold
    took = shim.cpu_s()
    assert sender.wait_until_stuck() == stuck_at
    assert shim.cpu_s() - took < 0.1  # waiting costs nothing
    take(mta, BODY, LINE)
    sender.join()
    assert shim.peak_memory() - before < ALLOWED
    client.send(b".\r\n")
    mta.expect(b".\r\n")
    mta.send(QUEUED)
    client.expect(QUEUED)


def test_a_client_that_does_not_read_makes_the_backend_wait(
    session: Session,
) -> None:
    shim, client, mta = session
    reply = b"214-" + LINE + b"214 end\r\n"
    count = BODY // 4 // len(reply)
    before = shim.forget_peak_memory()
    # The replies come without waiting for the questions.  With more than 1,000 questions,
    # the shim could wait for replies that have passed already.
    asking = Sender(client, b"HELP\r\n", 6 * 500)
    answering = Sender(mta, reply, len(reply) * count)
    stuck_at = answering.wait_until_stuck()
    assert stuck_at < len(reply) * count / 2
    hungry = threading.Thread(target=take, args=(mta, 6 * 500, b"HELP\r\n"))
    hungry.start()
    take(client, len(reply) * count, reply)
    for thread in (asking, answering, hungry):
        thread.join()
    assert shim.peak_memory() - before < ALLOWED


def test_endless_commands_are_not_read_while_replies_are_missing(
    session: Session,
) -> None:
    shim, client, mta = session
    before = shim.forget_peak_memory()
    asking = Sender(client, b"NOOP\r\n" * 1000, BODY)
    assert asking.wait_until_stuck() < BODY / 4
    assert shim.peak_memory() - before < ALLOWED
    mta.reset()
    asking.join()


def test_endless_replies_are_not_read_while_the_client_does_not_read(
    session: Session,
) -> None:
    """After STARTTLS, where the guard does not count replies."""
    shim, client, mta = session
    client.send(b"STARTTLS\r\n")
    mta.expect(b"STARTTLS\r\n")
    mta.send(b"220 go\r\n")
    client.expect(b"220 go\r\n")
    before = shim.forget_peak_memory()
    answering = Sender(mta, LINE * 200, BODY)
    assert answering.wait_until_stuck() < BODY / 4
    take(client, BODY, LINE)
    answering.join()
    assert shim.peak_memory() - before < ALLOWED


def test_endless_replies_inside_our_tls_wait_for_the_client(tmp_path: Path) -> None:
    with open_session(tmp_path, Authority(tmp_path)) as (shim, client, mta):
        reply = b"214-" + LINE + b"214 end\r\n"
        count = BODY // 4 // len(reply)
        client.send(b"HELP\r\n" * 500)
        take(mta, 6 * 500, b"HELP\r\n")
        before = shim.forget_peak_memory()
        answering = Sender(mta, reply, len(reply) * count)
        assert answering.wait_until_stuck() < len(reply) * count / 2
        take(client, len(reply) * 400, reply)
        assert shim.peak_memory() - before < ALLOWED
        client.close()
        answering.join()
