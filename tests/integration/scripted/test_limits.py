"""Limits: clients over a limit can read a 421, and those within it are served."""

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from proxyshim.net.connection import Connection
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1, v2
from tests.integration.scripted.mta import GREETING, Backend, Mta
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import (
    LISTED,
    STRANGER,
    Rig,
    connect,
    write_config,
)
from tests.integration.scripted.test_process import (
    TOO_MANY,
    configure,
    listener,
    open_session,
)
from tests.integration.scripted.wire import LIMIT_S, Wire

UNAVAILABLE = b"421 4.3.0 Mail server not available, try again later\r\n"
OTHER_PROXY = "127.0.0.4"
HOSTS = f"{LISTED}\n{OTHER_PROXY}\n"


def limits(**keys: float) -> str:
    """Return a table [limits]."""
    lines = [f"{key} = {value}\n" for key, value in keys.items()]
    return "[limits]\n" + "".join(lines)


def is_shed(client: Wire) -> bool:
    """Return True if a client is answered with 421 and nothing else."""
    return client.last_words() == TOO_MANY


def leave(client: Wire, mta: Mta) -> None:
    """End a session from both ends."""
    client.close()
    mta.close()


# Sessions in total.


@pytest.fixture
def full(rig_with: OpenRig) -> Rig:
    """Return a shim whose session limit is reached."""
    rig = rig_with(extra=limits(sessions=2))
    rig.pair(v1())
    rig.pair()
    return rig


@pytest.mark.parametrize("header", [b"", v1(), v2()], ids=["direct", "v1", "v2"])
def test_a_session_over_the_limit_is_shed(full: Rig, header: bytes) -> None:
    with full.shim.held():  # so that the header has arrived when it accepts
        client = full.connect(LISTED if header else STRANGER)
        client.send(header)
    assert is_shed(client)
    assert full.backend.was_left_alone()
    shed = full.events.wait("connection_shed")
    assert (shed["reason"], shed["level"]) == ("too_many_sessions", "error")
    assert shed["sessions"] == 2


def test_a_client_that_sends_after_the_421_can_still_read_it(full: Rig) -> None:
    client = full.connect(LISTED)
    client.expect(TOO_MANY)
    client.send(v1())
    for _ in range(20):
        client.send(b"x" * 10_000)
    client.finish()
    assert client.rest() == b""  # and no reset


def test_many_connections_at_once_are_shed_and_logged_once(full: Rig) -> None:
    clients = [full.connect(LISTED) for _ in range(100)]
    for client in clients:
        client.expect(TOO_MANY)  # no client waits until another one is gone
    assert len(full.events.find("connection_shed")) == 1
    counted = full.shim.server.metrics.refusals
    assert counted["too_many_sessions"] == 100


def test_the_end_of_a_session_makes_room(full: Rig) -> None:
    assert is_shed(full.connect(STRANGER))
    full.opened.close()  # all clients disconnect
    full.story(2)
    full.shim.begin(asyncio.sleep(0))()  # the count is updated last
    full.pair(v1())


def test_a_reload_changes_the_limit(full: Rig) -> None:
    assert is_shed(full.connect(STRANGER))
    config = full.shim.config
    config.write_text(config.read_text().replace("sessions = 2", "sessions = 3"))
    full.shim.reload()
    full.pair(v1())
    assert is_shed(full.connect(STRANGER))


@pytest.mark.parametrize("configured", ["", limits(sessions=1000)])
def test_descriptors_limit_the_number_of_sessions(
    tmp_path: Path, backend: Backend, configured: str
) -> None:
    """Of 102 descriptors, 96 are for other purposes, and a session needs two."""
    (tmp_path / "haproxy_hosts").write_text(HOSTS)
    config = write_config(tmp_path, [listener(backend)], configured)
    run = [
        "prlimit",
        "--nofile=102:102",
        sys.executable,
        "-m",
        "proxyshim",
        "run",
        "-c",
    ]
    with ExitStack() as cleanup:
        shim = cleanup.enter_context(Process(config, argv=run))
        for _ in range(3):
            open_session(shim, backend, cleanup)
        with connect(shim.address, STRANGER) as client:
            assert is_shed(client)
        assert shim.wait_event("connection_shed")["reason"] == "too_many_sessions"


def test_a_soft_limit_on_descriptors_is_raised(
    tmp_path: Path, backend: Backend
) -> None:
    config = configure(tmp_path, backend)
    run = ["prlimit", "--nofile=70:200", sys.executable, "-m", "proxyshim", "run", "-c"]
    with Process(config, argv=run) as shim:
        found = Path(f"/proc/{shim.pid}/limits").read_text()
    [line] = [each for each in found.splitlines() if each.startswith("Max open files")]
    assert line.split()[3:5] == ["200", "200"]


# Sessions of one client.


@pytest.fixture
def shared(rig_with: OpenRig) -> Rig:
    return rig_with(hosts=HOSTS, extra=limits(sessions_per_client=2))


def refused_as_one_too_many(rig: Rig, header: bytes, proxy: str = LISTED) -> bool:
    """Return True if a client is answered with 421 and the backend is not contacted."""
    client = rig.connect(proxy)
    client.send(header + b"EHLO client.test\r\n")
    return is_shed(client) and rig.backend.was_left_alone()


@pytest.mark.parametrize("write", [v1, v2])
def test_a_client_cannot_exceed_its_share_of_sessions(
    shared: Rig, write: object
) -> None:
    assert callable(write)
    client, mta = shared.pair(write("203.0.113.7"))
    shared.pair(write("203.0.113.7"))
    assert refused_as_one_too_many(shared, write("203.0.113.7"))
    limited = shared.events.wait("client_limited")
    assert (limited["reason"], limited["level"]) == ("too_many_from_client", "warning")
    assert limited["claimed"] == "203.0.113.7:40001"
    story = shared.story()
    assert (story["outcome"], story["reason"]) == ("refused", "too_many_from_client")
    assert story["client"] == "203.0.113.7:40001"
    shared.pair(write("203.0.113.8"))  # another client is served
    leave(client, mta)
    shared.story(2)
    shared.pair(write("203.0.113.7"))  # and the same client again


