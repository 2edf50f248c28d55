"""Upgrades in which something goes wrong: at any moment exactly one process accepts, or none.

The programs below are ours with one thing changed, so that a test can hold them at a certain point
or let them fail there.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.scripted.headers import v1
from tests.integration.scripted.shim import LISTED, STRANGER, connect
from tests.integration.scripted.test_upgrade import (
    SHUTTING_DOWN,
    Other,
    Service,
    a_service,
)
from tests.integration.scripted.wire import LIMIT_S

EX_TEMPFAIL = 75

PROGRAM = """
import os, signal, sys, time
from proxyshim import cli
from proxyshim.service import daemon, upgrade
is_successor = "PROXYSHIM_PREDECESSOR" in os.environ
{change}
sys.argv[1:] = ["run", "-c", sys.argv[1]]
cli.main()
"""

# A successor that has read its configuration waits until the test closes the FIFO.
WAITS = """
real = daemon.Daemon.run
async def run(self):
    if is_successor:
        open(os.environ["GO"]).read()
    await real(self)
daemon.Daemon.run = run
"""


def program(change: str) -> str:
    return PROGRAM.format(change=change)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with a_service(tmp_path) as running:
        yield running


@contextmanager
def a_waiting_service(directory: Path, change: str = "") -> Iterator[Service]:
    """Start a service whose successor waits for ``go``."""
    os.mkfifo(directory / "go")
    code = program(WAITS + change)
    with a_service(directory, code, GO=str(directory / "go")) as service:
        yield service


def open_fifo(service: Service) -> int:
    """Wait until the successor opens its end of the FIFO; return ours."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            return os.open(service.config.with_name("go"), os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < deadline, "the successor does not wait"


def begin_upgrade(service: Service) -> tuple[Other, Callable[[], None]]:
    """Start a successor; return it, and what lets it continue."""
    service.shim.signal(signal.SIGUSR2)
    pid = service.shim.wait_event("upgrade_started")["successor"]
    successor = service.opened.enter_context(Other(pid))
    fifo = open_fifo(service)
    return successor, lambda: os.close(fifo)


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_refused(address: str) -> bool:
    try:
        connect(address).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except ConnectionResetError:  # it was closed while this was in its queue
        return False
    return False


