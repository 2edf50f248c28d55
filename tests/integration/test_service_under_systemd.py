"""The service as systemd runs it: start, reload, restart, stop, crash, upgrade, sandbox.

These tests use a real systemd, the unit files of this source tree, and clients that send
mail all the time.  Whatever happens to the service, the mail server must accept exactly
the messages that got a 250, each once and unchanged, and no connection may be refused or
reset.
"""

import select
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import pytest

from tests.docs import marked
from tests.integration.lab.counting_mta import CountingMta
from tests.integration.lab.dns import Unbound
from tests.integration.lab.journal import read_entry
from tests.integration.lab.load import Kind, Load
from tests.integration.lab.machine import SHARED, Machine
from tests.integration.lab.netns import Host, hosts
from tests.integration.lab.places import open_directory
from tests.integration.lab.service import CONFIG, UNITS, Client, Service

CLIENT, CLIENT6 = "198.51.100.7", "2001:db8:51::7"
PROXY, ELSEWHERE = "198.51.100.8", "198.51.100.66"
MAIL, MAIL6 = "198.51.100.25", "2001:db8:51::25"
SMTP: Final = (MAIL, 25)

ERROR, WARNING = 3, 4  # syslog priorities

SHORT_WATCHDOG: Final = "[Service]\nWatchdogSec=2\n"
# Longer than that watchdog would wait.
SLOWLY_ANSWERED: Final = "X-Answer-After: 3\r\n"

VERSIONS: Final = ("1.0", "2.0")
BROKEN_VERSION: Final = "0.1"


@dataclass(frozen=True, slots=True)
class World:
    """A machine with systemd, its MTA, and the other hosts."""

    machine: Machine
    mta: CountingMta
    client: Host
    elsewhere: Host
    directory: Path

    def load(self) -> Load:
        return Load(self.client, SMTP, _source_of)

    def greeted(self) -> Client:
        return Client.greeted(self.client, SMTP, CLIENT)


def _source_of(kind: Kind) -> str:
    return PROXY if kind.proxy_header else CLIENT


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as cleanup:
        directory = cleanup.enter_context(open_directory("machine"))
        made = cleanup.enter_context(
            hosts(
                client=[CLIENT, CLIENT6, PROXY],
                mail=[MAIL, MAIL6],
                elsewhere=[ELSEWHERE],
            )
        )
        machine = Machine(made["mail"], directory)
        cleanup.callback(machine.stop)
        for version in VERSIONS:
            machine.install(version)
        machine.run(
            "cp", "-r", "/opt/proxyshim-1.0", f"/opt/proxyshim-{BROKEN_VERSION}"
        )
        machine.write(
            f"/opt/proxyshim-{BROKEN_VERSION}/bin/proxyshim", "#!/bin/false\n"
        )
        machine.run("chmod", "+x", f"/opt/proxyshim-{BROKEN_VERSION}/bin/proxyshim")
        listening = made["mail"].open_socket(socket.AF_INET)
        listening.bind(("127.0.0.1", 10725))
        listening.listen(256)
        mta = cleanup.enter_context(CountingMta(listening))
        yield World(machine, mta, made["client"], made["elsewhere"], directory)


@pytest.fixture
def install(world: World) -> Iterator[Callable[..., Service]]:
    """Return a function that installs the service, which is removed after the test."""
    with ExitStack() as cleanup:

        def install(config: str = CONFIG, **drop_ins: str) -> Service:
            service = Service(world.machine, f"{PROXY}\n", config, **drop_ins)
            cleanup.enter_context(service)
            return service

        world.machine.use(VERSIONS[0])
        yield install


@pytest.fixture
def running(install: Callable[..., Service]) -> Service:
    """Return the service, started, with its unit files unchanged."""
    service = install()
    service.start()
    return service


def all_well(load: Load, mta: CountingMta) -> bool:
    """Check that nothing was refused and each message arrived once and unchanged.

    Returns False if no message was sent.
    """
    assert load.tally.faults == []
    sent = load.tally.digests
    arrived = {name: mta.digests.get(name) for name in sent}
    assert arrived == sent
    assert {name: mta.accepted[name] for name in sent} == dict.fromkeys(sent, 1)
    return bool(sent)


