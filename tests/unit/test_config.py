"""The configuration: what it may contain, and how its mistakes are reported."""

from pathlib import Path

import pytest

from proxyshim.addresses import read_address
from proxyshim.config import CONVEYANCES, Config, load
from proxyshim.conveyance import BY_NAME
from proxyshim.errors import ConfigError

LISTENER = """
[[listener]]
name = "mx"
bind = "127.0.0.1:2525"
backend = "127.0.0.1:10725"
"""


def loaded(directory: Path, text: str, hosts: str = "") -> Config:
    """Load a configuration with this text."""
    path = directory / "proxyshim.toml"
    path.write_text(text)
    (directory / "haproxy_hosts").write_text(hosts)
    return load(path)


def complaints(directory: Path, text: str, hosts: str = "") -> list[str]:
    """Return the lines of the error that this text raises; each must name the file."""
    with pytest.raises(ConfigError) as raised:
        loaded(directory, text, hosts)
    lines = str(raised.value).splitlines()
    assert all(line.startswith(f"{directory}/") for line in lines)
    return [line.removeprefix(f"{directory}/proxyshim.toml: ") for line in lines]


def with_key(key: str, value: str) -> str:
    """Return a configuration whose listener has this key."""
    kept = [line for line in LISTENER.splitlines() if not line.startswith(f"{key} ")]
    return "\n".join([*kept, f"{key} = {value}\n"])


# Valid configurations.


def test_a_listener_with_three_keys_gets_the_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, LISTENER)
    (listener,) = config.listeners
    assert listener.settings.header_timeout_s == 30
    assert listener.settings.header_max_octets == 4096
    assert listener.settings.connect_timeout_s == 5
    assert listener.settings.reply_timeout_s == 60
    assert listener.settings.idle_timeout_s == 900
    assert listener.settings.haproxy_hosts is None
    assert listener.settings.convey == "xclient"
    assert listener.settings.allow_plaintext_auth is False
    assert len(listener.allowlist) == 0
    assert config.metrics is None
    assert (config.log.format, config.log.level) == ("json", "info")
    assert listener.ehlo_name != ""


def test_the_path_of_the_list_is_relative_to_the_configuration(tmp_path: Path) -> None:
    text = with_key("haproxy_hosts", '"haproxy_hosts"')
    config = loaded(tmp_path, text, "# proxies\n192.0.2.1\n2001:db8::/32\n")
    listener = config.listener("mx")
    assert listener is not None
    assert listener.allowlist.is_listed(read_address("192.0.2.1"))
    assert listener.allowlist.is_listed(read_address("2001:db8::7"))
    assert not listener.allowlist.is_listed(read_address("192.0.2.2"))


def test_a_list_may_have_100_000_entries(tmp_path: Path) -> None:
    entries = "".join(
        f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}\n" for n in range(100_000)
    )
    config = loaded(tmp_path, with_key("haproxy_hosts", '"haproxy_hosts"'), entries)
    (listener,) = config.listeners
    assert len(listener.allowlist) == 100_000
    assert listener.allowlist.is_listed(read_address("10.1.134.159"))
    assert not listener.allowlist.is_listed(read_address("10.1.134.160"))


@pytest.mark.parametrize("value", ["30", "30.5", "0.001"])
def test_seconds_may_have_a_fraction(tmp_path: Path, value: str) -> None:
    config = loaded(tmp_path, with_key("header_timeout_s", value))
    assert config.listeners[0].settings.header_timeout_s == float(value)


def test_a_single_text_may_stand_for_a_list_of_one(tmp_path: Path) -> None:
    config = loaded(tmp_path, with_key("untrusted_claims", '"10.0.0.0/8"'))
    assert read_address("10.1.2.3") in config.listeners[0].untrusted_claims


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    assert loaded(tmp_path, "\ufeff" + LISTENER).listeners[0].settings.name == "mx"


def test_two_listeners_may_both_let_the_kernel_choose_a_port(tmp_path: Path) -> None:
    one = LISTENER.replace(":2525", ":0")
    assert len(loaded(tmp_path, one + one.replace("mx", "mx2")).listeners) == 2


