"""``convey = "source-address"`` as a service, with the units and drop-ins of this source tree."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.integration.lab.clients import Conversation
from tests.integration.lab.service import CONFIG, UNITS, Service
from tests.integration.test_service_under_systemd import (
    CLIENT,
    SMTP,
    World,
    example,
    install,
    world,
)

__all__ = ["install", "world"]  # the fixtures

STRANGER = "192.0.2.1"
BACKEND = 10726
SOURCE = CONFIG.replace("10725", str(BACKEND)) + 'convey = "source-address"\n'
ROUTES = "proxyshim-routes.service"
RULE = "1230:\tfrom 127.0.0.1 iif lo lookup 123"
NETWORKD = UNITS.parent / "etc" / "systemd-networkd" / "proxyshim-routes.conf"


@pytest.fixture
def backend(world: World) -> Iterator[socket.socket]:
    """Return the listening socket of a mail server that the test plays itself."""
    with world.machine.host.open_socket(socket.AF_INET) as listening:
        listening.settimeout(15.0)
        listening.bind(("127.0.0.1", BACKEND))
        listening.listen(8)
        yield listening


@contextmanager
def routes_unit(world: World, service: Service) -> Iterator[None]:
    text = (UNITS / ROUTES).read_text()
    place = f"/etc/systemd/system/{ROUTES}"
    world.machine.write(place, text)
    # The lab's own Python needs the same environment as in proxyshim.service.
    of_lab = "/etc/systemd/system/proxyshim.service.d/python.conf"
    world.machine.run("install", "-D", of_lab, f"{place}.d/python.conf")
    service.systemctl("daemon-reload")
    try:
        yield
    finally:
        service.systemctl("stop", ROUTES)
        world.machine.run("rm", "-r", place, f"{place}.d")


def greet_next(backend: socket.socket) -> str:
    """Greet the next connection, wait for its end, and return where it came from."""
    connection, (address, _) = backend.accept()
    with connection:
        connection.settimeout(15.0)
        connection.sendall(b"220 mx.test ESMTP\r\n")
        while connection.recv(1024):
            pass
    return str(address)


def rules(world: World) -> str:
    return world.machine.run("ip", "rule")


def test_the_service_connects_from_the_clients_address(
    install: Callable[..., Service], world: World, backend: socket.socket
) -> None:
    service = install(SOURCE, source=example("source-address"))
    with routes_unit(world, service):
        service.start()
        assert RULE in rules(world)  # the drop-in has started the other unit
        assert greet_next(backend) == STRANGER
        with Conversation.open(world.client, SMTP, CLIENT) as client:
            connection, (address, _) = backend.accept()
            with connection:
                connection.sendall(b"220 mx.test ESMTP\r\n")
                assert client.reply().code == 220
            assert address == CLIENT
    assert "1230:" not in rules(world)


def test_without_the_drop_in_the_service_says_what_it_lacks(
    install: Callable[..., Service], world: World, backend: socket.socket
) -> None:
    service = install(SOURCE)
    service.start()
    failed = service.journal.wait_event("source_failed")
    assert failed["reason"] == "source_forbidden"
    with Conversation.open(world.client, SMTP, CLIENT) as client:
        assert client.reply().octets.startswith(b"421 4.3.0 ")
    said = world.machine.ask("proxyshim", "check").output
    assert "proxyshim.service has no CAP_NET_RAW" in said


OWN, OTHER = f"{SMTP[0]}:2525", "192.0.2.99:25"


def test_the_routes_unit_may_set_all_that_the_other_cases_need(
    install: Callable[..., Service], world: World
) -> None:
    """A mark for the host's own address, and the packet filter for another host."""
    run = world.machine.run
    table = SOURCE.replace(f"127.0.0.1:{BACKEND}", OWN) + "source_mark = 123\n"
    second = table.partition("[[listener]]")[2].replace(OWN, OTHER)
    second = second.replace('"mx"', '"other"').replace("systemd:smtp", "127.0.0.1:2526")
    service = install(f"{table}\n[[listener]]{second}")
    with routes_unit(world, service):
        service.systemctl("start", ROUTES)
        assert "fwmark 0x7b lookup 123" in rules(world)
        assert run("sysctl", "-n", "net.ipv4.tcp_fwmark_accept").strip() == "1"
        filtered = run("nft", "list", "table", "inet", "proxyshim_routes")
        assert "socket transparent 1 meta mark set 0x0000007b" in filtered
    assert "fwmark" not in rules(world)
    assert "proxyshim_routes" not in run("nft", "list", "tables")


MANAGED = """\
[Match]
Name=managed0
[Network]
Address=192.0.2.200/32
LinkLocalAddressing=no
IPv6AcceptRA=no
"""


def test_networkd_keeps_the_rules_with_the_drop_in_only(
    install: Callable[..., Service], world: World
) -> None:
    service, run = install(SOURCE), world.machine.run
    place = "/etc/systemd/networkd.conf.d/proxyshim-routes.conf"
    world.machine.write("/etc/systemd/network/managed.network", MANAGED)
    kept = []
    with routes_unit(world, service):
        for text in ("[Network]\n", NETWORKD.read_text()):
            world.machine.write(place, text)
            service.systemctl("restart", "systemd-networkd.service", ROUTES)
            assert RULE in rules(world)
            # A link comes, and networkd configures it.
            run("ip", "link", "add", "managed0", "type", "veth", "peer", "managed1")
            run("ip", "link", "set", "managed1", "up")
            wait_online = "/usr/lib/systemd/systemd-networkd-wait-online"
            run(wait_online, "--interface=managed0:degraded", "--timeout=20")
            kept.append(RULE in rules(world))
            service.systemctl("stop", "systemd-networkd.service")
            run("ip", "link", "del", "managed0")
    run("rm", place, "/etc/systemd/network/managed.network")
    assert kept == [False, True]