def nobody_refused(load: Load, mta: CountingMta) -> bool:
    """Check that no connection was refused and no message was lost.

    Sessions of a process that died may be cut.  Returns False if no message was sent.
    """
    assert [each for each in load.tally.faults if "refused" in each] == []
    assert set(load.tally.digests) <= set(mta.accepted)
    return bool(load.tally.digests)


@contextmanager
def listening_on(host: Host, address: str, port: int) -> Iterator[socket.socket]:
    with host.open_socket(socket.AF_INET) as sock:
        sock.bind((address, port))
        sock.listen()
        yield sock


def is_connected_to(listening: socket.socket) -> bool:
    """Return True if a connection is waiting."""
    return bool(select.select([listening], [], [], 0)[0])


@contextmanager
def running_resolver(world: World, records: Sequence[str]) -> Iterator[None]:
    place = world.directory / "unbound"
    server = Unbound(world.machine.host, place, "127.0.0.1", records)
    try:
        yield
    finally:
        server.stop()


def example(name: str) -> str:
    """Return an example drop-in, unchanged."""
    return (UNITS / "proxyshim.service.d" / f"{name}.conf.example").read_text()


def slowest_greeting_s(load: Load) -> float:
    return max(load.tally.greetings_s)


# Start


@pytest.fixture(scope="class")
def started(world: World) -> Iterator[Service]:
    world.machine.use(VERSIONS[0])
    with Service(world.machine, f"{PROXY}\n") as service:
        service.systemctl("start", "proxyshim.socket")
        assert service.state("ActiveState")["ActiveState"] == "inactive"
        with world.greeted() as client:
            assert client.ask("QUIT").code == 221
        yield service


class TestStartedByItsFirstClient:
    """Tests that only look at the service share one."""

    def test_systemd_knows_that_the_service_is_ready(self, started: Service) -> None:
        state = started.state("ActiveState", "StatusText")
        assert state["ActiveState"] == "active"
        assert state["StatusText"].startswith("Serving")

    def test_both_address_families_are_served(
        self, started: Service, world: World
    ) -> None:
        for address, source in ((MAIL, CLIENT), (MAIL6, CLIENT6)):
            with Client.greeted(world.client, (address, 25), source) as client:
                assert client.ask("QUIT").code == 221

    def test_the_accept_queue_keeps_the_length_that_the_socket_unit_sets(
        self, started: Service
    ) -> None:
        argv = ("ss", "--listening", "--tcp", "--numeric", "--no-header")
        queues = started.machine.run(*argv).splitlines()
        assert {line.split()[2] for line in queues if ":25 " in line} == {"1024"}

    def test_the_running_service_has_no_capability(self, started: Service) -> None:
        status = started.machine.read(f"/proc/{started.pid}/status")
        rights = {line for line in status.splitlines() if line.startswith("Cap")}
        assert rights
        assert all(line.endswith("\t0000000000000000") for line in rights)
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        assert "Uid:\t0\t" not in status

    def test_the_log_has_the_facility_of_mail(self, started: Service) -> None:
        argv = ("journalctl", "--unit=proxyshim.service", "_COMM=proxyshim")
        shown = started.machine.run(*argv, "--output=verbose", "--lines=1")
        assert "SYSLOG_FACILITY=2" in shown

    def test_starting_the_service_logs_no_warning(self, started: Service) -> None:
        loud = [each for each in started.journal.entries() if each.priority <= WARNING]
        assert loud == []


def test_a_broken_configuration_is_logged_and_not_retried(
    install: Callable[..., Service],
) -> None:
    service = install(CONFIG.replace("name ", "nome "))
    answer = service.machine.ask("systemctl", "start", "proxyshim.service")
    assert answer.status != 0
    state = service.state("ActiveState", "ExecMainStatus")
    assert state == {"ActiveState": "failed", "ExecMainStatus": "78"}
    line = service.journal.lines.wait_for("proxyshim.toml: listener.*nome").string
    assert read_entry(line).priority == ERROR


# Reload


