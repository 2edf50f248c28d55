"""An address that the kernel does not give us yet, in a network namespace of its own."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.lab.needs import find_program, need_root
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import write_config

ADDRESS = "2001:db8:2::25"
# While the kernel looks for duplicates, the address is tentative, and bind() fails.
TENTATIVE = f"""
ip link add one type veth peer name other
echo 3 > /proc/sys/net/ipv6/conf/one/dad_transmits
ip link set lo up
ip link set other up
ip link set one up
ip address add {ADDRESS}/64 dev one
"""
# The address of a cluster arrives from the other node only after the start.
LATE = f"""
ip link set lo up
{{ read line; ip address add {ADDRESS}/128 dev lo nodad; }} < "$GO" &
"""


@contextmanager
def started(
    directory: Path, prepare: str, *binds: str, hosts: str = ""
) -> Iterator[Process]:
    """Start a shim in a new network namespace, after these commands."""
    need_root()
    find_program("ip")
    (directory / "hosts").write_text(hosts)
    prepare = f"mount --bind {directory}/hosts /etc/hosts\n{prepare}"
    listener = {
        "name": "mx",
        "bind": binds or [f"[{ADDRESS}]:25"],
        "backend": "127.0.0.1:10725",
        "resolve": False,
    }
    run = f'{prepare}\nexec {sys.executable} -m proxyshim run -c "$1"'
    shim = Process(
        write_config(directory, [listener]),
        argv=[find_program("unshare"), "--net", "--mount", "sh", "-ec", run, "sh"],
        environment={"GO": str(directory / "go")},
    )
    try:
        yield shim
    finally:
        shim.kill()


def test_a_tentative_address_is_waited_for(tmp_path: Path) -> None:
    with started(tmp_path, TENTATIVE) as shim:
        failed = shim.wait_event("bind_failed")
        assert failed["detail"] == "Cannot assign requested address"
        shim.wait_event("service_ready")
        assert shim.address == f"[{ADDRESS}]:25"


def test_an_address_that_comes_from_another_host_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    with started(tmp_path, LATE) as shim:
        shim.wait_event("bind_failed")
        (tmp_path / "go").write_text("now\n")
        shim.wait_event("service_ready")
        assert shim.address == f"[{ADDRESS}]:25"


# A name.

BOTH = "127.0.0.1 localhost\n::1 localhost\n192.0.2.1 mx.test\n192.0.2.2 mx.test\n"
LOOPBACK = "ip link set lo up\n"
NO_IPV6 = LOOPBACK + "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6\n"
ONE_OF_TWO = LOOPBACK + "ip address add 192.0.2.1/32 dev lo\n"


def addresses(shim: Process) -> set[str]:
    return {each["address"] for each in shim.events("listener_opened")}


def test_localhost_is_bound_in_both_families(tmp_path: Path) -> None:
    with started(tmp_path, LOOPBACK, "localhost:25", hosts=BOTH) as shim:
        shim.wait_event("service_ready")
        assert addresses(shim) == {"127.0.0.1:25", "[::1]:25"}


@pytest.mark.parametrize("also", ["127.0.0.1:25", "[::1]:25", "0.0.0.0:25", "[::]:25"])
def test_localhost_may_stand_beside_one_of_its_addresses(
    tmp_path: Path, also: str
) -> None:
    """Before, only the first address of a name was bound, so people added the second."""
    with started(tmp_path, LOOPBACK, "localhost:25", also, hosts=BOTH) as shim:
        shim.wait_event("service_ready")
        assert also in addresses(shim)
        assert len(addresses(shim)) == 2


def test_localhost_without_ipv6_is_bound_in_the_other_family(tmp_path: Path) -> None:
    """Containers have ::1 in /etc/hosts, but often no such address."""
    with started(tmp_path, NO_IPV6, "localhost:25", hosts=BOTH) as shim:
        shim.wait_event("service_ready")
        assert addresses(shim) == {"127.0.0.1:25"}
        assert shim.events("bind_failed") == []


def test_a_name_is_served_only_with_all_of_its_addresses(tmp_path: Path) -> None:
    with started(tmp_path, ONE_OF_TWO, "mx.test:25", hosts=BOTH) as shim:
        shim.wait_event("bind_failed")
        assert addresses(shim) == set()


# A container.


@pytest.mark.parametrize("init", ["none", "tini"])
def test_an_upgrade_is_refused_where_it_would_end_the_container(
    tmp_path: Path, init: str
) -> None:
    need_root()
    fake = tmp_path / "tini"
    fake.write_text('#!/bin/sh\ntrap : USR2\n"$@" &\nwhile :; do wait; done\n')
    fake.chmod(0o755)
    (tmp_path / "haproxy_hosts").touch()
    listener = {"name": "mx", "bind": "127.0.0.1:0", "backend": "127.0.0.1:1"}
    shim = Process(
        write_config(tmp_path, [listener]),
        argv=[
            *(find_program("unshare"), "--pid", "--fork", "--kill-child"),
            *("--mount-proc", "--"),
            *([str(fake)] if init == "tini" else []),
            *(sys.executable, "-c", SIGNALS_ITSELF),
        ],
    )
    try:
        refused = shim.wait_event("upgrade_refused")
        assert refused["level"] == "warning"
        assert "container" in refused["detail"]
        assert shim.events("upgrade_started") == []
        shim.wait_event("config_reloaded")  # it serves on
    finally:
        shim.kill()


# A program that upgrades and then reloads as soon as it serves.
SIGNALS_ITSELF = """
import os, signal, sys
from proxyshim import cli
from proxyshim.service import daemon
real = daemon.Daemon._send_heartbeats
def send(self):
    real(self)
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGHUP)
daemon.Daemon._send_heartbeats = send
sys.argv[1:] = ["run", "-c", sys.argv[1]]
cli.main()
"""