def test_convey_may_name_every_conveyance_and_nothing_else() -> None:
    assert set(CONVEYANCES) == set(BY_NAME)


# Mistakes.

WRONG_VALUES = [
    ("name", '"a b"', "expected a text that matches"),
    ("name", '"\\u001b[31m"', "'\\x1b[31m': expected "),
    ("name", "5", "expected a text in quotes"),
    ("bind", "5", "expected a list"),
    ("bind", "[]", "expected at least one entry"),
    ("bind", '"25"', 'expected "address:port", "[v6 address]:port" or "unix:/path"'),
    (
        "bind",
        '"::1:25"',
        'expected "address:port", "[v6 address]:port" or "unix:/path"',
    ),
    ("bind", '"127.0.0.1:65536"', 'expected "address:port"'),
    ("bind", '"unix:relative"', "expected an absolute path"),
    ("bind", '"systemd:"', "expected a socket unit's FileDescriptorName"),
    ("bind", '"[::zz]:25"', "expected"),
    (
        "backend",
        '"127.0.0.1:0"',
        'expected "address:port", "name:port" or "unix:/path"',
    ),
    ("backend", '"systemd:mx"', 'expected "address:port", "name:port" or "unix:/path"'),
    ("backend", '"a b:25"', "expected an address or a host name"),
    ("backend", f'"{"x" * 64}.test:25"', "expected an address or a host name"),
    ("backend", '"mx..test:25"', "expected an address or a host name"),
    ("backend", '"unix:/run/a\\u0000b"', "expected no control characters"),
    ("haproxy_hosts", '""', "expected a text that is not empty"),
    ("haproxy_hosts", "[]", "expected a text in quotes"),
    ("haproxy_hosts", '"a\\u0000b"', "expected no control characters"),
    ("haproxy_hosts", '"nowhere"', "No such file or directory"),
    ("haproxy_hosts", '"/"', "Is a directory"),
    ("header_timeout_s", '"30"', "expected a number"),
    ("header_timeout_s", "true", "expected a number"),
    ("header_timeout_s", "0", "expected greater than 0"),
    ("header_timeout_s", "inf", "expected a finite number"),
    ("header_timeout_s", "nan", "expected a finite number"),
    ("header_max_octets", "4096.5", "expected a whole number"),
    ("header_max_octets", "70000", "expected less than or equal to 65535"),
    ("ehlo_name", '"a b"', "expected a host name or an [address literal]"),
    ("untrusted_claims", "5", "expected a list"),
    ("convey", '"proxy-v3"', "expected 'xclient'"),
    ("convey", "1", "expected 'xclient'"),
    ("allow_plaintext_auth", "1", "expected true or false"),
    ("unix_mode", '"660"', "expected a text that matches"),
    ("unix_mode", "432", "expected a text in quotes"),
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG_VALUES)
def test_a_wrong_value_gives_one_complaint_that_names_it(
    tmp_path: Path, key: str, value: str, expected: str
) -> None:
    (complaint,) = complaints(tmp_path, with_key(key, value))
    assert key in complaint
    assert expected in complaint
    shown = value.strip('"').replace("\\u0000", "\\x00").replace("\\u001b", "\\x1b")
    assert shown.capitalize() in complaint or shown in complaint


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            with_key("haproxy_host", '"x"'),
            "listener[1].haproxy_host = 'x': unknown key; did you mean 'haproxy_hosts'?",
        ),
        (
            with_key("header_timeout", "3"),
            "listener[1].header_timeout = 3: unknown key;"
            " did you mean 'header_timeout_s'?",
        ),
        (
            LISTENER + '[log]\nlevle = "info"\n',
            "log.levle = 'info': unknown key; did you mean 'level'?",
        ),
        (
            LISTENER + '[logs]\nlevel = "info"\n',
            "logs = {'level': 'info'}: unknown key; did you mean 'log'?",
        ),
        (
            LISTENER + '[log]\nlevel = "loud"\n',
            "log.level = 'loud': expected 'debug', 'info', 'warning' or 'error'",
        ),
        (
            LISTENER + '[metrics]\nbind = "unix:/x"\n',
            'metrics.bind = \'unix:/x\': expected "address:port" or "systemd:NAME"',
        ),
        (LISTENER + "[metrics]\n", "metrics.bind: missing; it has no default"),
        ("", "listener: missing; it has no default"),
        (
            LISTENER.replace("[[listener]]", "[listener]"),
            "listener = {'name': 'mx', 'bind': '127.0.0.1:2525',"
            " 'backend': '127.0.0.1:10725'}: expected one or more [[listener]] tables",
        ),
        (
            LISTENER + LISTENER.replace("2525", "2526"),
            "listener.name = 'mx': appears more than once",
        ),
        (
            LISTENER + LISTENER.replace('"mx"', '"mx2"'),
            "listener.bind = '127.0.0.1:2525': appears more than once",
        ),
        (
            LISTENER.replace('"127.0.0.1:10725"', "[]"),
            "listener[1].backend = []: expected at least one entry",
        ),
        (
            LISTENER.replace('"127.0.0.1:10725"', '["127.0.0.1:10725", "mx"]'),
            "listener[1].backend[2] = 'mx': expected \"address:port\","
            ' "[v6 address]:port" or "unix:/path"',
        ),
        (
            LISTENER.replace('"127.0.0.1:10725"', '["mx.test:25", "mx.test:25"]'),
            "listener.backend = 'mx.test:25': appears more than once",
        ),
        (
            with_key("convey", '"source-address"').replace("127.0.0.1:10", "unix:/1"),
            "listener mx: backend = 'unix:/1725': expected an address or a name"
            ' with a port, because with convey = "source-address" the backend reads the'
            " client's address from its socket, and a unix socket has none",
        ),
        (
            with_key("untrusted_claims", '["10.0.0.0/8", "10.0.0.1/8"]'),
            "listener mx: untrusted_claims: entry 2: '10.0.0.1/8': has host bits set:"
            " write 10.0.0.0/8 for the network, or 10.0.0.1 for the single address",
        ),
    ],
)
def test_a_mistake_gives_exactly_this_complaint(
    tmp_path: Path, text: str, complaint: str
) -> None:
    assert complaints(tmp_path, text) == [complaint]


