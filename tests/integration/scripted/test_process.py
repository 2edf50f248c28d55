"""What needs a real process: signals, exit codes, passed descriptors, a lack of them."""

import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.integration.scripted.headers import XCLIENT, v1
from tests.integration.scripted.mta import EXTENSIONS, GREETING, Backend, Mta
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import (
    LISTED,
    SETTINGS,
    STRANGER,
    connect,
    write_config,
)
from tests.integration.scripted.test_relay import QUEUED, begin_content
from tests.integration.scripted.wire import LIMIT_S, Wire

EX_CONFIG = 78
TOO_MANY = b"421 4.7.0 Too many connections, try again later\r\n"
SHUTTING_DOWN = b"421 4.3.2 Service shutting down, try again later\r\n"


def listener(backend: Backend, **settings: object) -> Mapping[str, object]:
    """Return a [[listener]] table."""
    return {
        **SETTINGS,
        "name": "mx",
        "bind": ["127.0.0.1:0"],
        "backend": backend.name,
        "haproxy_hosts": "haproxy_hosts",
        **settings,
    }


def configure(directory: Path, backend: Backend, **settings: object) -> Path:
    """Write the files of a shim that lists one proxy."""
    (directory / "haproxy_hosts").write_text(f"{LISTED}\n")
    return write_config(directory, [listener(backend, **settings)])


def open_session(
    shim: Process, backend: Backend, cleanup: ExitStack
) -> tuple[Wire, Mta]:
    """Open a relaxed session of a direct client."""
    client = cleanup.enter_context(connect(shim.address, STRANGER))
    mta = cleanup.enter_context(backend.accept())
    mta.introduce()
    client.send(b"EHLO client.test\r\n")
    mta.expect(b"EHLO client.test\r\n")
    mta.send(EXTENSIONS)
    client.expect(GREETING + EXTENSIONS)
    return client, mta


# SIGTERM.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_the_process(
    tmp_path: Path, backend: Backend, number: signal.Signals
) -> None:
    with ExitStack() as cleanup:
        shim = cleanup.enter_context(Process(configure(tmp_path, backend)))
        idle, _ = open_session(shim, backend, cleanup)
        busy, mta = open_session(shim, backend, cleanup)
        begin_content(busy, mta)
        busy.send(b"hello\r\n.\r\n")
        mta.expect(b"hello\r\n.\r\n")
        shim.signal(number)
        assert idle.last_words() == SHUTTING_DOWN
        shim.signal(number)  # a second one has no effect
        shim.signal(signal.SIGHUP)
        assert busy.is_silent(0.1)
        mta.send(QUEUED)
        assert busy.last_words() == QUEUED + SHUTTING_DOWN
        mta.expect(b"QUIT\r\n")
        assert shim.wait() == 0
        assert shim.events("service_stopped") != []
        outcomes = [e["outcome"] for e in shim.events("session_closed")]
        assert outcomes == ["shutdown", "shutdown"]


def test_signals_up_to_the_very_end_do_not_change_the_exit_code(
    tmp_path: Path, backend: Backend
) -> None:
    """The event loop gives its handlers up before the process ends."""
    with closing(backend):
        for _ in range(3):
            with Process(configure(tmp_path, backend)) as shim:
                while not shim.has_ended():
                    shim.signal(signal.SIGTERM)
                assert shim.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_may_come_during_the_start(
    tmp_path: Path, backend: Backend, number: signal.Signals
) -> None:
    with closing(backend):
        shim = Process(configure(tmp_path, backend))
        try:
            shim.wait_event("listener_opened")
            shim.signal(number)
            if number is signal.SIGHUP:
                shim.wait_event("config_reloaded")
                shim.signal(signal.SIGTERM)
            assert shim.wait() == 0
        finally:
            shim.kill()


# SIGHUP.


