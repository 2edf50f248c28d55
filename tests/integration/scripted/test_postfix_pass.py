"""Faults of a service that gets clients' sockets, which a Postfix does not show on demand."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxyshim.conveyance import pass_probe
from proxyshim.smtp import replies
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import CLIENT, CLIENT_PORT, LOCAL_CHECK, v1
from tests.integration.scripted.mta import GREETING, Backend
from tests.integration.scripted.shim import LISTED, STRANGER, Rig
from tests.integration.scripted.wire import LIMIT_S, Wire

OTHER = "127.0.0.4"
PASS = {"convey": "postfix-pass", "families": ["ipv4", "ipv6"]}


class Smtpd:
    """Plays Postfix's service: takes the sockets, in a thread, as the test says."""

    def __init__(self, path: Path) -> None:
        """Listen at *path*."""
        self.backend = Backend(path=path)
        self.receipts = self.greets = True
        self.dies = False
        self.clients: list[tuple[str, Wire]] = []
        self._changed = threading.Condition()
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take(self, address: str) -> Wire:
        """Wait for the socket of the client with that *address*."""
        with self._changed:
            came = self._changed.wait_for(
                lambda: any(name == address for name, _ in self.clients), LIMIT_S
            )
            assert came, f"{address} is not among {self.clients}"
            found = next(each for each in self.clients if each[0] == address)
            self.clients.remove(found)
        return found[1]

    def probes(self) -> int:
        """Return how many probes have come and were not taken."""
        with self._changed:
            return sum(name == "127.0.0.1" for name, _ in self.clients)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.backend._sock.accept()
            except OSError:
                return
            octets, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
            fields = octets[1:].split(b"\0")
            name = fields[fields.index(b"client_address") + 1].decode()
            client = Wire(socket.socket(fileno=descriptors[0]))
            os.set_blocking(descriptors[0], True)  # as smtpd does, also for the shim
            if self.dies:
                client.close()
                connection.close()
                continue
            if self.greets:
                client.send(GREETING)
            with self._changed:
                self.clients.append((name, client))
                self._changed.notify_all()
            if self.receipts:
                connection.close()
            else:
                self._kept.append(connection)

    def close(self) -> None:
        """Stop."""
        self.backend._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT_S)
        self.backend.close()
        for each in self._kept:
            each.close()
        for _, client in self.clients:
            client.close()


@pytest.fixture
def smtpd(tmp_path: Path) -> Iterator[Smtpd]:
    playing = Smtpd(tmp_path / "pass")
    yield playing
    playing.close()


@pytest.fixture
def rig(rig_with: OpenRig, smtpd: Smtpd) -> Rig:
    return rig_with(backend=smtpd.backend, **PASS)


def test_nothing_beyond_the_header_is_read(rig: Rig, smtpd: Smtpd) -> None:
    client = rig.connect(LISTED)
    client.send(v1() + b"EHLO early.test\r\n")
    with smtpd.take(CLIENT) as owner:
        owner.expect(b"EHLO early.test\r\n")
        story = rig.story()
        assert story["outcome"] == "handed_over"
        assert story["client"] == f"{CLIENT}:{CLIENT_PORT}"
        assert story["octets_in"] == len(v1())
        client.expect(GREETING)


def test_an_end_of_our_copy_is_no_end_for_the_client(rig: Rig, smtpd: Smtpd) -> None:
    client = rig.connect(STRANGER)
    with smtpd.take(STRANGER) as owner:
        rig.story()
        rig.shim.stop()
        owner.send(b"250 still here\r\n")
        client.expect(GREETING + b"250 still here\r\n")
        assert client.is_silent(0.05)


def test_what_looks_like_a_header_is_awaited(rig: Rig, smtpd: Smtpd) -> None:
    client = rig.connect(STRANGER)
    client.send(b"PROX")
    with rig.shim.held():
        client.send(b"Y TCP4 192.0.2.9 192.0.2.10 1 25\r\n")
    assert client.rest() == replies.header_forbidden(STRANGER)


def test_first_octets_that_are_no_header_go_through(rig: Rig, smtpd: Smtpd) -> None:
    client = rig.connect(STRANGER)
    client.send(b"PROFIT\r\n")
    with smtpd.take(STRANGER) as owner:
        owner.expect(b"PROFIT\r\n")


def test_without_a_receipt_the_client_gets_421_and_nothing_else(
    rig_with: OpenRig, smtpd: Smtpd
) -> None:
    """The socket reaches the service all the same, and the service greets."""
    smtpd.receipts = False
    rig = rig_with(backend=smtpd.backend, reply_timeout_s=0.2, **PASS)
    smtpd.greets = False
    client = rig.connect(STRANGER)
    with smtpd.take(STRANGER) as owner:
        assert client.rest() == replies.ALL_BUSY
        client.finish()
        story = rig.story()
        assert (story["outcome"], story["reason"]) == ("backend_failed", "pass_busy")
        # The connection is over for the service as well.
        with pytest.raises(BrokenPipeError):
            owner.send(GREETING)
        assert owner.end() == b""
    client.close()