def test_an_unknown_key_without_a_near_one_lists_all_known_keys(tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, with_key("xyzzy", "1"))
    assert complaint.startswith(
        "listener[1].xyzzy = 1: unknown key; known: name, bind,"
    )


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = LISTENER + 'unix_mode = "1"\nxyzzy = 1\n[log]\nlevel = 5\n'
    assert len(complaints(tmp_path, text)) == 3


def test_bad_toml_gives_one_complaint(tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, "[[listener]]\nname mx\n")
    assert complaint.startswith("not TOML: ")
    assert "line 2" in complaint


def test_a_bad_entry_in_the_list_is_reported_with_line_and_value(
    tmp_path: Path,
) -> None:
    text = with_key("haproxy_hosts", '"haproxy_hosts"')
    (complaint,) = complaints(tmp_path, text, "192.0.2.1\n\n192.0.2.1/24 # all\n")
    assert complaint.startswith(
        f"{tmp_path}/haproxy_hosts: line 3: '192.0.2.1/24': has host bits set"
    )


def test_a_file_that_is_not_utf_8_gives_one_complaint(tmp_path: Path) -> None:
    path = tmp_path / "proxyshim.toml"
    path.write_bytes(b"# \xff\n")
    with pytest.raises(ConfigError, match=r"proxyshim\.toml: not UTF-8: .* at byte 2"):
        load(path)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/nowhere/at/all", "/nowhere/at/all: cannot be read: No such file"),
        ("/", "/: cannot be read: Is a directory"),
        ("/a\0b", r"'/a\x00b': cannot be read: "),
    ],
)
def test_the_complaint_about_an_unreadable_file_names_it(
    path: str, complaint: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(Path(path))
    assert str(raised.value).startswith(complaint)
