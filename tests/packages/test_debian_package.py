"""The Debian package under a real systemd: install, serve, upgrade, remove, purge."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.integration.lab.clients import Conversation
from tests.integration.lab.journal import Journal
from tests.integration.lab.machine import SHARED
from tests.packages.release import DEBIAN_12, DEBIAN_13, NEW, OLD, Release
from tests.packages.world import CLIENT, CONFIG, PROXY, SMTP, UNITS, World, open_world


@pytest.fixture(scope="class")
def world(
    request: pytest.FixtureRequest,
    packages: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    release: Release = request.cls.release
    directory = tmp_path_factory.mktemp(release.codename)
    with open_world(release.make_root(), directory, release.build(packages)) as made:
        yield made


@pytest.fixture
def installed(world: World) -> Iterator[World]:
    """Return the world with the old version installed, and purge it after the test."""
    world.install(OLD)
    yield world
    world.apt("purge", "proxyshim")


@pytest.fixture
def serving(installed: World) -> World:
    """Return the world with the service started as the documentation says."""
    installed.start()
    return installed


class PackageTests:
    """The tests, for each release in a class below: one process runs all of a class."""

    release: ClassVar[Release]

    def test_nothing_starts_and_no_port_is_taken(self, installed: World) -> None:
        for unit in UNITS:
            state = installed.machine.show(unit, "ActiveState", "UnitFileState")
            assert state == {"ActiveState": "inactive", "UnitFileState": "disabled"}

    def test_the_service_serves_as_installed(self, serving: World) -> None:
        user = serving.machine.run("stat", "-c", "%U", f"/proc/{serving.pid}")
        assert user.strip() == "proxyshim"
        with serving.greeted() as client:
            assert client.ask("QUIT").code == 221

    def test_the_units_are_accepted_with_their_documentation(
        self, installed: World
    ) -> None:
        # Without man: the release's own pages are left out of a minimal system.
        units = (f"/lib/systemd/system/{unit}" for unit in UNITS)
        said = installed.machine.run("systemd-analyze", "verify", "--man=no", *units)
        assert "proxyshim" not in said
        for unit in UNITS:
            named = installed.machine.show(unit, "Documentation")["Documentation"]
            [file] = re.findall(r"file:(\S+)", named)
            assert installed.machine.read(file)
            for name, section in re.findall(r"man:([\w.-]+)\((\d)\)", named):
                page = f"/usr/share/man/man{section}/{name}.{section}.gz"
                assert installed.machine.run("zcat", page)

    def test_bash_completes_commands(self, installed: World) -> None:
        script = (
            "source /usr/share/bash-completion/completions/proxyshim;"
            "COMP_WORDS=(proxyshim ch); COMP_CWORD=1; _proxyshim_completion proxyshim;"
            'echo "${COMPREPLY[@]}"'
        )
        assert installed.machine.run("bash", "-c", script).split() == ["check"]

    def test_the_empty_list_of_denied_clients_is_one_newline(
        self, serving: World
    ) -> None:
        path = "/var/lib/proxyshim/denied_clients"
        text = serving.machine.read(CONFIG)
        shown = '#denied_clients = "denied_clients"'
        serving.machine.write(CONFIG, text.replace(shown, f'denied_clients = "{path}"'))
        journal = Journal(serving.machine, "proxyshim.service")
        try:
            serving.machine.run("systemctl", "reload", "proxyshim")
            journal.wait_event("config_reloaded")
            serving.machine.write(f"{path}.new", f"{CLIENT}\n")
            serving.machine.run("mv", f"{path}.new", path)
            journal.wait_event("denylist_read")
        finally:
            journal.stop()
        with Conversation.open(serving.client, SMTP, CLIENT) as client:
            assert client.reply().code == 421

    def test_an_upgrade_keeps_sessions_and_configuration(self, serving: World) -> None:
        machine = serving.machine
        before, process = machine.read(CONFIG), serving.pid
        journal = Journal(machine, "proxyshim.service")
        try:
            with serving.greeted() as old_session:
                serving.install(NEW)
                journal.wait_event("upgrade_handed_over", sessions=1)
                # One session goes on with the old version while the new one serves.
                assert old_session.ask("NOOP").code == 250
                with serving.greeted() as new_session:
                    assert new_session.ask("QUIT").code == 221
                assert old_session.ask("QUIT").code == 221
            journal.lines.wait_for("New main PID|Supervising process")
        finally:
            journal.stop()
        assert serving.pid != process
        assert machine.run("proxyshim", "--version").split()[-1] == NEW
        assert machine.read(CONFIG) == before
        # Changed by us and by the new version: ours stays.
        assert machine.read("/etc/proxyshim/haproxy_hosts") == f"{PROXY}\n"
        # And back again.
        serving.apt(
            "install", "--allow-downgrades", f"{SHARED}/{serving.packages[OLD].name}"
        )
        assert machine.run("proxyshim", "--version").split()[-1] == OLD

    def test_removing_it_stops_the_service_and_keeps_the_configuration(
        self,
        serving: World,
    ) -> None:
        before = serving.machine.read(CONFIG)
        serving.apt("remove", "proxyshim")
        assert serving.machine.show("proxyshim.service", "ActiveState") == {
            "ActiveState": "inactive"
        }
        with pytest.raises(ConnectionRefusedError):
            serving.client.connect(SMTP, CLIENT)
        assert serving.machine.read(CONFIG) == before

    def test_a_purge_leaves_nothing(self, world: World) -> None:
        before = world.files()
        world.install(OLD)
        world.machine.run("systemctl", "enable", "--now", *UNITS)
        world.apt("purge", "proxyshim")
        assert sorted(world.files() - before) == []
        assert world.machine.ask("getent", "passwd", "proxyshim").status != 0


class TestDebian12(PackageTests):
    release = DEBIAN_12


class TestDebian13(PackageTests):
    release = DEBIAN_13
