"""Notifications to the service manager: ready, reloading, stopping, status and watchdog."""

import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.integration.scripted.manager import Manager, listening_manager
from tests.integration.scripted.mta import Backend
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import (
    LISTED,
    STRANGER,
    connect,
    write_config,
)
from tests.integration.scripted.test_process import configure, listener, open_session
from tests.integration.scripted.test_relay import QUEUED, begin_content
from tests.integration.scripted.wire import LIMIT_S

WATCHDOG_S = 1.0
WATCHDOG = {"WATCHDOG_USEC": f"{WATCHDOG_S * 1e6:.0f}"}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with listening_manager(tmp_path) as listening:
        yield listening


def start(
    tmp_path: Path, backend: Backend, manager: Manager, **environment: str
) -> Process:
    """Start a shim as the manager does."""
    config = configure(tmp_path, backend, drain_timeout_s=LIMIT_S)
    return Process(config, environment={**manager.environment, **environment})


# Ready.


def test_ready_is_sent_when_the_shim_serves(
    tmp_path: Path, backend: Backend, manager: Manager
) -> None:
    with start(tmp_path, backend, manager) as shim:
        message = manager.wait_for("READY")
        assert message["READY"] == "1"
        assert re.fullmatch(
            r"Serving, 0 sessions of at most \d+; proxies listed: 1 for mx",
            message["STATUS"],
        )
        assert manager.messages == [message]  # it is the first message
        with connect(shim.address, STRANGER), backend.accept() as mta:
            mta.introduce()


def test_an_abstract_socket_can_be_used(tmp_path: Path, backend: Backend) -> None:
    manager = Manager(f"@proxyshim-test-{os.getpid()}-{time.monotonic_ns()}")
    try:
        with start(tmp_path, backend, manager):
            assert manager.wait_for("READY")["READY"] == "1"
    finally:
        manager.close()


def test_a_vanished_manager_does_no_harm(
    tmp_path: Path, backend: Backend, manager: Manager
) -> None:
    with start(tmp_path, backend, manager, **WATCHDOG) as shim:
        manager.wait_for("READY")
        manager.close()
        shim.signal(signal.SIGHUP)
        shim.wait_event("config_reloaded")
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0


def test_an_unsupported_socket_name_is_ignored(
    tmp_path: Path, backend: Backend
) -> None:
    environment = {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "soon"}
    with Process(configure(tmp_path, backend), environment=environment) as shim:
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0


# Reloading.


@pytest.mark.parametrize("broken", [False, True], ids=["good", "broken"])
def test_a_reload_is_reported_at_its_beginning_and_end(
    tmp_path: Path, backend: Backend, manager: Manager, broken: bool
) -> None:
    with start(tmp_path, backend, manager) as shim:
        manager.wait_for("READY")
        if broken:
            (tmp_path / "haproxy_hosts").write_text("everybody\n")
        before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        shim.signal(signal.SIGHUP)
        begun = manager.wait_for("RELOADING")
        after_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert begun["RELOADING"] == "1"
        assert before_us <= int(begun["MONOTONIC_USEC"]) <= after_us
        assert manager.wait_for("READY")["READY"] == "1"
        event = "config_rejected" if broken else "config_reloaded"
        shim.wait_event(event)
        assert len(shim.events(event)) == 1


def test_the_status_shows_how_the_last_reload_went(
    tmp_path: Path, backend: Backend, manager: Manager
) -> None:
    def status_after_reload() -> str:
        shim.signal(signal.SIGHUP)
        manager.wait_for("RELOADING")
        return manager.wait_for("READY")["STATUS"]

    at = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    hosts = tmp_path / "haproxy_hosts"
    with start(tmp_path, backend, manager) as shim:
        manager.wait_for("READY")
        hosts.write_text(f"{LISTED}\n192.0.2.0/24\n")
        good = status_after_reload()
        assert re.search(f"; proxies listed: 2 for mx; reloaded at {at}$", good)
        hosts.write_text("everybody\n")
        bad = status_after_reload()
        assert bad.startswith("Serving, 0 sessions of at most ")
        assert re.search(
            f"2 for mx; RELOAD REJECTED at {at}, nothing changed: .*everybody", bad
        )
        hosts.write_text(f"{LISTED}\n")
        assert "REJECTED" not in status_after_reload()


