"""Binding while the world is not ready: wait, then let the service manager try again."""

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.mta import Backend
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import LISTED, STRANGER, connect, write_config
from tests.integration.scripted.test_process import EX_CONFIG, configure, listener
from tests.integration.scripted.wire import LIMIT_S

EX_TEMPFAIL = 75
# This network is for documentation (RFC 5737), so no host has an address in it.
NOT_HERE = "192.0.2.25:2525"


@contextmanager
def started(config: Path, **options: object) -> Iterator[Process]:
    """Start a shim that need not serve."""
    shim = Process(config, **options)  # type: ignore[arg-type]
    try:
        yield shim
    finally:
        shim.kill()


def a_socket_in_use() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def name_of(sock: socket.socket) -> str:
    return f"127.0.0.1:{sock.getsockname()[1]}"


def ends_with(shim: Process, status: int) -> str:
    """Wait for the end; return the last line of the log."""
    assert shim.wait() == status
    return shim.lines.since()[-1]


# Tried again.


def test_a_port_that_is_busy_for_a_moment_is_served_when_it_is_free(
    tmp_path: Path, backend: Backend
) -> None:
    busy = a_socket_in_use()
    config = configure(tmp_path, backend, bind=name_of(busy))
    with started(config) as shim:
        failed = shim.wait_event("bind_failed")
        assert (failed["level"], failed["key"]) == ("warning", "listener mx: bind")
        assert failed["value"] == name_of(busy)
        assert "in use" in failed["detail"]
        busy.close()
        shim.wait_event("service_ready")
        assert len(shim.events("bind_failed")) == 1
        with connect(shim.address, STRANGER), backend.accept() as mta:
            mta.introduce()


def test_a_unix_socket_that_is_busy_for_a_moment_is_served(
    tmp_path: Path, backend: Backend
) -> None:
    path = tmp_path / "front"
    other = Backend(path=path)
    with started(configure(tmp_path, backend, bind=other.name)) as shim:
        assert "in use" in shim.wait_event("bind_failed")["detail"]
        with connect(other.name), other.accept():
            pass  # the other process still listens
        other.close()
        shim.wait_event("service_ready")


def test_nobody_waits_in_the_queue_of_a_process_that_may_end(
    tmp_path: Path, backend: Backend
) -> None:
    with closing(a_socket_in_use()) as busy, closing(a_socket_in_use()) as free:
        names = [name_of(free), name_of(busy)]
        free.close()
        with started(configure(tmp_path, backend, bind=names)) as shim:
            shim.wait_event("bind_failed")
            with pytest.raises(ConnectionRefusedError):
                connect(names[0])


@pytest.mark.parametrize(
    "address", [NOT_HERE, "a port in use", "unresolvable.invalid:25"]
)
def test_after_the_limit_the_manager_shall_try_again(
    tmp_path: Path, backend: Backend, address: str
) -> None:
    path = tmp_path / "front"
    with closing(a_socket_in_use()) as busy:
        bind = name_of(busy) if address == "a port in use" else address
        config = configure(
            tmp_path, backend, bind=[f"unix:{path}", bind], bind_timeout_s=0.1
        )
        with started(config) as shim:
            message = ends_with(shim, EX_TEMPFAIL)
        assert f"proxyshim: {config}: listener mx: bind = '{bind}': " in message
        assert not path.exists()


def test_a_stop_during_the_wait_ends_the_process(
    tmp_path: Path, backend: Backend
) -> None:
    path = tmp_path / "front"
    config = configure(tmp_path, backend, bind=[f"unix:{path}", NOT_HERE])
    with started(config) as shim:
        shim.wait_event("bind_failed")
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0
        assert not path.exists()


def test_a_reload_during_the_wait_is_not_lost(tmp_path: Path, backend: Backend) -> None:
    busy = a_socket_in_use()
    with started(configure(tmp_path, backend, bind=name_of(busy))) as shim:
        shim.wait_event("bind_failed")
        shim.signal(signal.SIGHUP)
        busy.close()
        shim.wait_event("config_reloaded")


# Not tried again.


