"""What check says about addresses of this host in haproxy_hosts."""

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest

from proxyshim.addresses import Address
from proxyshim.check.own_addresses import read_own_addresses
from proxyshim.check.surroundings import look_around
from proxyshim.findings import Severity
from tests.unit.checking import contains, load
from tests.unit.test_check_findings import LISTED, judged_setup

OWN: Final[tuple[Address, ...]] = tuple(
    map(ip_address, ("127.0.0.1", "192.0.2.25", "::1", "2001:db8:2::25"))
)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("192.0.2.25", "192.0.2.25/32 (hosts: line 2) is this host, and it has other"),
        ("2001:db8:2::25", "2001:db8:2::25/128 (hosts: line 2) is this host, and"),
        (
            "192.0.2.0/24",
            "192.0.2.0/24 (hosts: line 2) contains this host (192.0.2.25)",
        ),
        (
            "2001:db8:2::/64",
            "contains this host (2001:db8:2::25), and it has other users",
        ),
    ],
)
def test_an_own_address_in_the_list_causes_a_warning_if_there_are_other_users(
    entry: str, says: str, tmp_path: Path
) -> None:
    loaded = load(tmp_path, LISTED)
    listed = ("203.0.113.10", entry)
    findings = judged_setup(loaded, *listed, users=("ann",), addresses=OWN)
    assert contains(findings, Severity.WARNING, says)
    alone = judged_setup(loaded, *listed, addresses=OWN)
    assert not any(each.severity is Severity.WARNING for each in alone)


def test_the_addresses_of_proxies_elsewhere_cause_no_warning(tmp_path: Path) -> None:
    listed = ("192.0.2.26", "203.0.113.0/24", "2001:db8:cb::10")
    found = judged_setup(load(tmp_path, LISTED), *listed, users=("ann",), addresses=OWN)
    assert not any(each.severity is Severity.WARNING for each in found)


def test_the_kernel_lists_the_addresses_of_this_host() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("127.0.0.1", 9))
        assert ip_address(probe.getsockname()[0]) in read_own_addresses()


def test_check_reads_the_addresses_of_this_host(tmp_path: Path) -> None:
    found = look_around(load(tmp_path, LISTED)).addresses
    assert found == read_own_addresses() != ()


def test_networks_and_broadcast_addresses_are_no_addresses_of_the_host(
    tmp_path: Path,
) -> None:
    (tmp_path / "fib_trie").write_text(
        """Main:
  +-- 192.0.2.0/24 2 0 2
     +-- 192.0.2.0/30 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.25
           /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
  |-- 198.51.100.0
     /24 host LOCAL
Local:
        |-- 192.0.2.25
           /32 host LOCAL
"""
    )
    (tmp_path / "if_inet6").write_text(
        "20010db8000200000000000000000025 04 40 00 82     eth0\n"
    )
    assert read_own_addresses(tmp_path) == tuple(
        map(ip_address, ("192.0.2.25", "2001:db8:2::25"))
    )


def test_a_host_that_hides_its_addresses_has_none(tmp_path: Path) -> None:
    assert read_own_addresses(tmp_path) == ()