def test_a_reload_under_load_keeps_process_and_sessions(
    running: Service, world: World
) -> None:
    before = running.pid
    with world.greeted() as client, world.load() as load:
        load.wait_for_more(20)
        running.list_proxies(f"{PROXY}\n192.0.2.1\n")
        running.systemctl("reload", "proxyshim.service")
        running.journal.wait_event("config_reloaded")
        client.send_message("<across-a-reload@test>")
        assert client.reply().code == 250
        load.wait_for_more(20)
    assert all_well(load, world.mta)
    assert 'proxyshim_allowlist_entries{listener="mx"} 2.0' in running.metrics()
    assert running.pid == before
    assert running.state("ActiveState")["ActiveState"] == "active"


def test_a_broken_reload_changes_nothing_and_is_an_error(
    running: Service, world: World
) -> None:
    before = running.pid
    running.configure("[[listener]]\n")
    answer = running.machine.ask("systemctl", "reload", "proxyshim.service")
    assert answer.status != 0
    running.journal.wait_event("config_rejected")
    (entry,) = (
        each
        for each in running.journal.entries()
        if each.event.get("event") == "config_rejected"
    )
    assert entry.priority == ERROR
    with world.greeted() as client:
        client.send_message("<after-a-broken-reload@test>")
        assert client.reply().code == 250
    assert running.pid == before
    state = running.state("ActiveState", "StatusText")
    assert state["ActiveState"] == "active"
    assert "RELOAD REJECTED" in state["StatusText"]
    assert "proxyshim.toml: listener" in state["StatusText"]


def test_a_reload_of_a_list_that_the_service_may_not_read_fails(
    running: Service,
) -> None:
    """As root, the same check would see nothing wrong."""
    running.machine.run("chmod", "600", "/etc/proxyshim/haproxy_hosts")
    try:
        answer = running.machine.ask("systemctl", "reload", "proxyshim.service")
        assert answer.status != 0
        running.machine.run("proxyshim", "check", "--fast")
    finally:
        running.machine.run("chmod", "644", "/etc/proxyshim/haproxy_hosts")
    running.systemctl("reload", "proxyshim.service")
    running.journal.wait_event("config_reloaded")


# Restart and stop


def test_a_restart_under_load_makes_clients_wait_and_loses_nothing(
    running: Service, world: World
) -> None:
    before = running.pid
    with world.load() as load:
        load.wait_for_more(20)
        running.systemctl("restart", "proxyshim.service")
        load.wait_for_more(40)
    assert all_well(load, world.mta)
    assert running.pid != before
    assert slowest_greeting_s(load) < 10


def test_a_stop_waits_for_the_answer_to_a_final_dot(
    install: Callable[..., Service], world: World
) -> None:
    """It waits longer than a watchdog would, and a second SIGTERM changes nothing."""
    service = install(watchdog=SHORT_WATCHDOG)
    service.start()
    before = service.pid
    with world.greeted() as idle, world.greeted() as client:
        client.send_message("<at-the-stop@test>", SLOWLY_ANSWERED)
        world.mta.wait_for_dot("<at-the-stop@test>")
        service.systemctl("stop", "--no-block", "proxyshim.service")
        service.journal.wait_event("drain_started")
        assert idle.reply().code == 421
        service.signal(before, "TERM")
        late = world.client.connect(SMTP, CLIENT)  # waits instead of being refused
        assert client.reply().code == 250
        assert client.reply().code == 421
        assert client.rest() == b""
    with Client(late) as next_client:
        assert next_client.reply().code == 220
    assert world.mta.accepted["<at-the-stop@test>"] == 1
    service.journal.wait_event("service_stopped")
    service.journal.wait_systemd("proxyshim.service: Deactivated successfully")
    assert service.pid not in (0, before)


# Crashes


def test_a_hanging_process_is_replaced_and_leaves_a_traceback(
    install: Callable[..., Service], world: World
) -> None:
    service = install(watchdog=SHORT_WATCHDOG)
    service.start()
    before = service.pid
    service.signal(before, "STOP")
    service.journal.wait_systemd("Watchdog timeout")
    with world.greeted() as client:
        assert client.ask("NOOP").code == 250
    service.journal.lines.wait_for("most recent call first")
    assert service.pid != before
    assert service.state("NRestarts")["NRestarts"] == "1"


def test_a_crash_under_load_refuses_nobody(running: Service, world: World) -> None:
    """Open sessions are cut.  Clients repeat unanswered messages, so duplicates may occur."""
    before = running.pid
    with world.load() as load:
        load.wait_for_more(20)
        running.signal(before, "KILL")
        load.wait_for_more(40)
    assert running.pid not in (0, before)
    assert nobody_refused(load, world.mta)


