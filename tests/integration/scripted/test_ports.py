"""The metrics and the agent port: mail goes on however they are misused."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest

from proxyshim.service.set_aside import MAX_CONNECTIONS
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.mta import (
    EHLO,
    FIRST_GREETING,
    GREETING,
    OFFER,
    Backend,
)
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import LISTED, STRANGER, Rig, connect, write_config
from tests.integration.scripted.test_agent import answer_health_check, ask
from tests.integration.scripted.test_metrics import METRICS, get
from tests.integration.scripted.test_process import listener, open_session
from tests.integration.scripted.wire import LIMIT_S, Wire

DRIPPING = 300
MAX_DESCRIPTORS = 256


@pytest.fixture
def metered(rig_with: OpenRig) -> Rig:
    return rig_with(extra=METRICS)


def open_metrics(rig: Rig) -> Wire:
    """Connect to the metrics port."""
    address = rig.events.wait("metrics_opened")["address"]
    return rig.opened.enter_context(connect(address))


# A flood of connections.


@pytest.fixture
def shim(tmp_path: Path, backend: Backend) -> Iterator[Process]:
    """Run a shim with few descriptors."""
    (tmp_path / "haproxy_hosts").write_text(f"{LISTED}\n")
    config = write_config(
        tmp_path, [listener(backend, agent_bind="127.0.0.1:0")], METRICS
    )
    limit = f"--nofile={MAX_DESCRIPTORS}:{MAX_DESCRIPTORS}"
    argv = ["prlimit", limit, sys.executable, "-m", "proxyshim", "run", "-c"]
    with Process(config, argv=argv) as process:
        yield process


def is_live(address: str) -> bool:
    """Ask as a supervisor does."""
    connection = HTTPConnection(address, timeout=LIMIT_S)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def check_mail(shim: Process, backend: Backend) -> None:
    """Check that a client is greeted, whatever agent checks reach the backend as well."""
    with connect(shim.address, STRANGER) as client:
        while True:
            with backend.accept() as mta:
                mta.send(FIRST_GREETING)
                if mta.line() != EHLO:  # a check that has given up
                    continue
                mta.send(OFFER)
                if mta.line().startswith(b"XCLIENT "):
                    mta.send(GREETING)
                    client.expect(GREETING)
                    return


@pytest.mark.parametrize(
    ("port", "source"), [("metrics_opened", None), ("agent_opened", LISTED)]
)
def test_connections_that_drip_harm_nobody(
    shim: Process, backend: Backend, port: str, source: str | None
) -> None:
    address = shim.wait_event(port)["address"]
    metrics = shim.wait_event("metrics_opened")["address"]
    with ExitStack() as cleanup:
        before = shim.descriptors()
        for _ in range(DRIPPING):
            client = cleanup.enter_context(connect(address, source))
            try:
                client.send(b"G")
            except ConnectionError:
                continue  # it has lost its place already
        check_mail(shim, backend)
        assert is_live(metrics)
        assert shim.threads() <= 4  # the loop, the log, HTTP, and uvloop's own
        # Those of a session and of checks of the backend, but not of connections: they are
        # set aside.
        assert shim.descriptors() <= before + 8
        used = shim.cpu_s()
        time.sleep(0.5)  # what is measured is this time
        assert shim.cpu_s() - used < 0.25  # it does not spin
    assert shim.events("accepting_paused") == []


def test_the_metrics_port_has_descriptors_when_sessions_have_taken_all_others(
    shim: Process, backend: Backend
) -> None:
    metrics = shim.wait_event("metrics_opened")["address"]
    with ExitStack() as cleanup:
        open_session(shim, backend, cleanup)
        shim.leave_descriptors(2)
        open_session(shim, backend, cleanup)
        for _ in range(2 * MAX_CONNECTIONS):
            assert is_live(metrics)


# One connection.


def is_closed_while_sending(client: Wire, octets: bytes) -> bool:
    """Send again and again; return True if the other end closes meanwhile."""
    until = time.monotonic() + LIMIT_S
    try:
        while time.monotonic() < until:
            client.send(octets)
            time.sleep(0.05)
    except ConnectionError:
        return True
    return False


def test_a_metrics_client_that_says_nothing_is_closed_at_the_deadline(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.service.http.DEADLINE_S", 0.3)
    rig = rig_with(extra=METRICS)
    silent, dripping = open_metrics(rig), open_metrics(rig)
    assert is_closed_while_sending(dripping, b"x")
    assert silent.end() == b""


def test_a_metrics_client_that_reads_nothing_is_closed_at_the_deadline(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyshim.service.http.DEADLINE_S", 0.3)
    rig = rig_with(extra=METRICS)
    client = open_metrics(rig)
    client.send(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert is_closed_while_sending(client, b"x" * 1_000)


def test_the_oldest_metrics_connection_makes_room_for_a_new_one(metered: Rig) -> None:
    silent = [open_metrics(metered) for _ in range(MAX_CONNECTIONS)]
    assert get(metered, "/livez")[0] == 200
    assert silent[0].end() == b""
    silent[-1].send(b"GET /livez HTTP/1.0\r\n\r\n")
    assert silent[-1].last_words().startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK"),
        (b"GET /livez HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"GET /livez?x=1 HTTP/1.1\n\n", b"200 OK"),
        (b"POST /livez HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"GET /livez\r\n\r\n", b"400 Bad Request"),
        (b"GET http://x/livez HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00" + b"\0" * 300 + b"\r\n\r\n", b"400 Bad Request"),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 9_000, b"400 Bad Request"),
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_request_is_answered_and_the_connection_closed(
    metered: Rig, request_: bytes, status: bytes, in_pieces: bool
) -> None:
    client = open_metrics(metered)
    if in_pieces and len(request_) < 100:
        client.send_each_octet(request_)
    else:
        client.send(request_)
    head, _, body = client.last_words().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert b"\r\nConnection: close" in head
    assert body == status + b"\n"


def test_a_request_that_ends_early_is_refused(metered: Rig) -> None:
    client = open_metrics(metered)
    client.send(b"GET /livez HTTP/1.1\r\n")
    client.finish()
    assert client.last_words().startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_head_gets_the_headers_alone(metered: Rig) -> None:
    client = open_metrics(metered)
    client.send(b"HEAD /livez HTTP/1.1\r\n\r\n")
    response = client.last_words()
    assert b"\r\nContent-Length: 7\r\n" in response
    assert response.endswith(b"\r\n\r\n")


def test_a_scraper_gets_the_format_that_it_asks_for(metered: Rig) -> None:
    client = open_metrics(metered)
    client.send(
        b"GET /metrics HTTP/1.1\r\n"
        b"Accept: application/openmetrics-text; version=1.0.0\r\n\r\n"
    )
    head, _, body = client.last_words().partition(b"\r\n\r\n")
    assert b"Content-Type: application/openmetrics-text" in head
    assert body.endswith(b"# EOF\n")


# The agent port.


def test_at_most_eight_agent_checks_are_answered_at_once(rig_with: OpenRig) -> None:
    rig = rig_with(agent_bind="127.0.0.1:0")
    checks = [ask(rig) for _ in range(3 * MAX_CONNECTIONS)]
    mta = rig.accept()  # the shim has accepted all that it will
    assert rig.shim.server._agent_checks.acceptor._open <= MAX_CONNECTIONS
    answer_health_check(mta)
    assert {check.last_words() for check in checks} == {b"up ready\n"}