def test_a_reload_reads_the_list_again(tmp_path: Path, backend: Backend) -> None:
    with ExitStack() as cleanup:
        shim = cleanup.enter_context(Process(configure(tmp_path, backend)))
        old = cleanup.enter_context(connect(shim.address, LISTED))
        old.send(v1())
        mta = cleanup.enter_context(backend.accept())
        assert mta.introduce() == XCLIENT
        old.expect(GREETING)
        (tmp_path / "haproxy_hosts").write_text(f"# not {LISTED}\n{STRANGER}\n")
        shim.signal(signal.SIGHUP)
        shim.wait_event("config_reloaded")
        with connect(shim.address, LISTED) as direct, backend.accept() as its_mta:
            assert f" ADDR={LISTED} ".encode() in its_mta.introduce()
            direct.expect(GREETING)
        with connect(shim.address, STRANGER) as proxy:
            proxy.send(v1())
            with backend.accept() as its_mta:
                assert its_mta.introduce() == XCLIENT
        # A session that was admitted goes on.
        old.send(b"EHLO client.test\r\n")
        mta.expect(b"EHLO client.test\r\n")


@pytest.mark.parametrize(
    ("hosts", "complaint"),
    [
        ("127.0.0.2\n127.0.0.300\n", "line 2: '127.0.0.300'"),
        ("0.0.0.0/0\n", "line 1: '0.0.0.0/0'"),
        ("proxy.test\n", "line 1: 'proxy.test'"),
        (None, "No such file"),
    ],
)
def test_a_broken_list_changes_nothing(
    tmp_path: Path, backend: Backend, hosts: str | None, complaint: str
) -> None:
    with Process(configure(tmp_path, backend)) as shim:
        if hosts is None:
            (tmp_path / "haproxy_hosts").unlink()
        else:
            (tmp_path / "haproxy_hosts").write_text(hosts)
        shim.signal(signal.SIGHUP)
        rejected = shim.wait_event("config_rejected")
        assert rejected["level"] == "error"
        assert complaint in rejected["detail"]
        assert str(tmp_path / "haproxy_hosts") in rejected["detail"]
        with connect(shim.address, LISTED) as proxy:
            proxy.send(v1())
            with backend.accept() as mta:
                assert mta.introduce() == XCLIENT
        # A correct list applies again.
        (tmp_path / "haproxy_hosts").write_text(f"{STRANGER}\n")
        shim.signal(signal.SIGHUP)
        shim.wait_event("config_reloaded")


def test_a_reload_reports_what_needs_a_restart(
    tmp_path: Path, backend: Backend
) -> None:
    with Process(configure(tmp_path, backend)) as shim, closing(Backend()) as another:
        write_config(tmp_path, [listener(another, bind=["127.0.0.1:1"])])
        shim.signal(signal.SIGHUP)
        assert shim.wait_event("restart_needed")["keys"] == ["listener.bind"]
        shim.wait_event("config_reloaded")
        # Keys that need no restart have changed.
        with connect(shim.address, STRANGER), another.accept() as mta:
            mta.introduce()


# Configuration errors: exit 78, before any socket is opened.


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"haproxy_hostz": "x"}, ["listener[1].haproxy_hostz", "haproxy_hosts"]),
        ({"header_timeout_s": "30"}, ["listener[1].header_timeout_s = '30'", "number"]),
        ({"haproxy_hosts": "nowhere"}, ["haproxy_hosts", "nowhere", "No such file"]),
    ],
)
def test_a_wrong_key_prevents_the_start(
    tmp_path: Path, backend: Backend, settings: Mapping[str, object], named: list[str]
) -> None:
    path = tmp_path / "front"
    config = configure(tmp_path, backend, bind=f"unix:{path}", **settings)
    fails_to_start(config, named)
    assert not path.exists()


def test_a_file_at_the_path_of_a_unix_socket_is_kept(
    tmp_path: Path, backend: Backend
) -> None:
    path = tmp_path / "front"
    path.write_text("a valuable file\n")
    fails_to_start(
        configure(tmp_path, backend, bind=f"unix:{path}"), ["is not a socket"]
    )
    assert path.read_text() == "a valuable file\n"


def test_a_unix_path_that_is_too_long_prevents_the_start(
    tmp_path: Path, backend: Backend
) -> None:
    path = tmp_path / ("x" * 120)
    fails_to_start(configure(tmp_path, backend, bind=f"unix:{path}"), ["too long"])


def test_a_missing_configuration_prevents_the_start(tmp_path: Path) -> None:
    fails_to_start(tmp_path / "nowhere.toml", ["No such file"])