def test_an_address_that_is_bound_twice_is_a_configuration_error(
    tmp_path: Path, backend: Backend
) -> None:
    with closing(a_socket_in_use()) as free:
        bind = name_of(free)
    (tmp_path / "haproxy_hosts").touch()
    wild = bind.replace("127.0.0.1", "0.0.0.0")
    tables = [listener(backend, name=n, bind=b) for n, b in (("a", bind), ("b", wild))]
    with started(write_config(tmp_path, tables)) as shim:
        message = ends_with(shim, EX_CONFIG)
    assert f"bind = '{bind}': already in use by listener b: bind" in message


# The metrics, and agent checks.


@pytest.mark.parametrize("bind", ["a port in use", NOT_HERE])
def test_mail_flows_without_the_metrics(
    tmp_path: Path, backend: Backend, bind: str
) -> None:
    busy = a_socket_in_use()
    address = name_of(busy) if bind == "a port in use" else bind
    (tmp_path / "haproxy_hosts").touch()
    extra = f'[metrics]\nbind = "{address}"\n'
    config = write_config(tmp_path, [listener(backend)], extra)
    with Process(config) as shim:
        failed = shim.wait_event("bind_failed")
        assert (failed["level"], failed["key"]) == ("error", "metrics.bind")
        assert failed["value"] == address
        with connect(shim.address, STRANGER), backend.accept() as mta:
            mta.introduce()
        busy.close()
        if address != NOT_HERE:
            shim.wait_event("metrics_opened")
            connection = HTTPConnection(address, timeout=LIMIT_S)
            connection.request("GET", "/readyz")
            assert connection.getresponse().status == 200
            connection.close()
        assert len(shim.events("bind_failed")) == 1
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0


def test_mail_flows_without_the_agent_check(tmp_path: Path, backend: Backend) -> None:
    busy = a_socket_in_use()
    config = configure(tmp_path, backend, agent_bind=name_of(busy))
    with Process(config) as shim:
        failed = shim.wait_event("bind_failed")
        assert (failed["level"], failed["key"]) == ("error", "listener mx: agent_bind")
        with connect(shim.address, STRANGER), backend.accept() as mta:
            mta.introduce()
        busy.close()
        address = shim.wait_event("agent_opened")["address"]
        with connect(address, LISTED) as check:
            assert check.end().split()[0] in (b"up", b"down")


# A name.


def test_a_name_is_bound_at_every_address_that_it_has(rig_with: OpenRig) -> None:
    addresses = {each[4][0] for each in socket.getaddrinfo("localhost", 25)}
    rig = rig_with(bind=["localhost:0"])
    bound = rig.shim.server.listening("mx")
    assert {re.sub(r":[0-9]+$", "", each).strip("[]") for each in bound} == addresses
    for number in range(len(bound)):
        with connect(rig.shim.address(number=number)), rig.backend.accept() as mta:
            mta.introduce()


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("also", ["127.0.0.1", "0.0.0.0", "127.0.0.2"])
def test_a_name_may_stand_beside_one_of_its_addresses(
    tmp_path: Path, backend: Backend, also: str, order: int
) -> None:
    """Before, only the first address of a name was bound, and people added the second."""
    with closing(a_socket_in_use()) as free:
        port = free.getsockname()[1]
    binds = [f"localhost:{port}", f"{also}:{port}"][::order]
    with Process(configure(tmp_path, backend, bind=binds)) as shim:
        with connect(f"127.0.0.1:{port}"), backend.accept() as mta:
            mta.introduce()
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0


def test_metrics_are_served_at_every_address_of_a_name(
    tmp_path: Path, backend: Backend
) -> None:
    addresses = {each[4][0] for each in socket.getaddrinfo("localhost", 25)}
    (tmp_path / "haproxy_hosts").touch()
    extra = '[metrics]\nbind = "localhost:0"\n'
    with Process(write_config(tmp_path, [listener(backend)], extra)) as shim:
        for number in range(1, len(addresses) + 1):
            opened = shim.wait_event("metrics_opened", number=number)["address"]
            connection = HTTPConnection(opened, timeout=LIMIT_S)
            connection.request("GET", "/livez")
            assert connection.getresponse().status == 200
            connection.close()