# Upgrade


def upgrade(service: Service) -> None:
    service.systemctl("kill", "--kill-whom=main", "--signal=USR2", "proxyshim.service")


def upgraded(service: Service) -> int:
    """Upgrade; return the successor's process id once it accepts connections."""
    mark = service.journal.lines.mark()
    upgrade(service)
    found = service.journal.wait_event("upgrade_handed_over", since=mark)
    return int(found["successor"])


def version_that_answers(service: Service) -> str:
    shown = service.metrics()
    return next(each for each in VERSIONS if f'version="{each}"' in shown)


def wait_for_end_of(service: Service, pid: int) -> None:
    service.machine.run("tail", f"--pid={pid}", "--follow", "/dev/null", within_s=20)


def test_an_upgrade_under_load_delays_and_loses_nothing(
    running: Service, world: World
) -> None:
    before = running.pid
    with world.load() as load:
        load.wait_for_more(20)
        running.machine.use("2.0")
        successor = upgraded(running)
        load.wait_for_more(40)
    assert all_well(load, world.mta)
    assert load.tally.turned_away == 0
    assert slowest_greeting_s(load) < 2
    wait_for_end_of(running, before)
    assert running.pid == successor
    assert version_that_answers(running) == "2.0"


def test_sessions_of_the_old_process_continue_after_an_upgrade(
    running: Service, world: World
) -> None:
    before = running.pid
    with world.greeted() as old:
        running.machine.use("2.0")
        successor = upgraded(running)
        with world.greeted() as new:
            old.send_message("<old-session@test>")
            assert old.reply().code == 250
            assert new.ask("QUIT").code == 221
        assert old.ask("QUIT").code == 221
    wait_for_end_of(running, before)
    running.journal.wait_event("session_closed", count=2)
    closed = [
        entry.pid
        for entry in running.journal.entries()
        if entry.event.get("event") == "session_closed"
    ]
    assert sorted(closed) == sorted([before, successor])
    assert running.pid == successor
    assert running.state("ActiveState")["ActiveState"] == "active"


@pytest.mark.parametrize("how", ["KILL", "STOP"])
def test_the_old_process_takes_over_from_a_successor_that_dies_or_hangs(
    how: str, install: Callable[..., Service], world: World
) -> None:
    """While the old process runs, systemd cannot watch the successor: it is no child."""
    service = install(watchdog=SHORT_WATCHDOG)
    service.start()
    before = service.pid
    with world.greeted() as old:
        successor = upgraded(service)
        with world.load() as load:
            load.wait_for_more(20)
            service.signal(successor, how)
            service.journal.wait_event("upgrade_failed", took_over=True)
            load.wait_for_more(20)
        # This takes longer than a watchdog would wait for a dead process.
        old.send_message("<still-there@test>", SLOWLY_ANSWERED)
        assert old.reply().code == 250
    assert nobody_refused(load, world.mta)
    assert service.pid == before
    service.systemctl("reload", "proxyshim.service")
    service.journal.wait_event("config_reloaded")
    after = upgraded(service)
    wait_for_end_of(service, before)
    assert service.pid == after


@pytest.mark.parametrize("how", ["KILL", "STOP"])
def test_a_successor_in_charge_is_watched_by_systemd(
    how: str, install: Callable[..., Service], world: World
) -> None:
    service = install(watchdog=SHORT_WATCHDOG)
    service.start()
    before = service.pid
    successor = upgraded(service)
    wait_for_end_of(service, before)
    assert service.pid == successor
    service.signal(successor, how)
    service.journal.wait_systemd("Scheduled restart job")
    with world.greeted() as client:
        assert client.ask("NOOP").code == 250
    assert service.pid not in (0, successor)


def test_a_successor_that_cannot_start_leaves_the_old_one_in_charge(
    running: Service, world: World
) -> None:
    before = running.pid
    with world.load() as load:
        load.wait_for_more(20)
        running.configure("[[listener]]\n")
        upgrade(running)
        running.journal.wait_event("upgrade_failed", status=78, took_over=False)
        running.configure(CONFIG)
        running.machine.use(BROKEN_VERSION)
        upgrade(running)
        running.journal.wait_event("upgrade_failed", status=1, took_over=False)
        load.wait_for_more(20)
    assert all_well(load, world.mta)
    assert running.pid == before
    assert running.state("ActiveState")["ActiveState"] == "active"


