"""Upgrading a host from Debian 12 to 13 while proxyshim serves."""

from pathlib import Path

from tests.integration.lab.machine import SHARED
from tests.packages.release import DEBIAN_12, DEBIAN_13, OLD
from tests.packages.roots import change_root
from tests.packages.world import CONFIG, World, open_world

# The machine has no network, so apt-get downloads before, and upgrades later.
DOWNLOAD = """\
sed -i s/{old}/{new}/ /etc/apt/sources.list
apt-get -qq update
apt-get -qq -y --download-only full-upgrade
apt-get -qq -y --download-only --no-install-recommends install {packages}
"""


def is_served(world: World) -> bool:
    with world.greeted() as client:
        return client.ask("QUIT").code == 221


def test_mail_flows_while_the_release_is_upgraded(
    packages: Path, tmp_path: Path
) -> None:
    script = DOWNLOAD.format(
        old=DEBIAN_12.codename,
        new=DEBIAN_13.codename,
        packages=" ".join(DEBIAN_13.needed_to_run()),
    )
    root = change_root(DEBIAN_12.make_root(), "upgrade", script)
    before = DEBIAN_12.build(packages)
    after = DEBIAN_13.build(packages)[OLD]
    with open_world(root, tmp_path, {OLD: before[OLD], "the next": after}) as world:
        world.install(OLD)
        # The system has it already, and does not know what for.
        world.machine.run("apt-mark", "auto", "python3.11")
        world.start()
        config, process = world.machine.read(CONFIG), world.pid
        with world.greeted() as session:
            world.apt("full-upgrade")
            assert session.ask("NOOP").code == 250
        assert 'VERSION_ID="13"' in world.machine.read("/etc/os-release")
        assert world.pid == process
        assert is_served(world)
        # The package for Debian 12 still works on Debian 13.
        world.machine.run("systemctl", "restart", "proxyshim.service")
        assert is_served(world)
        assert "python3.11" in world.machine.read("/usr/bin/proxyshim")

        with world.greeted() as session:
            world.apt("install", f"{SHARED}/{after.name}")
            assert session.ask("NOOP").code == 250
        assert is_served(world)
        assert "python3.11" not in world.machine.read("/usr/bin/proxyshim")
        world.apt("autoremove", "--purge")
        assert world.machine.ask("which", "python3.11").status != 0
        world.machine.run("systemctl", "restart", "proxyshim.service")
        assert is_served(world)
        assert world.machine.read(CONFIG) == config
