"""What systemd does when proxyshim cannot start: again without end, or not at all."""

import time
from collections.abc import Callable

from tests.integration.lab.service import CONFIG, Service
from tests.integration.test_service_under_systemd import (
    CLIENT,
    MAIL,
    SMTP,
    World,
    install,
    world,
)

__all__ = ["install", "world"]  # the fixtures

LIMIT_S = 40.0
# More than systemd's own limit, which is five in ten seconds.
RESTARTS = 7
# No waiting between the starts, or the test takes too long.
AT_ONCE = "[Service]\nRestartSec=0\n"
CLUSTER = "198.51.100.99"


def wait_for(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline, what


def test_a_missing_address_is_waited_for_without_limit(
    install: Callable[..., Service], world: World
) -> None:
    config = CONFIG.replace(
        '"systemd:smtp"', f'["systemd:smtp", "{CLUSTER}:2525"]\nbind_timeout_s = 0.01'
    )
    service = install(config, quick=AT_ONCE)
    service.systemctl("start", "--no-block", "proxyshim.socket", "proxyshim.service")
    wait_for(
        "systemd gives up",
        lambda: int(service.state("NRestarts")["NRestarts"]) >= RESTARTS,
    )
    assert service.state("ActiveState")["ActiveState"] == "activating"
    status = service.journal.lines.wait_for("status=75/TEMPFAIL").string
    assert status
    address = ("ip", "address")
    world.machine.run(*address, "add", f"{CLUSTER}/24", "dev", device_of(world, MAIL))
    try:
        service.journal.wait_event("service_ready")
        with world.greeted() as client:
            assert client.ask("QUIT").code == 221
    finally:
        world.machine.run(
            *address, "del", f"{CLUSTER}/24", "dev", device_of(world, MAIL)
        )


def device_of(world: World, address: str) -> str:
    """Return the network device that has an address."""
    lines = world.machine.run("ip", "-oneline", "address").splitlines()
    [device] = [line.split()[1] for line in lines if f" {address}/" in line]
    return device.partition("@")[0]


def test_clients_do_not_start_a_broken_configuration_without_end(
    install: Callable[..., Service], world: World
) -> None:
    service = install(CONFIG.replace("name ", "nome "))
    service.systemctl("start", "proxyshim.socket")
    with world.client.connect(SMTP, CLIENT):
        # The connection stays in the queue and triggers the next start.
        wait_for("clients start it for ever", lambda: socket_state(world) == "failed")
    starts = service.journal.lines.since()
    assert sum("listener.*nome" in line or "nome" in line for line in starts) <= 6


def socket_state(world: World) -> str:
    return world.machine.show("proxyshim.socket", "ActiveState")["ActiveState"]