def test_a_stop_during_an_upgrade_drains_both(running: Service, world: World) -> None:
    before = running.pid
    with world.greeted() as old:
        old.send_message("<old-at-the-stop@test>", SLOWLY_ANSWERED)
        successor = upgraded(running)
        with world.greeted() as new:
            new.send_message("<new-at-the-stop@test>", SLOWLY_ANSWERED)
            world.mta.wait_for_dot("<new-at-the-stop@test>")
            running.systemctl("stop", "proxyshim.socket")
            running.systemctl("stop", "proxyshim.service")
            assert old.reply().code == 250
            assert new.reply().code == 250
    assert before != successor
    state = running.state("ActiveState", "Result")
    assert state == {"ActiveState": "inactive", "Result": "success"}


# The sandbox

# Runs in place of proxyshim, in its sandbox, and reports what it could do.
PROBE: Final = """\
import ctypes, json, os, pathlib, socket

def works(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        return error.strerror
    return True

def write(path):
    pathlib.Path(path, "probe").write_text("x")

def send(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (address, 9))

def connect(address):
    with socket.create_connection((address, 25), timeout=0.5):
        pass

def unshare():
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "event": "probed",
    "uid": os.getuid(),
    "capabilities": [status[key].strip() for key in
                     ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "processes": sum(name.isdecimal() for name in os.listdir("/proc")),
    "write": {path: works(write, path) for path in PLACES},
    "read": {path: works(os.listdir, path) for path in ("/root", "/home")},
    "send": {address: works(send, address) for address in ADDRESSES},
    "connect": works(connect, ELSEWHERE),
    "sockets": {name: works(socket.socket, getattr(socket, name), socket.SOCK_RAW)
                for name in ("AF_NETLINK", "AF_PACKET")},
    "unshare": works(unshare),
    "nice": works(os.nice, -5),
}))
"""
PLACES: Final = (
    "/",
    "/etc/proxyshim",
    "/opt",
    "/usr/local/bin",
    "/var/lib",
    "/var/log",
    "/run",
    "/dev/shm",
    "/sys/fs/cgroup",
    "/tmp",
    "/run/proxyshim",
)
ITS_OWN: Final = {"/tmp", "/run/proxyshim"}
ADDRESSES: Final = ("127.0.0.1", "127.0.0.53", "::1", MAIL, MAIL6, CLIENT, CLIENT6)
LOCAL: Final = {"127.0.0.1", "127.0.0.53", "::1"}


@pytest.fixture(scope="module")
def found(world: World) -> Mapping[str, Any]:
    """Run the probe as the service's program; return its findings."""
    values = {"PLACES": PLACES, "ADDRESSES": ADDRESSES, "ELSEWHERE": ELSEWHERE}
    names = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    world.machine.write("/opt/lab/probe.py", names + PROBE)
    with (
        listening_on(world.elsewhere, ELSEWHERE, 25) as there,
        Service(world.machine, "", probe=PROBE_INSTEAD) as service,
    ):
        service.systemctl("start", "proxyshim.service")
        result = service.journal.wait_event("probed")
        return {**result, "somebody connected": is_connected_to(there)}


PROBE_INSTEAD: Final = """\
[Service]
Type=oneshot
ExecStart=
ExecStart=/opt/proxyshim-1.0/bin/python /opt/lab/probe.py
Restart=no
"""


def test_a_program_in_the_sandbox_has_no_privileges(found: Mapping[str, Any]) -> None:
    assert found["uid"] != 0
    assert found["capabilities"] == ["0000000000000000"] * 5
    assert found["no_new_privileges"] == "1"
    assert found["processes"] == 1  # it sees itself
    assert found["unshare"] is not True
    assert found["nice"] is not True
    unsupported = "Address family not supported by protocol"
    assert found["sockets"] == {"AF_NETLINK": unsupported, "AF_PACKET": unsupported}
    assert found["read"] == dict.fromkeys(("/root", "/home"), "Permission denied")


