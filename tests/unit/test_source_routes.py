"""Which policy routes a set of backends needs, and how ``check`` reads those of the host."""

from ipaddress import ip_address
from typing import Any

import pytest

from proxyshim.conveyance import source_check
from proxyshim.conveyance.source_check import find_missing
from proxyshim.conveyance.source_routes import (
    Place,
    Target,
    commands_to_set,
    place_of,
)

LOOP = Target(ip_address("127.0.0.1"), Place.LOOPBACK)
LOOP6 = Target(ip_address("::1"), Place.LOOPBACK)
OWN = Target(ip_address("192.0.2.25"), Place.OWN_ADDRESS, 5)
OTHER = Target(ip_address("192.0.2.26"), Place.OTHER_HOST)

ROUTE: dict[str, Any] = {"type": "local", "dst": "default", "dev": "lo"}
MAIN: dict[str, Any] = {"priority": 32766, "src": "all", "table": "main"}
OF_LOOP = {"src": "127.0.0.1", "iif": "lo", "table": "123"}
OF_MARK = {"src": "all", "fwmark": "0x5", "table": "123"}


def test_each_place_of_a_backend_has_its_rule() -> None:
    assert [each.selector for each in (LOOP, LOOP6, OWN, OTHER)] == [
        "from 127.0.0.1 iif lo",
        "from ::1 iif lo",
        "fwmark 0x5",
        "fwmark 0x7b",
    ]


def test_backends_at_one_address_need_its_routes_once() -> None:
    assert commands_to_set([LOOP, LOOP6, LOOP]) == [
        "ip -4 rule add pref 1230 from 127.0.0.1 iif lo lookup 123",
        "ip -6 rule add pref 1230 from ::1 iif lo lookup 123",
        "ip -4 route replace local default dev lo table 123",
        "ip -6 route replace local default dev lo table 123",
    ]


def test_a_marked_backend_inherits_the_mark() -> None:
    assert "sysctl -q -w net.ipv4.tcp_fwmark_accept=1" in commands_to_set([OWN])
    assert not any("nft" in command for command in commands_to_set([OWN]))


def test_only_a_backend_on_another_host_needs_the_packet_filter() -> None:
    assert not any("sysctl" in command for command in commands_to_set([OTHER]))
    assert any(
        command.endswith("socket transparent 1 meta mark set 0x7b'")
        for command in commands_to_set([OTHER])
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_recognised(address: str) -> None:
    assert place_of(ip_address(address)) is Place.LOOPBACK


def host(
    monkeypatch: pytest.MonkeyPatch,
    rules: list[dict[str, Any]],
    routes: list[dict[str, Any]],
    accept_mark: str = "1",
    filters: str = "socket transparent 1",
) -> None:
    """Make the host's rules, routes and settings these."""
    shown = {"rule": rules, "route": routes}
    monkeypatch.setattr(source_check, "_json", lambda *argv: shown[argv[3]])
    monkeypatch.setattr(source_check, "_kernel_setting", lambda _: accept_mark)
    monkeypatch.setattr(source_check, "_output", lambda *_: filters)


@pytest.mark.parametrize(
    ("target", "rules"),
    [
        (LOOP, [MAIN, OF_LOOP]),
        (LOOP, [{"src": "127.0.0.0", "srclen": 8, "iif": "lo", "table": "7"}]),
        (OWN, [OF_MARK, MAIN]),
        (OTHER, [{**OF_MARK, "fwmark": "0x7b"}]),
    ],
)
def test_a_prepared_host_lacks_nothing(
    monkeypatch: pytest.MonkeyPatch, target: Target, rules: list[dict[str, Any]]
) -> None:
    host(monkeypatch, rules, [ROUTE])
    assert list(find_missing(target, is_marked=True)) == []


@pytest.mark.parametrize(
    ("target", "rules", "routes", "settings", "expected"),
    [
        (LOOP, [MAIN], [ROUTE], {}, "run ip -4 rule add pref 1230 from 127.0.0.1"),
        (LOOP, [{**OF_LOOP, "iif": "eth0"}], [ROUTE], {}, "rule add"),
        (LOOP, [{**OF_LOOP, "src": "127.0.0.2"}], [ROUTE], {}, "rule add"),
        (LOOP, [OF_LOOP], [], {}, "run ip -4 route replace local default"),
        (LOOP, [OF_LOOP], [{**ROUTE, "dst": "10.0.0.0/8"}], {}, "route replace"),
        (LOOP, [OF_LOOP], [{**ROUTE, "type": "unicast"}], {}, "route replace"),
        (OWN, [{**OF_MARK, "fwmark": "0x6"}], [ROUTE], {}, "fwmark 0x5"),
        (OWN, [OF_MARK], [ROUTE], {"accept_mark": "0"}, "tcp_fwmark_accept=1"),
        (
            OTHER,
            [{**OF_MARK, "fwmark": "0x7b"}],
            [ROUTE],
            {"filters": ""},
            "run nft add table inet proxyshim_routes; ",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
    target: Target,
    rules: list[dict[str, Any]],
    routes: list[dict[str, Any]],
    settings: dict[str, str],
    expected: str,
) -> None:
    host(monkeypatch, rules, routes, **settings)
    [missing] = find_missing(target, is_marked=True)
    assert expected in missing


def test_without_a_mark_that_is_the_one_thing_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host(monkeypatch, [], [])
    [missing] = find_missing(OWN, is_marked=False)
    assert "write source_mark = 123" in missing
