"""Two listeners on sockets of one or two units, and mistakes at the second port."""

from collections.abc import Callable

import pytest

from tests.docs import marked
from tests.integration.lab.service import Client, Service
from tests.integration.test_service_under_systemd import (
    CLIENT,
    MAIL,
    World,
    example,
    install,
    world,
)

__all__ = ["install", "world"]  # the fixtures

TWO_PORTS = marked("toml: two ports").replace("10587", "10725")
DIRECTORY = "/etc/systemd/system"
SUBMISSION = "proxyshim-submission.socket"


def is_greeted(world: World, port: int) -> bool:
    with Client.greeted(world.client, (MAIL, port), CLIENT) as client:
        return client.ask("QUIT").code == 221


def run_documented(service: Service, marker: str) -> None:
    for command in marked(marker).splitlines():
        service.machine.run(*command.split())


@pytest.fixture
def one_port(install: Callable[..., Service], world: World) -> Service:
    """Return the running service with port 25, before a second port is added."""
    service = install()
    service.start()
    assert is_greeted(world, 25)
    return service


def remove_second_unit(service: Service) -> None:
    service.machine.ask("systemctl", "disable", SUBMISSION)
    service.machine.ask("systemctl", "stop", "proxyshim.service", SUBMISSION)
    service.machine.run("rm", "-f", f"{DIRECTORY}/{SUBMISSION}")
    service.systemctl("daemon-reload")


def test_a_second_unit_gives_the_service_a_second_port(
    one_port: Service, world: World
) -> None:
    machine = one_port.machine
    machine.write(f"{DIRECTORY}/{SUBMISSION}", marked("unit: a second port"))
    try:
        one_port.configure(TWO_PORTS)
        with world.load() as load:
            load.wait_for_more(5)
            run_documented(one_port, "sh: a second port")
            load.wait_for_more(5)
        assert load.tally.faults == []  # nobody was refused at port 25
        assert is_greeted(world, 25)
        assert is_greeted(world, 587)
        one_port.systemctl("restart", "proxyshim.service")
        assert is_greeted(world, 587)
    finally:
        remove_second_unit(one_port)


def test_the_second_unit_alone_cannot_be_started_while_the_service_runs(
    one_port: Service, world: World
) -> None:
    machine = one_port.machine
    machine.write(f"{DIRECTORY}/{SUBMISSION}", marked("unit: a second port"))
    try:
        one_port.systemctl("daemon-reload")
        answer = machine.ask("systemctl", "start", SUBMISSION)
        assert answer.status != 0
        assert "already active, refusing" in machine.run("journalctl", "--no-pager")
        # What happened then: the next restart took port 25 down.
        one_port.configure(TWO_PORTS)
        one_port.systemctl("restart", "proxyshim.service")
        failed = one_port.journal.wait_event("bind_failed")
        assert "(passed: smtp with port 25)" in failed["detail"]
        assert is_greeted(world, 25)
        assert "NOT OPEN" in one_port.state("StatusText")["StatusText"]
    finally:
        remove_second_unit(one_port)


def test_one_unit_may_have_both_ports(one_port: Service, world: World) -> None:
    drop_in = f"{DIRECTORY}/proxyshim.socket.d/submission.conf"
    one_port.machine.write(
        drop_in, "[Socket]\nListenStream=0.0.0.0:587\nListenStream=[::]:587\n"
    )
    try:
        one_port.configure(
            TWO_PORTS.replace('"systemd:smtp"', '"systemd:smtp:25"').replace(
                '"systemd:submission"', '"systemd:smtp:587"'
            )
        )
        run_documented(one_port, "sh: a second port of the same unit")
        assert is_greeted(world, 25)
        assert is_greeted(world, 587)
    finally:
        one_port.machine.run("rm", "-f", drop_in)


def test_a_second_port_without_the_capability_leaves_port_25_open(
    one_port: Service, world: World
) -> None:
    one_port.configure(TWO_PORTS.replace('"systemd:submission"', '"0.0.0.0:587"'))
    one_port.systemctl("restart", "proxyshim.service")
    failed = one_port.journal.wait_event("bind_failed")
    assert "CAP_NET_BIND_SERVICE" in failed["detail"]
    assert is_greeted(world, 25)


def test_without_a_socket_unit_one_drop_in_is_enough_for_both_ports(
    install: Callable[..., Service], world: World
) -> None:
    both = TWO_PORTS.replace('"systemd:smtp"', '"0.0.0.0:25"').replace(
        '"systemd:submission"', '"0.0.0.0:587"'
    )
    service = install(both, bind=example("bind-port-25"))
    service.systemctl("start", "proxyshim.service")
    assert is_greeted(world, 25)
    assert is_greeted(world, 587)