def test_a_program_in_the_sandbox_can_write_only_to_its_own_directories(
    found: Mapping[str, Any],
) -> None:
    written = found["write"]
    assert {path for path, worked in written.items() if worked is True} == ITS_OWN


def test_a_program_in_the_sandbox_reaches_only_this_host(
    found: Mapping[str, Any],
) -> None:
    sent = {address for address, worked in found["send"].items() if worked is True}
    assert sent == LOCAL
    assert found["connect"] is not True
    assert found["somebody connected"] is False


def test_the_service_cannot_reach_a_mail_server_that_the_unit_does_not_allow(
    install: Callable[..., Service], world: World
) -> None:
    config = CONFIG.replace("127.0.0.1:10725", f"{ELSEWHERE}:10725")
    service = install(config + "connect_timeout_s = 0.5\n")
    service.start()
    with listening_on(world.elsewhere, ELSEWHERE, 10725) as there:
        with Client.open(world.client, SMTP, CLIENT) as client:
            assert client.reply().code == 421
        assert not is_connected_to(there)


def test_the_service_reaches_a_mail_server_that_a_drop_in_allows(
    install: Callable[..., Service], world: World
) -> None:
    allow = example("addresses").replace(
        "#IPAddressAllow=192.0.2.25", f"IPAddressAllow={ELSEWHERE}"
    )
    config = CONFIG.replace("127.0.0.1:10725", f"{ELSEWHERE}:10725")
    with listening_on(world.elsewhere, ELSEWHERE, 10725) as there, CountingMta(there):
        service = install(config, addresses=allow)
        service.start()
        with world.greeted() as client:
            assert client.ask("QUIT").code == 221


def test_names_are_looked_up_within_the_sandbox(
    install: Callable[..., Service], world: World
) -> None:
    """The sandbox allows the resolver library's threads, timers and sockets."""
    config = CONFIG.replace("resolve       = false", "resolve = true")
    dns = '\n[dns]\nnameservers = "127.0.0.1"\n'
    record = f"{ip_address(CLIENT).reverse_pointer}. PTR client.example."
    forward = f"client.example. A {CLIENT}"
    with running_resolver(world, [record, forward]):
        service = install(config + dns)
        service.start()
        with world.greeted() as client:
            assert client.ask("QUIT").code == 221
        assert 'proxyshim_names_total{result="confirmed"} 1.0' in service.metrics()


METRICS_SOCKET: Final = """\
[Socket]
FileDescriptorName=metrics
ListenStream=127.0.0.1:9125
Service=proxyshim.service
"""


@contextmanager
def unit(machine: Machine, name: str, text: str) -> Iterator[None]:
    """Install one more unit on *machine*."""
    machine.write(f"/etc/systemd/system/{name}", text)
    try:
        yield
    finally:
        machine.ask("systemctl", "stop", name)
        machine.run("rm", f"/etc/systemd/system/{name}")


@contextmanager
def mail_server_on_a_unix_socket(machine: Machine) -> Iterator[str]:
    """Run a mail server on a unix socket; yield its name for the key "backend"."""
    path = machine.shared / "mta"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(64)
        with CountingMta(sock):
            yield f"unix:{SHARED}/mta"
    path.unlink()


def test_the_service_needs_no_network_for_a_mail_server_on_a_unix_socket(
    install: Callable[..., Service], world: World
) -> None:
    """Even the metrics are available, if a socket unit opens their port."""
    machine = world.machine
    with (
        mail_server_on_a_unix_socket(machine) as backend,
        unit(machine, "proxyshim-metrics.socket", METRICS_SOCKET),
    ):
        config = CONFIG.replace("127.0.0.1:10725", backend)
        config = config.replace("127.0.0.1:9125", "systemd:metrics")
        service = install(config, unix=example("unix-backend"))
        service.systemctl("start", "proxyshim-metrics.socket")
        service.start()
        with world.greeted() as client:
            client.send_message("<unix@test>")
            assert client.reply().code == 250
        service.journal.wait_event("session_closed")
        assert "proxyshim_messages_accepted_total 1.0" in service.metrics()
        namespaces = {
            machine.run("readlink", f"/proc/{pid}/ns/net") for pid in (1, service.pid)
        }
    assert len(namespaces) == 2


