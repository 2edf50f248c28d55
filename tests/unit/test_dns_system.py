"""/etc/resolv.conf and /etc/hosts, read as glibc does."""

import asyncio
import os
from ipaddress import ip_address
from pathlib import Path

import pytest
from dns.name import Name, from_text

from proxyshim.dns import system
from proxyshim.dns.client import split_server
from proxyshim.dns.system import Hosts, ResolvConf, System, parse_resolv_conf


def names(*texts: str) -> tuple[Name, ...]:
    return tuple(map(from_text, texts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ResolvConf()),
        ("nameserver 192.0.2.53\n", ResolvConf(("192.0.2.53",))),
        (
            "nameserver ::1\n nameserver 192.0.2.1 # near\n;nameserver 192.0.2.2\n",
            ResolvConf(("::1", "192.0.2.1")),
        ),
        ("nameserver fe80::1%lo\n", ResolvConf(("fe80::1%lo",))),
        (
            "".join(f"nameserver 192.0.2.{n}\n" for n in range(5)),
            ResolvConf(("192.0.2.0", "192.0.2.1", "192.0.2.2")),
        ),
        (
            "search a.example b.example.\noptions timeout:1 ndots:5 rotate\n",
            ResolvConf(search=names("a.example", "b.example"), ndots=5),
        ),
        (
            "search a.example\ndomain b.example\n",
            ResolvConf(search=names("b.example")),
        ),
        ("search .\n", ResolvConf()),
        ("options ndots:x ndots:99999\n", ResolvConf(ndots=15)),
        ("options ndots:-1\n", ResolvConf(ndots=0)),
        ("nameserver\nsearch\noptions\n\0\xff\n", ResolvConf()),
        (
            "nameserver dns.example\nsearch a..example\nnameserver 192.0.2.1\n",
            ResolvConf(("192.0.2.1",)),
        ),
    ],
)
def test_resolv_conf_is_read(
    text: str, expected: ResolvConf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "mx")
    assert parse_resolv_conf(text) == expected


@pytest.mark.parametrize(
    ("host_name", "search"),
    [
        ("mx.example.org", names("example.org")),
        ("mx", ()),
        ("", ()),
    ],
)
def test_without_a_search_domain_that_of_the_host_counts(
    host_name: str, search: tuple[Name, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host_name)
    found = parse_resolv_conf("nameserver 192.0.2.1\n")
    assert found == ResolvConf(("192.0.2.1",), search)


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("mx", ["mx.a.example.", "mx.b.example.", "mx."]),
        ("mx.mail", ["mx.mail.", "mx.mail.a.example.", "mx.mail.b.example."]),
        ("mx.", ["mx."]),
        (".".join(["x" * 61] * 4), [".".join(["x" * 61] * 4) + "."]),
    ],
)
def test_search_domains_are_tried_in_glibcs_order(
    name: str, candidates: list[str]
) -> None:
    conf = ResolvConf(search=names("a.example", "b.example"))
    found = conf.candidates(from_text(name, origin=None))
    assert [str(each) for each in found] == candidates


@pytest.mark.parametrize(
    ("server", "parts"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("::1", ("::1", 53)),
        ("2001:db8::53", ("2001:db8::53", 53)),
        ("[::1]:5353", ("::1", 5353)),
        ("fe80::1%lo", ("fe80::1%lo", 53)),
    ],
)
def test_a_server_has_an_address_and_a_port(
    server: str, parts: tuple[str, int]
) -> None:
    assert split_server(server) == parts


HOSTS = """\
127.0.0.1  localhost loop
::1        localhost ip6-localhost   # both
fe80::1%lo link
192.0.2.1  Mx.Example mx
192.0.2.2  mx.example
not-an-address name
192.0.2.3
"""


def test_hosts_are_found_by_name_and_by_address() -> None:
    hosts = Hosts(HOSTS)
    assert hosts.name_of(ip_address("192.0.2.1")) == "Mx.Example"
    assert hosts.name_of(ip_address("192.0.2.3")) is None
    found = [str(each) for each in hosts.addresses_of("MX.example.")]
    assert found == ["192.0.2.1", "192.0.2.2"]
    assert {each.version for each in hosts.addresses_of("localhost")} == {4, 6}
    assert hosts.addresses_of("name") == []


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put both files into a directory of the test."""
    monkeypatch.setattr(system, "HOSTS", tmp_path / "hosts")
    monkeypatch.setattr(system, "RESOLV_CONF", tmp_path / "resolv.conf")
    return tmp_path


def test_files_are_looked_at_once_a_second_and_on_reload(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("proxyshim.dns.system.time.monotonic", lambda: now)
    found = System()
    assert found.servers() == ("127.0.0.1",)
    (files / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    assert found.servers() == ("127.0.0.1",)
    now += system.LOOK_AGAIN_S
    assert found.servers() == ("192.0.2.1",)
    (files / "resolv.conf").write_text("nameserver 192.0.2.2\n")
    found.reload()
    assert found.servers() == ("192.0.2.2",)


def test_many_sessions_share_one_reading_of_hosts(files: Path) -> None:
    (files / "hosts").write_text(HOSTS)

    async def scenario() -> None:
        found = System()
        all_of_them = await asyncio.gather(*(found.hosts() for _ in range(20)))
        assert len(set(map(id, all_of_them))) == 1
        assert all_of_them[0].addresses_of("mx")

    asyncio.run(scenario())


def test_a_file_that_is_no_regular_file_counts_as_empty(files: Path) -> None:
    os.mkfifo(files / "hosts")
    os.mkfifo(files / "resolv.conf")

    async def scenario() -> None:
        found = System()
        assert found.servers() == ("127.0.0.1",)
        assert (await found.hosts()).addresses_of("localhost") == []

    asyncio.run(scenario())