def fails_to_start(config: Path, named: list[str]) -> None:
    """Check that the shim ends with one message, which contains the file and *named*."""
    shim = Process(config)
    try:
        assert shim.wait() == EX_CONFIG
        (message,) = shim.lines.since()
        for text in (f"proxyshim: {config}: ", *named):
            assert text in message
    finally:
        shim.kill()


# Sockets that systemd passes.

# Do what systemd does: pass sockets as descriptors from 3 on, and name their recipient.
PASS = """
import os, sys
first, names, *argv = sys.argv[1:]
spare = [os.dup2(int(fd), 100 + number) for number, fd in enumerate(first.split(","))]
for number, fd in enumerate(spare):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ["LISTEN_FDS"] = str(len(spare))
os.environ["LISTEN_PID"] = str(os.getpid() + (names == "wrong-process"))
os.environ["LISTEN_FDNAMES"] = names
os.execv(sys.executable, [sys.executable, "-m", "proxyshim", "run", "-c", *argv])
"""


def activated(config: Path, names: str, *socks: socket.socket) -> Process:
    """Start a shim and pass it these sockets."""
    fds = [sock.fileno() for sock in socks]
    passed = ",".join(map(str, fds))
    argv = [sys.executable, "-c", PASS, passed, names]
    return Process(config, argv=argv, pass_fds=fds)


def listening(family: int = socket.AF_INET, address: object = None) -> socket.socket:
    """Return a listening socket, as a socket unit opens it."""
    sock = socket.socket(family)
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    sock.bind(address or (host, 0))  # type: ignore[arg-type]
    sock.listen()
    return sock


def test_passed_sockets_are_served_by_name(tmp_path: Path, backend: Backend) -> None:
    tables = [
        listener(backend, name="mx", bind="systemd:smtp", haproxy_hosts="mx"),
        listener(backend, name="proxies", bind="systemd:fleet"),
    ]
    (tmp_path / "haproxy_hosts").write_text(f"{LISTED}\n")
    (tmp_path / "mx").write_text("")
    config = write_config(tmp_path, tables)
    path = tmp_path / "fleet"
    with (
        listening() as smtp,
        listening(socket.AF_UNIX, str(path)) as fleet,
        activated(config, "smtp:fleet", smtp, fleet) as shim,
    ):
        mx, proxies = shim.events("listener_opened")
        assert mx["address"] == f"127.0.0.1:{smtp.getsockname()[1]}"
        assert proxies["address"] == f"unix:{path}"
        with connect(mx["address"], LISTED), backend.accept() as mta:
            assert f" ADDR={LISTED} ".encode() in mta.introduce()
        with connect(proxies["address"]) as proxy:
            proxy.send(v1())
            with backend.accept() as mta:
                assert mta.introduce() == XCLIENT
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0
        assert path.exists()  # it belongs to systemd


def test_sockets_of_one_name_are_all_served(tmp_path: Path, backend: Backend) -> None:
    config = configure(tmp_path, backend, bind="systemd:smtp")
    with (
        listening() as smtp,
        listening(socket.AF_INET6) as smtp6,
        activated(config, "smtp:smtp", smtp, smtp6) as shim,
    ):
        for opened in shim.events("listener_opened", listener="mx"):
            with connect(opened["address"]), backend.accept() as mta:
                mta.introduce()
        assert len(shim.events("listener_opened")) == 2


def test_a_passed_socket_that_no_listener_names_is_reported(
    tmp_path: Path, backend: Backend
) -> None:
    config = configure(tmp_path, backend)
    with listening() as smtp, activated(config, "smtp", smtp) as shim:
        unused = shim.wait_event("sockets_unused")
        assert (unused["names"], unused["level"]) == (["smtp"], "warning")


@pytest.mark.parametrize("names", ["another", "wrong-process"])
def test_a_socket_that_was_not_passed_prevents_the_start(
    tmp_path: Path, backend: Backend, names: str
) -> None:
    config = configure(tmp_path, backend, bind="systemd:smtp")
    with listening() as smtp:
        shim = activated(config, names, smtp)
        try:
            assert shim.wait() == EX_CONFIG
            (message,) = shim.lines.since()
            assert "bind = 'systemd:smtp'" in message
            known = f"another with port {smtp.getsockname()[1]}"
            known = known if names == "another" else "none"
            assert f"(passed: {known})" in message
        finally:
            shim.kill()