def wait_until_refused(address: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_refused(address):
        assert time.monotonic() < deadline, f"{address} is still open"


# Failures between the fork and the hand-over.

FAILURES = {
    "no pidfd_open in the kernel": """
def fails(*_):
    raise OSError(38, "Function not implemented")
os.pidfd_open = fails
""",
    "no pidfd_open in Python": "del os.pidfd_open",
    "no memory for the loop": """
import uvloop
class Loop(uvloop.Loop):
    def add_reader(self, fd, callback, *args):
        if getattr(callback, "__name__", "") == "_receive":
            raise MemoryError
        super().add_reader(fd, callback, *args)
uvloop.new_event_loop = uvloop.Loop = Loop
""",
}


@pytest.mark.parametrize("change", FAILURES.values(), ids=FAILURES.keys())
def test_a_successor_that_cannot_be_watched_is_ended(
    tmp_path: Path, change: str
) -> None:
    with a_service(tmp_path, program(change)) as service:
        for number in (1, 2):
            service.shim.signal(signal.SIGUSR2)
            failed = service.shim.wait_event("upgrade_failed", number=number)
            assert failed["level"] == "error"
            assert children(service.shim.pid) == []
        assert service.serves_smtp()
        assert len(service.shim.events("service_ready")) == 1
        service.shim.signal(signal.SIGTERM)
        assert service.shim.wait() == 0  # nobody else holds its stderr
        assert is_refused(service.shim.address)
        assert not service.unix.exists()


def test_a_successor_ends_if_its_predecessor_dies_before_the_hand_over(
    tmp_path: Path,
) -> None:
    with a_waiting_service(tmp_path) as service:
        successor, go_on = begin_upgrade(service)
        service.shim.signal(signal.SIGKILL)
        service.shim.exit_code()
        go_on()
        assert successor.has_ended()
        assert len(service.shim.events("service_ready")) == 1
        assert is_refused(service.shim.address)


NEVER_ANSWERS = "daemon.Daemon._hand_over = lambda *_: None"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_successor_that_asks_to_serve_ends_with_its_predecessor(
    tmp_path: Path, number: signal.Signals
) -> None:
    with a_waiting_service(tmp_path, NEVER_ANSWERS) as service:
        successor, go_on = begin_upgrade(service)
        go_on()
        service.shim.wait_event("listener_opened", number=4)  # two, twice
        service.shim.signal(number)
        service.shim.exit_code()
        assert successor.has_ended()
        assert is_refused(service.shim.address)
        assert len(service.shim.events("service_ready")) == 1


def test_a_stop_of_a_successor_that_does_not_serve_yet_is_a_failed_upgrade(
    tmp_path: Path,
) -> None:
    with a_waiting_service(tmp_path, NEVER_ANSWERS) as service:
        successor, go_on = begin_upgrade(service)
        go_on()
        service.shim.wait_event("listener_opened", number=4)
        successor.signal(signal.SIGTERM)
        failed = service.shim.wait_event("upgrade_failed")
        assert (failed["status"], failed["took_over"]) == (0, False)
        assert service.serves_smtp()  # also on its unix socket


HAND_OVER_FAILS = """
from proxyshim.service.acceptor import Acceptor
real_pause, failed = Acceptor.pause, []
def pause(self):
    real_pause(self)
    if not failed:
        failed.append(True)
        raise MemoryError
Acceptor.pause = pause
"""


def test_a_hand_over_that_fails_ends_the_successor(tmp_path: Path) -> None:
    with a_service(tmp_path, program(HAND_OVER_FAILS)) as service:
        service.shim.signal(signal.SIGUSR2)
        failed = service.shim.wait_event("upgrade_failed")
        assert (failed["status"], failed["took_over"]) == (-signal.SIGKILL, False)
        assert service.serves_smtp()
        service.upgrade()
        assert service.serves_smtp()


def test_an_ignored_sigchld_hides_no_failure(tmp_path: Path) -> None:
    """A parent that ignores SIGCHLD passes that on, and the kernel keeps no status then."""
    change = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    with a_service(tmp_path, program(change)) as service:
        client = service.begin_content("<old@test>")
        successor = service.upgrade()
        successor.signal(signal.SIGKILL)
        failed = service.shim.wait_event("upgrade_failed")
        assert (failed["status"], failed["took_over"]) == (-signal.SIGKILL, True)
        service.finish_content(client)


ONLY_HEARTBEATS = """
if is_successor:
    del os.environ["PROXYSHIM_PREDECESSOR_ANSWERS"]
"""


def test_versions_that_do_not_know_the_dialogue_hand_over_at_the_first_heartbeat(
    tmp_path: Path,
) -> None:
    with a_service(tmp_path, program(ONLY_HEARTBEATS)) as service:
        service.upgrade()
        assert service.shim.exit_code() == 0
        assert service.serves_smtp()


# A reload while the successor starts.


@pytest.mark.parametrize("change", ["", ONLY_HEARTBEATS], ids=["asks", "does not ask"])
def test_a_reload_during_the_start_reaches_the_successor(
    tmp_path: Path, change: str
) -> None:
    with a_waiting_service(tmp_path, change) as service:
        _, go_on = begin_upgrade(service)  # it has read the old list
        (tmp_path / "haproxy_hosts").write_text(f"{STRANGER}\n")
        service.shim.signal(signal.SIGHUP)
        service.shim.wait_event("config_reloaded")
        go_on()
        service.shim.wait_event("upgrade_handed_over")
        service.shim.wait_event("config_reloaded", number=2)
        with connect(service.shim.address, LISTED) as revoked:
            revoked.send(v1())
            assert revoked.last_words().startswith(b"421 4.7.1 PROXY not allowed")
        with connect(service.shim.address, STRANGER) as proxy:
            proxy.send(v1())
            assert proxy.line().startswith(b"220 ")


def test_a_successor_reads_again_before_it_serves(tmp_path: Path) -> None:
    with a_waiting_service(tmp_path) as service:
        _, go_on = begin_upgrade(service)
        for number in (1, 2):
            service.shim.signal(signal.SIGHUP)
            service.shim.wait_event("config_reloaded", number=number)
        go_on()
        # Each process writes its lines from a thread, so theirs may arrive in any order.
        handed_over = service.shim.wait_event("upgrade_handed_over")
        reloaded = service.shim.wait_event("config_reloaded", number=3)
        assert reloaded["timestamp"] < handed_over["timestamp"]


# Time that stood still.

FREEZE_S = 2.5


def freeze(
    *processes: Callable[[signal.Signals], None], for_s: float = FREEZE_S
) -> Callable[[], None]:
    """Stop processes, as a freezer does, for longer than a limit; return what continues them."""
    for each in processes:
        each(signal.SIGSTOP)
    time.sleep(for_s)  # this is what the test does to them, not what it waits for

    def thaw() -> None:
        for each in processes:
            each(signal.SIGCONT)

    return thaw


def test_a_pause_of_both_processes_is_not_the_silence_of_the_successor(
    tmp_path: Path,
) -> None:
    with a_service(tmp_path, WATCHDOG_USEC="1000000") as service:
        client = service.begin_content("<old@test>")
        successor = service.upgrade()
        service.manager.wait_for("WATCHDOG")
        thaw = freeze(successor.signal, service.shim.signal)
        service.shim.signal(signal.SIGCONT)
        service.manager.wait_for(
            "WATCHDOG"
        )  # the predecessor runs, the successor not yet
        thaw()
        for _ in range(4):
            service.manager.wait_for("WATCHDOG")
        assert service.shim.events("upgrade_failed") == []
        assert not successor.has_ended(0)
        service.finish_content(client)
        assert service.serves_smtp()


def test_a_pause_of_the_predecessor_alone_is_not_the_successors_either(
    tmp_path: Path,
) -> None:
    with a_service(tmp_path, WATCHDOG_USEC="1000000") as service:
        service.begin_content("<old@test>")
        successor = service.upgrade()
        freeze(service.shim.signal)()
        for _ in range(4):
            service.manager.wait_for("WATCHDOG")
        assert service.shim.events("upgrade_failed") == []
        assert not successor.has_ended(0)


def test_a_pause_does_not_count_as_the_time_of_a_start(tmp_path: Path) -> None:
    change = "daemon._SUCCESSOR_READY_S = 5.0"
    with a_waiting_service(tmp_path, change) as service:
        successor, go_on = begin_upgrade(service)
        thaw = freeze(successor.signal, service.shim.signal, for_s=6.0)
        service.shim.signal(signal.SIGCONT)
        assert service.agent_answer() == b"up ready\n"  # the predecessor runs
        thaw()
        go_on()
        service.shim.wait_event("upgrade_handed_over")
        assert service.shim.events("upgrade_failed") == []


# Sockets that nobody serves.


def test_an_address_removed_from_bind_is_closed_while_the_old_process_drains(
    service: Service,
) -> None:
    client = service.begin_content("<old@test>")
    agent = service.shim.wait_event("agent_opened")["address"]
    metrics = service.shim.wait_event("metrics_opened")["address"]
    tcp = service.shim.address
    text = service.config.read_text()
    kept = service.unix.with_name("kept")
    changed = (
        text.replace(f'["127.0.0.1:0", "unix:{service.unix}"]', f'["unix:{kept}"]')
        .replace('agent_bind = "127.0.0.1:0"', "")
        .replace('[metrics]\nbind = "127.0.0.1:0"\n', "")
    )
    service.config.write_text(changed)
    service.upgrade()
    for address in (tcp, f"unix:{service.unix}", agent, metrics):
        wait_until_refused(address)
    assert not service.unix.exists()
    service.finish_content(client)
    with connect(f"unix:{kept}") as proxy:
        proxy.send(v1())
        assert proxy.line().startswith(b"220 ")


def test_a_process_that_takes_over_serves_what_is_left(service: Service) -> None:
    client = service.begin_content("<old@test>")
    text = service.config.read_text()
    bind = f'"127.0.0.1:0", "unix:{service.unix}"'
    service.config.write_text(text.replace(bind, '"127.0.0.1:0"'))
    successor = service.upgrade()
    wait_until_refused(f"unix:{service.unix}")
    successor.signal(signal.SIGKILL)
    service.shim.wait_event("upgrade_failed", took_over=True)
    with connect(service.shim.address, STRANGER) as direct:
        assert direct.line().startswith(b"220 ")
    service.finish_content(client)


def test_a_stop_of_the_successor_closes_every_socket_at_once(service: Service) -> None:
    """Both processes still have sessions, and neither would greet a new client."""
    old = service.begin_content("<old@test>")
    successor = service.upgrade()
    new = service.begin_content("<new@test>")
    successor.signal(signal.SIGTERM)
    wait_until_refused(service.shim.address)
    wait_until_refused(f"unix:{service.unix}")
    for client in (old, new):
        service.finish_content(client)
        assert client.last_words() == SHUTTING_DOWN
    assert successor.has_ended()
    assert service.shim.exit_code() == 0


def test_a_successor_that_drains_longer_keeps_the_watchdog_fed(tmp_path: Path) -> None:
    with a_service(tmp_path, WATCHDOG_USEC="1000000") as service:
        old = service.begin_content("<old@test>")
        successor = service.upgrade()
        new = service.begin_content("<new@test>")
        successor.signal(signal.SIGTERM)
        service.finish_content(old)
        assert service.manager.wait_for("MAINPID")["MAINPID"] == str(successor.pid)
        assert service.shim.exit_code() == 0
        assert service.manager.wait_for("STOPPING")["STATUS"].startswith("Draining")
        for _ in range(3):
            service.manager.wait_for("WATCHDOG")
        service.finish_content(new)
        assert new.last_words() == SHUTTING_DOWN
        assert successor.has_ended()


def test_a_renamed_listener_keeps_its_sockets(service: Service) -> None:
    """Opening them again would fail, because the predecessor still has them."""
    client = service.begin_content("<old@test>")
    text = service.config.read_text()
    service.config.write_text(text.replace('name = "mx"', 'name = "renamed"'))
    service.upgrade()
    with connect(f"unix:{service.unix}") as proxy:
        proxy.send(v1())
        assert proxy.line().startswith(b"220 ")
    service.finish_content(client)
