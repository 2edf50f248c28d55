"""Several listeners: a mistake at one of them does not close the others."""

import signal
import socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.scripted.mta import Backend
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import STRANGER, connect, write_config
from tests.integration.scripted.test_bind import (
    EX_TEMPFAIL,
    NOT_HERE,
    a_socket_in_use,
    ends_with,
    name_of,
    started,
)
from tests.integration.scripted.test_metrics import METRICS
from tests.integration.scripted.test_process import (
    EX_CONFIG,
    activated,
    listener,
    listening,
)

SMTP, SUBMISSION = "systemd:smtp", "systemd:submission"


def configure_two(
    directory: Path,
    backend: Backend,
    smtp: object,
    submission: object,
    *,
    order: int = 1,
    extra: str = "",
    **settings: object,
) -> Path:
    (directory / "haproxy_hosts").touch()
    tables = [
        listener(backend, name="mx", bind=smtp, **settings),
        listener(backend, name="submission", bind=submission, **settings),
    ]
    return write_config(directory, tables[::order], extra)


def is_served(address: str, backend: Backend) -> bool:
    with connect(address), backend.accept() as mta:
        mta.introduce()
    return True


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


# Sockets of systemd.


@pytest.mark.parametrize("order", [1, -1])
def test_a_socket_that_was_not_passed_does_not_close_the_other_listener(
    tmp_path: Path, backend: Backend, order: int
) -> None:
    config = configure_two(tmp_path, backend, SMTP, SUBMISSION, order=order)
    with listening() as smtp, activated(config, "smtp", smtp) as shim:
        failed = shim.wait_event("bind_failed")
        assert failed["level"] == "error"
        assert failed["key"] == "listener submission: bind"
        assert failed["value"] == SUBMISSION
        assert f"(passed: smtp with port {port_of(smtp)})" in failed["detail"]
        assert is_served(name_of(smtp), backend)
        assert [e["listener"] for e in shim.events("listener_opened")] == ["mx"]
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0


def test_two_units_serve_two_listeners(tmp_path: Path, backend: Backend) -> None:
    config = configure_two(tmp_path, backend, SMTP, SUBMISSION)
    with (
        listening() as smtp,
        listening() as submission,
        activated(config, "smtp:submission", smtp, submission) as shim,
    ):
        for name, sock in (("mx", smtp), ("submission", submission)):
            (opened,) = shim.events("listener_opened", listener=name)
            assert opened["address"] == name_of(sock)
            assert is_served(name_of(sock), backend)


@pytest.mark.parametrize("rest", [False, True])
def test_one_unit_serves_two_listeners(
    tmp_path: Path, backend: Backend, rest: bool
) -> None:
    with listening() as smtp, listening() as submission:
        config = configure_two(
            tmp_path,
            backend,
            SMTP if rest else f"{SMTP}:{port_of(smtp)}",
            f"{SMTP}:{port_of(submission)}",
        )
        with activated(config, "smtp:smtp", smtp, submission) as shim:
            for name, sock in (("mx", smtp), ("submission", submission)):
                (opened,) = shim.events("listener_opened", listener=name)
                assert opened["address"] == name_of(sock)
                assert is_served(name_of(sock), backend)
            assert shim.events("sockets_unused") == []


def test_a_port_that_the_unit_does_not_have_is_named(
    tmp_path: Path, backend: Backend
) -> None:
    config = configure_two(tmp_path, backend, SMTP, f"{SMTP}:587")
    with listening() as smtp, activated(config, "smtp", smtp) as shim:
        failed = shim.wait_event("bind_failed")
        assert failed["value"] == "systemd:smtp:587"
        assert f"(passed: smtp with port {port_of(smtp)})" in failed["detail"]
        assert is_served(name_of(smtp), backend)


def test_without_any_socket_the_start_fails(tmp_path: Path, backend: Backend) -> None:
    config = configure_two(tmp_path, backend, SMTP, SUBMISSION)
    with listening() as other:
        shim = activated(config, "other", other)
        try:
            assert "listener mx: bind = 'systemd:smtp'" in ends_with(shim, EX_CONFIG)
        finally:
            shim.kill()


# Sockets of our own.


@pytest.mark.parametrize("order", [1, -1])
def test_a_busy_port_does_not_keep_the_other_listener_waiting(
    tmp_path: Path, backend: Backend, order: int
) -> None:
    busy = a_socket_in_use()
    config = configure_two(
        tmp_path, backend, "127.0.0.1:0", name_of(busy), order=order, extra=METRICS
    )
    with Process(config) as shim:
        failed = shim.wait_event("bind_failed")
        assert (failed["level"], failed["key"]) == (
            "warning",  # it may pass
            "listener submission: bind",
        )
        assert is_served(shim.address, backend)
        busy.close()
        opened = shim.wait_event("listener_opened", listener="submission")
        assert is_served(opened["address"], backend)
        assert is_served(shim.address, backend)
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0


def test_a_listener_that_stays_closed_becomes_an_error(
    tmp_path: Path, backend: Backend
) -> None:
    config = configure_two(
        tmp_path, backend, "127.0.0.1:0", NOT_HERE, bind_timeout_s=0.5
    )
    with Process(config) as shim:
        failed = shim.wait_event("bind_failed", level="error")
        assert failed["value"] == NOT_HERE
        assert len(shim.events("bind_failed")) == 2  # a warning before
        assert is_served(shim.address, backend)


def test_a_listener_is_served_with_all_of_its_sockets_or_not_at_all(
    tmp_path: Path, backend: Backend
) -> None:
    with closing(a_socket_in_use()) as free:
        half = name_of(free)
    config = configure_two(tmp_path, backend, "127.0.0.1:0", [half, NOT_HERE])
    with Process(config) as shim:
        shim.wait_event("bind_failed")
        assert is_served(shim.address, backend)
        with pytest.raises(ConnectionRefusedError):
            connect(half, STRANGER)


def test_without_any_listener_the_manager_shall_try_again(
    tmp_path: Path, backend: Backend
) -> None:
    """One of them can never be opened; the other one may, so this is no end for good."""
    (tmp_path / "file").touch()
    config = configure_two(
        tmp_path, backend, NOT_HERE, f"unix:{tmp_path}/file", bind_timeout_s=0.1
    )
    with started(config) as shim:
        assert f"listener mx: bind = '{NOT_HERE}'" in ends_with(shim, EX_TEMPFAIL)


def test_an_upgrade_to_a_mistake_changes_nothing(
    tmp_path: Path, backend: Backend
) -> None:
    config = configure_two(tmp_path, backend, "127.0.0.1:0", "127.0.0.2:0")
    with Process(config) as shim:
        text = config.read_text()
        config.write_text(text.replace("127.0.0.2:0", NOT_HERE))
        shim.signal(signal.SIGUSR2)
        shim.wait_event("upgrade_failed")
        for opened in shim.events("listener_opened"):
            assert is_served(opened["address"], backend)