def test_sessions_count_for_the_client_and_not_for_its_proxy(shared: Rig) -> None:
    shared.pair(v1(), LISTED)
    shared.pair(v1(), OTHER_PROXY)
    assert refused_as_one_too_many(shared, v1(), LISTED)
    assert refused_as_one_too_many(shared, v1(), OTHER_PROXY)


def test_sessions_of_a_direct_client_count_for_its_address(shared: Rig) -> None:
    shared.pair()
    shared.pair()
    client = shared.connect(STRANGER)
    assert is_shed(client)
    shared.pair(source="127.0.0.5")


def test_sessions_of_an_ipv6_client_count_for_its_network(shared: Rig) -> None:
    shared.pair(v2("2001:db8:1:2::1"))
    shared.pair(v2("2001:db8:1:2:a:b:c:d"))
    assert refused_as_one_too_many(shared, v2("2001:db8:1:2:ffff::"))
    shared.pair(v2("2001:db8:1:3::1"))


def test_a_client_that_was_shed_has_used_no_share(shared: Rig) -> None:
    sessions = [shared.pair(v1()) for _ in range(2)]
    for _ in range(3):
        assert refused_as_one_too_many(shared, v1())
    for client, mta in sessions:
        leave(client, mta)
    shared.story(5)
    shared.pair(v1())
    shared.pair(v1())
    assert refused_as_one_too_many(shared, v1())


def test_a_failed_session_gives_its_share_back(shared: Rig) -> None:
    for number in range(1, 5):
        client = shared.connect(LISTED)
        client.send(v1())
        shared.accept().close()
        assert client.last_words().startswith(b"421 4.")
        shared.story(number)
    shared.pair(v1())


# New connections per second.


def test_a_burst_is_shed_and_soon_served_again(rig_with: OpenRig) -> None:
    rig = rig_with(extra=limits(connections_per_s=5))
    with rig.shim.held():
        clients = [rig.connect(LISTED) for _ in range(8)]
        for client in clients:
            client.send(v1())
    for _ in range(5):
        rig.accept().introduce()
    for client in clients[:5]:
        client.expect(GREETING)
    for client in clients[5:]:
        assert is_shed(client)
    shed = rig.events.wait("connection_shed")
    assert (shed["reason"], shed["level"]) == ("too_many_connections", "error")
    assert rig.shim.server.metrics.refusals["too_many_connections"] == 3
    deadline = time.monotonic() + LIMIT_S
    while is_still_shed(rig):
        assert time.monotonic() < deadline


def is_still_shed(rig: Rig) -> bool:
    """Return True if a listed peer's next connection is shed, too."""
    client = rig.connect(LISTED)
    client.send(b"no header\r\n")
    return client.last_words() == TOO_MANY


# A peer that has vanished without closing its connection.


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0"])
def test_accepted_sockets_inherit_keepalive(rig_with: OpenRig, bind: str) -> None:
    """The kernel closes the connection of a vanished peer after four minutes."""
    rig = rig_with(bind=bind)
    with connect(rig.shim.address()), rig.accept():
        [session] = rig.shim.server._sessions
        connection = session._client
        assert isinstance(connection, Connection)
        options = [
            connection._sock.getsockopt(level, option)
            for level, option in (
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            )
        ]
    assert options == [1, 120, 30, 4]


# Out of descriptors: the one in reserve is used to answer a connection.


@contextmanager
def exhausted(config: Path, backend: Backend) -> Iterator[Process]:
    """Run a shim that has no descriptors left for another session."""
    with ExitStack() as cleanup:
        shim = cleanup.enter_context(Process(config))
        open_session(shim, backend, cleanup)  # it opens what all sessions share
        shim.leave_descriptors(2)
        open_session(shim, backend, cleanup)
        yield shim


def test_without_descriptors_a_proxy_gets_a_421_that_is_logged_once(
    tmp_path: Path, backend: Backend
) -> None:
    with exhausted(configure(tmp_path, backend), backend) as shim:
        for header in (v1(), v2(), b""):
            with connect(shim.address, LISTED) as proxy:
                proxy.send(header)
                assert proxy.end() == TOO_MANY  # the kernel may send a reset after it
        shim.wait_event("connection_shed")
        assert len(shim.events("connection_shed")) == 1
        assert shim.events("accepting_paused") == []


def test_a_lack_of_descriptors_for_the_backend_is_not_blamed_on_it(
    tmp_path: Path, backend: Backend
) -> None:
    with ExitStack() as cleanup:
        shim = cleanup.enter_context(Process(configure(tmp_path, backend)))
        open_session(shim, backend, cleanup)
        shim.leave_descriptors(1)
        with connect(shim.address, STRANGER) as client:
            assert client.last_words() == UNAVAILABLE
        failed = shim.wait_event("backend_failed")
        assert failed["reason"] == "out_of_descriptors"
        assert backend.was_left_alone()


def test_without_descriptors_an_agent_check_is_answered(
    tmp_path: Path, backend: Backend
) -> None:
    """It has its own.  The backend has replied just now, and so it counts as up."""
    config = configure(tmp_path, backend, agent_bind="127.0.0.1:0")
    with (
        exhausted(config, backend) as shim,
        connect(shim.wait_event("agent_opened")["address"], LISTED) as check,
    ):
        assert check.end() == b"up ready\n"
