"""The table [dns], and the listener keys about names."""

from pathlib import Path

import pytest

from proxyshim.config import Config, Dns, load
from proxyshim.errors import ConfigError

LISTENER = '[[listener]]\nname = "mx"\nbind = "127.0.0.1:0"\nbackend = "127.0.0.1:1"\n'


def read(directory: Path, table: str) -> Config:
    path = directory / "proxyshim.toml"
    path.write_text(table + LISTENER)
    return load(path)


def test_without_the_table_the_systems_nameservers_are_used(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert config.dns == Dns()
    assert config.dns.nameservers == ()
    assert config.listeners[0].settings.resolve


@pytest.mark.parametrize(
    "value",
    ["192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:5353"],
)
def test_a_nameserver_is_given_by_its_address(tmp_path: Path, value: str) -> None:
    config = read(tmp_path, f'[dns]\nnameservers = ["{value}"]\n')
    assert config.dns.nameservers == (value,)


@pytest.mark.parametrize(
    "value",
    ["", "ns.example", "ns.example:53", "192.0.2.53:0", "192.0.2.53:65536", "1.2.3"],
)
def test_a_nameserver_that_is_not_an_address_is_an_error(
    tmp_path: Path, value: str
) -> None:
    with pytest.raises(ConfigError, match=r"dns\.nameservers\[1\]"):
        read(tmp_path, f'[dns]\nnameservers = ["{value}"]\n')


@pytest.mark.parametrize("key", ["max_cached = 0", "max_in_flight = 0", "cache = 5"])
def test_dns_bounds_cannot_be_turned_off(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=r"dns\."):
        read(tmp_path, f"[dns]\n{key}\n")