def test_the_configuration_may_be_readable_by_root_only(
    install: Callable[..., Service], world: World
) -> None:
    service = install(credentials=marked("drop-in: credentials"))
    world.machine.run("chmod", "600", "/etc/proxyshim/proxyshim.toml")
    service.start()
    with world.greeted() as client:
        assert client.ask("QUIT").code == 221
    service.systemctl("reload", "proxyshim.service")
    service.journal.wait_event("config_reloaded")


def test_the_service_binds_its_ports_itself_without_a_socket_unit(
    install: Callable[..., Service], world: World
) -> None:
    config = CONFIG.replace('"systemd:smtp"', '["0.0.0.0:25", "[::]:25"]')
    service = install(config, bind=example("bind-port-25"))
    service.systemctl("start", "proxyshim.service")
    state = world.machine.show("proxyshim.socket", "ActiveState")
    assert state["ActiveState"] == "inactive"
    for address, source in ((MAIL, CLIENT), (MAIL6, CLIENT6)):
        with Client.greeted(world.client, (address, 25), source) as client:
            assert client.ask("QUIT").code == 221
    with world.load() as load:
        load.wait_for_more(20)
        upgraded(service)
        load.wait_for_more(20)
    assert all_well(load, world.mta)


def test_the_units_can_be_enabled_with_and_without_the_socket(
    install: Callable[..., Service], world: World
) -> None:
    service = install()
    units = "/usr/local/lib/systemd/system"
    both = ("proxyshim.socket", "proxyshim.service")
    try:
        world.machine.run("mv", f"{units}/{both[0]}", "/tmp/")
        service.systemctl("daemon-reload")
        service.systemctl("enable", "proxyshim.service")
        world.machine.run("mv", f"/tmp/{both[0]}", units)
        service.systemctl("daemon-reload")
        service.systemctl("enable", *both)
        # The service starts its socket, and not the other way round.
        service.systemctl("start", "proxyshim.service")
        with world.greeted() as client:
            assert client.ask("QUIT").code == 221
    finally:
        service.systemctl("disable", *both)


@pytest.mark.parametrize(
    ("config", "drop_ins", "keys"),
    [
        (
            CONFIG.replace("127.0.0.1:9125", f"{MAIL}:9125")
            .replace("127.0.0.1:10725", f"{ELSEWHERE}:10725")
            .replace("resolve       = false", "resolve = true")
            + f'[dns]\nnameservers = "{ELSEWHERE}"\n',
            {},
            {"metrics.bind", "listener mx: backend", "dns.nameservers"},
        ),
        (
            CONFIG,
            {"private": "[Service]\nPrivateNetwork=yes\n"},
            {"metrics.bind", "listener mx: backend", "listener mx: untrusted_claims"},
        ),
    ],
    ids=["addresses", "network"],
)
def test_settings_that_the_sandbox_forbids_are_logged_at_the_start(
    config: str,
    drop_ins: Mapping[str, str],
    keys: set[str],
    install: Callable[..., Service],
) -> None:
    service = install(config, **drop_ins)
    service.start()
    service.journal.wait_event("service_ready")
    said = {
        entry.event["key"]: entry.priority
        for entry in service.journal.entries()
        if entry.event.get("event") == "sandbox_forbids"
    }
    assert said == dict.fromkeys(keys, ERROR)


@pytest.mark.parametrize(
    ("config", "drop_ins", "words"),
    [
        (
            CONFIG.replace('"systemd:smtp"', '"127.0.0.1:24"'),
            {},
            "127.0.0.1:24.*CAP_NET_BIND_SERVICE",
        ),
        (
            CONFIG,
            {"unix": example("unix-backend")},
            "metrics.bind.*RestrictAddressFamilies=",
        ),
    ],
    ids=["port", "address-family"],
)
def test_a_socket_that_the_sandbox_forbids_fails_the_start(
    config: str,
    drop_ins: Mapping[str, str],
    words: str,
    install: Callable[..., Service],
) -> None:
    service = install(config, **drop_ins)
    units = ("proxyshim.socket", "proxyshim.service")
    assert service.machine.ask("systemctl", "start", *units).status != 0
    line = service.journal.lines.wait_for(words).string
    assert read_entry(line).priority == ERROR
