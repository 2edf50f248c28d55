"""Upgrade in place: a successor takes over, or the old process serves again if it fails."""

import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Self

import pytest

from tests.integration.lab.counting_mta import CountingMta
from tests.integration.scripted.hammer import Hammer
from tests.integration.scripted.headers import v1
from tests.integration.scripted.manager import Manager, listening_manager
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import (
    LISTED,
    SETTINGS,
    STRANGER,
    connect,
    write_config,
)
from tests.integration.scripted.wire import LIMIT_S, Wire

METRICS = '[metrics]\nbind = "127.0.0.1:0"\n'
BYE = b"221 2.0.0 bye\r\n"
SHUTTING_DOWN = b"421 4.3.2 Service shutting down, try again later\r\n"
EX_CONFIG = 78

# A program that waits one second for its successor, and that is never ready as a successor.
HANGS = """
import os, signal, sys
from proxyshim import cli
from proxyshim.service import daemon
daemon._SUCCESSOR_READY_S = 1.0
if "PROXYSHIM_PREDECESSOR" in os.environ:
    signal.pause()
sys.argv[1:] = ["run", "-c", sys.argv[1]]
cli.main()
"""


class Other:
    """A process that is not a child of the test, such as a successor."""

    def __init__(self, pid: int) -> None:
        """Refer to a process; leaving the ``with`` block ends it."""
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Kill it if it is still running."""
        if not self.has_ended(0):
            self.signal(signal.SIGKILL)
            assert self.has_ended(LIMIT_S)
        os.close(self._descriptor)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        signal.pidfd_send_signal(self._descriptor, number)

    def has_ended(self, within_s: float = LIMIT_S) -> bool:
        """Wait up to *within_s*; return True if it has ended."""
        return bool(select.select([self._descriptor], [], [], within_s)[0])


@dataclass
class Service:
    """A shim with every kind of listening socket, its backend and its service manager."""

    shim: Process
    manager: Manager
    config: Path
    unix: Path
    opened: ExitStack

    def upgrade(self) -> Other:
        """Let a successor take over; return it."""
        self.shim.signal(signal.SIGUSR2)
        return self.successor(1)

    def successor(self, number: int) -> Other:
        """Return the *number*-th successor that took over."""
        event = self.shim.wait_event("upgrade_handed_over", number=number)
        return self.opened.enter_context(Other(event["successor"]))

    def begin_content(self, message_id: str) -> Wire:
        """Open a session in the middle of a message."""
        client = self.opened.enter_context(connect(self.shim.address, STRANGER))
        client.send(
            b"EHLO c\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n"
        )
        for code in (b"220", b"250", b"250", b"250", b"354"):
            assert client.reply().startswith(code)
        client.send(b"Message-ID: %s\r\n" % message_id.encode())
        return client

    def finish_content(self, client: Wire) -> None:
        """End the message and receive the reply."""
        client.send(b"\r\nhello\r\n.\r\n")
        client.expect(b"250 2.0.0 accepted\r\n")

    def serves_smtp(self) -> bool:
        """Return True if it greets clients and, on the unix socket, proxies."""
        with (
            connect(self.shim.address, STRANGER) as client,
            connect(f"unix:{self.unix}") as proxy,
        ):
            proxy.send(v1())
            return client.line().startswith(b"220 ") and proxy.line().startswith(
                b"220 "
            )

    def sessions_shown(self) -> float:
        """Return the number of sessions in the metrics."""
        address = self.shim.wait_event("metrics_opened")["address"]
        connection = HTTPConnection(address, timeout=LIMIT_S)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        [line] = [
            each
            for each in text.splitlines()
            if each.startswith("proxyshim_sessions_open ")
        ]
        return float(line.split()[1])

    def agent_answer(self) -> bytes:
        """Return the answer to an agent check."""
        with connect(self.shim.wait_event("agent_opened")["address"], LISTED) as check:
            return check.end()


@contextmanager
def a_service(
    directory: Path, code: str | None = None, **environment: str
) -> Iterator[Service]:
    """Start a service; *code* replaces the program."""
    (directory / "haproxy_hosts").write_text(f"{LISTED}\n")
    unix = directory / "front"
    with ExitStack() as cleanup:
        listening = cleanup.enter_context(
            closing(socket.create_server(("127.0.0.1", 0)))
        )
        cleanup.enter_context(CountingMta(listening))
        listener = {
            **SETTINGS,
            "name": "mx",
            "bind": ["127.0.0.1:0", f"unix:{unix}"],
            "backend": f"127.0.0.1:{listening.getsockname()[1]}",
            "haproxy_hosts": "haproxy_hosts",
            "agent_bind": "127.0.0.1:0",
            "drain_timeout_s": LIMIT_S,
        }
        config = write_config(directory, [listener], METRICS)
        manager = cleanup.enter_context(listening_manager(directory))
        run = ["-c", code] if code else ["-m", "proxyshim", "run", "-c"]
        shim = cleanup.enter_context(
            Process(
                config,
                argv=[sys.executable, *run],
                environment={**manager.environment, **environment},
            )
        )
        opened = cleanup.enter_context(ExitStack())
        yield Service(shim, manager, config, unix, opened)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with a_service(tmp_path) as running:
        yield running


# A successful upgrade.


def test_a_successor_takes_over_and_the_old_process_finishes(service: Service) -> None:
    with Hammer(service.shim.address) as hammer:
        client = service.begin_content("<old@test>")
        successor = service.upgrade()
        hammer.wait_for_more(20)
        service.finish_content(client)  # the old process serves it to its end
        client.send(b"QUIT\r\n")
        client.expect(BYE)
        client.close()
        assert service.manager.wait_for("MAINPID")["MAINPID"] == str(successor.pid)
        assert service.shim.exit_code() == 0
        hammer.wait_for_more(20)
        assert service.unix.is_socket()
        assert service.serves_smtp()
        assert service.agent_answer() == b"up ready\n"
        assert service.sessions_shown() <= 1
    assert (hammer.refused, hammer.lost) == (0, [])
    assert hammer.slowest_s < 2.0
    successor.signal(signal.SIGTERM)
    assert successor.has_ended()
    assert not service.unix.exists()
    assert service.shim.events("upgrade_failed") == []


def test_metrics_and_agent_checks_come_from_the_successor_alone(
    service: Service,
) -> None:
    service.begin_content("<old@test>")
    assert service.sessions_shown() == 1
    service.upgrade()
    assert {service.sessions_shown() for _ in range(10)} == {0}
    assert {service.agent_answer() for _ in range(10)} == {b"up ready\n"}
    service.shim.signal(signal.SIGTERM)  # it drains the old process and not the service
    service.shim.wait_event("drain_started")
    assert {service.agent_answer() for _ in range(10)} == {b"up ready\n"}
    assert {service.sessions_shown() for _ in range(10)} == {0}


def test_a_successor_can_be_upgraded_and_reloaded(service: Service) -> None:
    successor = service.upgrade()
    assert service.shim.exit_code() == 0  # it had no sessions
    successor.signal(signal.SIGUSR2)
    second = service.successor(2)
    assert successor.has_ended()
    assert service.serves_smtp()
    second.signal(signal.SIGHUP)
    service.shim.wait_event("config_reloaded")
    second.signal(signal.SIGTERM)
    assert second.has_ended()


def test_a_successor_opens_the_sockets_of_the_new_configuration(
    service: Service,
) -> None:
    unix = service.unix.with_name("another")
    text = service.config.read_text()
    service.config.write_text(text.replace(f"unix:{service.unix}", f"unix:{unix}"))
    service.shim.signal(signal.SIGHUP)
    assert service.shim.wait_event("restart_needed")["keys"] == ["listener.bind"]
    service.upgrade()
    assert service.shim.wait_event("sockets_unused")["names"] == [
        f"listener mx: bind unix:{service.unix}#0"
    ]
    with connect(f"unix:{unix}") as proxy:
        proxy.send(v1())
        assert proxy.line().startswith(b"220 ")


# One at a time.


def test_a_second_upgrade_is_refused_while_the_old_process_lives(
    service: Service,
) -> None:
    client = service.begin_content("<old@test>")
    service.upgrade()
    service.shim.signal(signal.SIGUSR2)
    refused = service.shim.wait_event("upgrade_refused")
    assert refused["level"] == "warning"
    assert len(service.shim.events("upgrade_started")) == 1
    service.finish_content(client)
    assert service.serves_smtp()


# The successor fails.


@pytest.mark.parametrize("fault", ["not TOML", "a port in use"])
def test_a_successor_that_cannot_start_leaves_the_old_process_serving(
    service: Service, fault: str
) -> None:
    text = service.config.read_text()
    in_use = service.shim.address
    more = f'[[listener]]\nname="x"\nbind=["{in_use}"]\nbackend="127.0.0.1:1"\n'
    with Hammer(service.shim.address) as hammer:
        service.config.write_text("[" if fault == "not TOML" else text + more)
        service.shim.signal(signal.SIGUSR2)
        failed = service.shim.wait_event("upgrade_failed")
        assert (failed["status"], failed["took_over"]) == (EX_CONFIG, False)
        assert failed["level"] == "error"
        hammer.wait_for_more()
        assert service.serves_smtp()  # also on its unix socket
        service.config.write_text(text)  # and when it is correct again
        service.upgrade()
        assert service.shim.exit_code() == 0
        hammer.wait_for_more()
        assert service.serves_smtp()
    assert (hammer.refused, hammer.lost) == (0, [])


def test_a_successor_that_is_never_ready_leaves_the_old_process_serving(
    tmp_path: Path,
) -> None:
    with a_service(tmp_path, HANGS) as service, Hammer(service.shim.address) as hammer:
        service.shim.signal(signal.SIGUSR2)
        service.shim.wait_event("upgrade_started")
        service.shim.signal(signal.SIGUSR2)
        service.shim.wait_event("upgrade_refused")
        failed = service.shim.wait_event("upgrade_failed")
        assert (failed["status"], failed["took_over"]) == (-signal.SIGKILL, False)
        hammer.wait_for_more()
        assert service.serves_smtp()
    assert (hammer.refused, hammer.lost) == (0, [])


def test_the_old_process_takes_over_from_a_killed_successor(service: Service) -> None:
    """Only the old process can notice, because the manager is not the parent."""
    with Hammer(service.shim.address) as hammer:
        client = service.begin_content("<old@test>")
        successor = service.upgrade()
        hammer.wait_for_more()
        successor.signal(signal.SIGKILL)
        failed = service.shim.wait_event("upgrade_failed")
        assert (failed["status"], failed["took_over"]) == (-signal.SIGKILL, True)
        hammer.wait_for_more()
        assert service.serves_smtp()
        assert service.sessions_shown() >= 1
        assert service.agent_answer() == b"up ready\n"
        service.finish_content(client)
        client.close()
        # It serves again, so it does not exit after its last old session and can upgrade again.
        service.shim.signal(signal.SIGUSR2)
        second = service.successor(2)
        assert service.manager.wait_for("MAINPID")["MAINPID"] == str(second.pid)
        assert service.shim.exit_code() == 0
        hammer.wait_for_more()
    assert hammer.refused == 0
    assert len(hammer.lost) <= 1  # the one that the killed process served


def test_the_old_process_takes_over_from_a_hanging_successor(tmp_path: Path) -> None:
    with a_service(tmp_path, WATCHDOG_USEC="1000000") as service:
        client = service.begin_content("<old@test>")
        successor = service.upgrade()
        successor.signal(signal.SIGSTOP)
        failed = service.shim.wait_event("upgrade_failed")
        assert (failed["status"], failed["took_over"]) == (-signal.SIGABRT, True)
        assert service.serves_smtp()
        service.finish_content(client)


# SIGHUP and SIGTERM during an upgrade.


def test_a_reload_is_passed_on_to_the_successor(service: Service) -> None:
    service.begin_content("<old@test>")
    service.upgrade()
    (service.config.parent / "haproxy_hosts").write_text(f"{STRANGER}\n")
    service.shim.signal(signal.SIGHUP)
    service.shim.wait_event("config_reloaded")
    with connect(service.shim.address, STRANGER) as proxy:
        proxy.send(v1())
        assert proxy.line().startswith(b"220 ")
    assert len(service.shim.events("config_reloaded")) == 1


def test_sigterm_drains_the_old_process_alone(service: Service) -> None:
    client = service.begin_content("<old@test>")
    idle = service.opened.enter_context(connect(service.shim.address, STRANGER))
    assert idle.line().startswith(b"220 ")
    service.upgrade()
    service.shim.signal(signal.SIGTERM)
    assert idle.last_words() == SHUTTING_DOWN
    service.finish_content(client)
    assert client.last_words() == SHUTTING_DOWN
    assert service.shim.exit_code() == 0
    assert service.serves_smtp()


def test_a_stop_of_the_successor_stops_the_service(service: Service) -> None:
    """The old process drains its sessions, too, instead of taking over."""
    client = service.begin_content("<old@test>")
    successor = service.upgrade()
    successor.signal(signal.SIGTERM)
    assert successor.has_ended()
    service.finish_content(client)
    assert client.last_words() == SHUTTING_DOWN
    assert service.shim.exit_code() == 0
    assert not service.unix.exists()
    with pytest.raises(ConnectionRefusedError):
        connect(service.shim.address)


def test_a_stop_before_the_successor_serves_ends_both(tmp_path: Path) -> None:
    patient = HANGS.replace("= 1.0", "= 60.0")
    with a_service(tmp_path, patient) as service:
        client = service.begin_content("<old@test>")
        service.shim.signal(signal.SIGUSR2)
        pid = service.shim.wait_event("upgrade_started")["successor"]
        with Other(pid) as successor:
            service.shim.signal(signal.SIGTERM)
            assert successor.has_ended()
            service.finish_content(client)
            assert client.last_words() == SHUTTING_DOWN
            assert service.shim.exit_code() == 0
        assert not service.unix.exists()
        with pytest.raises(ConnectionRefusedError):
            connect(service.shim.address)