# Out of file descriptors: open sessions are served, and new clients are answered with 421.


def test_without_descriptors_clients_are_shed_until_there_are_some(
    tmp_path: Path, backend: Backend
) -> None:
    with ExitStack() as cleanup:
        shim = cleanup.enter_context(Process(configure(tmp_path, backend)))
        # The first one opens what all sessions share.
        sessions = [open_session(shim, backend, cleanup)]
        shim.leave_descriptors(4)
        sessions += [open_session(shim, backend, cleanup) for _ in range(2)]
        for _ in range(3):
            with connect(shim.address, STRANGER) as client:
                assert client.last_words() == TOO_MANY
        shed = shim.wait_event("connection_shed")
        assert (shed["level"], shed["reason"]) == ("error", "out_of_descriptors")
        assert shed["sessions"] == 3
        client, mta = sessions[0]  # open sessions are served
        used = shim.cpu_s()
        assert client.is_silent(1.0)
        assert shim.cpu_s() - used < 0.2  # it does not spin
        client.send(b"NOOP\r\n")
        mta.expect(b"NOOP\r\n")
        mta.send(b"250 ok\r\n")
        client.expect(b"250 ok\r\n")
        for client, mta in sessions[1:]:
            client.close()
            mta.close()
        shim.wait_event("session_closed", number=2)
        open_session(shim, backend, cleanup)
        shim.signal(signal.SIGTERM)
        assert sessions[0][0].last_words() == SHUTTING_DOWN


def test_without_even_the_reserve_connections_wait(
    tmp_path: Path, backend: Backend
) -> None:
    """The reserve is lost to another thread, or to a limit that was lowered."""
    with ExitStack() as cleanup:
        shim = cleanup.enter_context(Process(configure(tmp_path, backend)))
        sessions = [open_session(shim, backend, cleanup) for _ in range(3)]
        shim.limit_descriptors(4)
        waiting = cleanup.enter_context(connect(shim.address, STRANGER))
        paused = shim.wait_event("accepting_paused")
        assert (paused["level"], paused["reason"]) == ("error", "out_of_descriptors")
        used = shim.cpu_s()
        assert waiting.is_silent(1.0)
        assert shim.cpu_s() - used < 0.2  # it does not spin
        shim.limit_descriptors(1000)
        shim.wait_event("accepting_resumed")
        cleanup.enter_context(backend.accept()).introduce()
        waiting.expect(GREETING)
        assert len(sessions) == 3


# A log whose reader has gone.


def test_a_closed_log_does_not_stop_the_service(
    tmp_path: Path, backend: Backend
) -> None:
    config = configure(tmp_path, backend, bind=f"unix:{tmp_path}/front")
    reading, writing = os.pipe()
    redirect = (
        "import os, sys; os.dup2(int(sys.argv[1]), 2); os.execv(*eval(sys.argv[2]))"
    )
    run = (
        sys.executable,
        [sys.executable, "-m", "proxyshim", "run", "-c", str(config)],
    )
    argv = [sys.executable, "-c", redirect, str(writing), repr(run)]
    shim = Process(config, argv=argv, pass_fds=[writing])
    os.close(writing)
    try:
        with os.fdopen(reading, "rb", buffering=0) as log:
            while b"service_ready" not in log.readline():
                assert select.select([log], [], [], LIMIT_S)[0]
        for _ in range(2):
            with connect(f"unix:{tmp_path}/front") as proxy:
                proxy.send(b"no header\r\n")
                assert proxy.last_words().startswith(b"421 4.7.1 ")
            with connect(f"unix:{tmp_path}/front") as proxy:
                proxy.send(v1())
                with backend.accept() as mta:
                    assert mta.introduce() == XCLIENT
                    proxy.expect(GREETING)
        shim.signal(signal.SIGHUP)
        shim.signal(signal.SIGTERM)
        assert shim.wait() == 0
    finally:
        shim.kill()