def test_the_log_shows_what_is_served_with(tmp_path: Path, backend: Backend) -> None:
    with Process(configure(tmp_path, backend)) as shim:
        (ready,) = shim.events("service_ready")
        assert (ready["proxies"], ready["denied"], ready["sessions"]) == (
            {"mx": 1},
            {"mx": 0},
            0,
        )
        (tmp_path / "haproxy_hosts").write_text(f"{LISTED}\n192.0.2.0/24\n")
        shim.signal(signal.SIGHUP)
        reloaded = shim.wait_event("config_reloaded")
        assert reloaded["proxies"] == {"mx": 2}
        assert reloaded["session_limit"] == ready["session_limit"] > 1


# Stopping.


def test_stopping_is_reported_with_the_sessions_left(
    tmp_path: Path, backend: Backend, manager: Manager
) -> None:
    with ExitStack() as cleanup:
        shim = cleanup.enter_context(start(tmp_path, backend, manager, **WATCHDOG))
        client, mta = open_session(shim, backend, cleanup)
        begin_content(client, mta)
        manager.wait(lambda m: m.get("STATUS", "").startswith("Serving, 1 sessions"))
        shim.signal(signal.SIGTERM)
        message = manager.wait_for("STOPPING")
        assert message == {"STOPPING": "1", "STATUS": "Draining, 1 sessions left"}
        # The watchdog does not fire during the drain.
        heartbeats = [manager.wait_for("WATCHDOG") for _ in range(3)]
        assert {each["STATUS"] for each in heartbeats} == {"Draining, 1 sessions left"}
        client.send(b"hello\r\n.\r\n")
        mta.expect(b"hello\r\n.\r\n")
        mta.send(QUEUED)
        client.expect(QUEUED)
        client.end()
        mta.close()
        assert shim.wait() == 0


# The watchdog.


def test_a_heartbeat_is_sent_twice_per_watchdog_interval(
    tmp_path: Path, backend: Backend, manager: Manager
) -> None:
    with start(tmp_path, backend, manager, **WATCHDOG):
        times = []
        for _ in range(4):
            manager.wait_for("WATCHDOG", "1")
            times.append(time.monotonic())
        took = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert all(0.5 * WATCHDOG_S / 2 < each < WATCHDOG_S for each in took)


def test_the_watchdog_of_another_process_gets_no_heartbeat(
    tmp_path: Path, backend: Backend, manager: Manager
) -> None:
    with start(tmp_path, backend, manager, **WATCHDOG, WATCHDOG_PID="1"):
        assert manager.lacks("WATCHDOG", for_s=2 * WATCHDOG_S)


# A shim whose event loop hangs for four seconds after SIGUSR2.
HANGS = """
import sys, time
from proxyshim import cli, metrics
from proxyshim.service import daemon
metrics.STUCK_S = 1.5
daemon.Daemon._upgrade = lambda self: time.sleep(4)
sys.argv[1:] = ["run", "-c", sys.argv[1]]
cli.main()
"""


def get(address: str, path: str) -> int:
    """Return the status of a page."""
    connection = HTTPConnection(address, timeout=LIMIT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_hanging_loop_sends_no_heartbeat_and_is_not_live(
    tmp_path: Path, backend: Backend, manager: Manager
) -> None:
    metrics = '[metrics]\nbind = "127.0.0.1:0"\n'
    (tmp_path / "haproxy_hosts").write_text("")
    config = write_config(tmp_path, [listener(backend)], metrics)
    argv = [sys.executable, "-c", HANGS]
    environment = {**manager.environment, **WATCHDOG}
    with Process(config, argv=argv, environment=environment) as shim:
        address = shim.wait_event("metrics_opened")["address"]
        manager.wait_for("WATCHDOG")
        assert get(address, "/livez") == 200
        shim.signal(signal.SIGUSR2)
        assert manager.lacks("WATCHDOG", for_s=3 * WATCHDOG_S)
        assert get(address, "/livez") == 503
        assert get(address, "/metrics") == 200
        manager.wait_for("WATCHDOG")
        wait_until_live(address)


def wait_until_live(address: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while get(address, "/livez") != 200:
        assert time.monotonic() < deadline