def test_a_client_that_stays_after_its_421_stops_nobody_else(
    rig_with: OpenRig, smtpd: Smtpd
) -> None:
    """Smtpd has made the socket blocking, and the client sends nothing more."""
    rig = rig_with(backend=smtpd.backend, reply_timeout_s=0.2, **PASS)
    smtpd.take("127.0.0.1").close()  # the probe at the start
    smtpd.receipts = smtpd.greets = False
    silent = rig.connect(STRANGER)
    with smtpd.take(STRANGER):
        assert silent.rest() == replies.ALL_BUSY
        smtpd.receipts = smtpd.greets = True
        other = rig.connect(OTHER)
        other.expect(GREETING)
        smtpd.take(OTHER).close()


def test_a_client_that_leaves_does_not_wait_for_the_receipt(
    rig: Rig, smtpd: Smtpd
) -> None:
    smtpd.receipts = smtpd.greets = False
    client = rig.connect(STRANGER)
    with smtpd.take(STRANGER):
        client.reset()
        assert rig.story()["outcome"] == "client_lost"


def test_a_drain_does_not_wait_for_the_receipt(rig: Rig, smtpd: Smtpd) -> None:
    smtpd.receipts = smtpd.greets = False
    client = rig.connect(STRANGER)
    with smtpd.take(STRANGER):
        rig.shim.drain()
        assert client.rest() == replies.SHUTTING_DOWN


def test_a_service_that_takes_and_does_not_greet_is_down(
    rig_with: OpenRig, smtpd: Smtpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_probe, "GREETING_WITHIN_S", 0.1)
    monkeypatch.setattr(pass_probe, "REPEAT_S", 0.1)
    smtpd.greets = False
    rig = rig_with(backend=smtpd.backend, **PASS)
    failed = rig.events.wait("pass_failed")
    assert failed["reason"] == "pass_down"
    client = rig.connect(STRANGER)
    assert client.last_words() == replies.ALL_BUSY
    assert rig.story()["reason"] == "pass_down"
    smtpd.greets = True
    rig.events.wait("pass_recovered")
    client = rig.connect(STRANGER)
    client.expect(GREETING)


def test_a_probe_whose_smtpd_dies_is_repeated_first(
    rig_with: OpenRig, smtpd: Smtpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process that was killed is no service that is down."""
    monkeypatch.setattr(pass_probe, "REPEAT_S", 0.05)
    smtpd.greets = False
    rig = rig_with(backend=smtpd.backend, **PASS)
    killed = smtpd.take("127.0.0.1")
    smtpd.greets = True
    killed.close()
    with smtpd.take("127.0.0.1") as repeated:
        repeated.expect(b"QUIT\r\n")
    rig.connect(STRANGER).expect(GREETING)
    assert rig.events.find("pass_failed") == []


def test_a_service_whose_processes_all_die_is_down(
    rig_with: OpenRig, smtpd: Smtpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_probe, "GREETING_WITHIN_S", 0.2)
    monkeypatch.setattr(pass_probe, "REPEAT_S", 0.05)
    smtpd.dies = True
    rig = rig_with(backend=smtpd.backend, **PASS)
    failed = rig.events.wait("pass_failed")
    assert "closed before the reply" in failed["detail"]
    smtpd.dies = False
    rig.events.wait("pass_recovered")


def test_a_missing_receipt_begins_a_probe_at_once(
    rig_with: OpenRig, smtpd: Smtpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_probe, "RECEIPT_WITHIN_S", 0.2)
    rig = rig_with(backend=smtpd.backend, reply_timeout_s=0.2, **PASS)
    smtpd.take("127.0.0.1").close()  # the probe at the start
    smtpd.receipts = smtpd.greets = False
    client = rig.connect(STRANGER)
    assert client.last_words() == replies.ALL_BUSY
    failed = rig.events.wait("pass_failed")
    assert "no receipt within 0.2 s" in failed["detail"]


def test_a_health_check_gets_the_greeting_of_a_probe(rig: Rig, smtpd: Smtpd) -> None:
    smtpd.take("127.0.0.1").close()  # the probe at the start
    check = rig.connect(LISTED)
    check.send(LOCAL_CHECK)
    with smtpd.take("127.0.0.1") as probe:
        probe.expect(b"QUIT\r\n")
        check.expect(GREETING)
        check.send(b"EHLO check.test\r\nQUIT\r\n")
        assert check.last_words().endswith(replies.CHECK_CLOSING)
    assert rig.events.wait("session_closed")["outcome"] == "checked"


def test_a_socket_that_is_not_there_is_refused_until_it_is_back(
    rig_with: OpenRig, tmp_path: Path
) -> None:
    backend = Backend(path=tmp_path / "gone")
    rig = rig_with(backend=backend, **PASS)
    (tmp_path / "gone").unlink()
    client = rig.connect(STRANGER)
    assert client.last_words() == replies.ALL_BUSY
    story = rig.story()
    assert story["reason"] == "pass_refused"
    assert "ENOENT" in story["detail"]
    smtpd = Smtpd(tmp_path / "gone")
    rig.connect(STRANGER).expect(GREETING)
    rig.events.wait("backend_recovered")
    smtpd.close()
