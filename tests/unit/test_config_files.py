"""What may be in the place of a file, and what may be in a file: always a ConfigError."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyshim.config import files, load, read_text
from proxyshim.errors import ConfigError, NotReadyError

LISTENER = """
[[listener]]
name = "mx"
bind = "127.0.0.1:2525"
backend = "127.0.0.1:10725"
"""


def complaint_about(path: Path) -> str:
    """Return the error that loading *path* raises."""
    with pytest.raises(ConfigError) as raised:
        load(path)
    return str(raised.value)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")  # reading it would never end


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "FIFO"),
        (make_socket, "socket"),
        (make_device, "device"),
        (os.mkdir, "directory"),
    ],
)
@pytest.mark.parametrize("name", ["proxyshim.toml", "haproxy_hosts"])
def test_what_is_not_a_regular_file_is_not_read(
    tmp_path: Path, name: str, make: Callable[[Path], None], kind: str
) -> None:
    config = tmp_path / "proxyshim.toml"
    config.write_text(LISTENER + 'haproxy_hosts = "haproxy_hosts"\n')
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    complaint = complaint_about(config)
    assert str(tmp_path / name) in complaint
    assert kind in complaint
    assert "expected a regular file" in complaint


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    hosts = tmp_path / "haproxy_hosts"
    hosts.touch()
    os.truncate(hosts, files.MAX_OCTETS + 1)  # a hole takes no place
    (tmp_path / "proxyshim.toml").write_text(
        LISTENER + 'haproxy_hosts = "haproxy_hosts"\n'
    )
    complaint = complaint_about(tmp_path / "proxyshim.toml")
    assert f"{hosts}: cannot be read: larger than {files.MAX_OCTETS}" in complaint


# A file system that does not answer.


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let each stat() hang until the event is set."""
    answered = threading.Event()
    monkeypatch.setattr(files, "LIMIT_S", 0.05)
    monkeypatch.setattr(files, "_read_regular", lambda _: answered.wait() and b"")
    yield answered
    answered.set()


def test_a_file_system_that_does_not_answer_is_named(
    tmp_path: Path, dead: threading.Event
) -> None:
    assert not dead.is_set()
    with pytest.raises(NotReadyError) as raised:
        read_text(tmp_path / "hosts")
    assert str(tmp_path / "hosts") in str(raised.value)
    assert "did not answer" in str(raised.value)


def test_abandoned_readers_are_bounded_and_make_room_at_their_end(
    tmp_path: Path, dead: threading.Event
) -> None:
    before = threading.active_count()
    for _ in range(3 * files._MAX_ABANDONED):
        with pytest.raises(NotReadyError):
            read_text(tmp_path / "hosts")
    assert threading.active_count() - before <= files._MAX_ABANDONED
    dead.set()
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline
    assert read_text(tmp_path / "hosts") == ""


# What a file may contain.

HOSTILE = {
    "a deep list": LISTENER + "x = " + "[" * 5000 + "]" * 5000,
    "a list just too deep": LISTENER + "x = " + "[" * 900 + "]" * 900,
    "a deep table": LISTENER + "x = " + "{a = " * 5000 + "1" + "}" * 5000,
    "a deep key": LISTENER + ".".join("a" * 2000) + " = 1",
    "a deep table name": "[" + ".".join("a" * 2000) + "]\n" + LISTENER,
    "a long number": LISTENER + "header_timeout_s = " + "1" * 5000,
    "a long integer": LISTENER + "header_max_octets = " + "1" * 5000,
    "a long hexadecimal number": LISTENER + "header_max_octets = 0x" + "f" * 5000,
    "a long hexadecimal name": LISTENER.replace('"mx"', "0x" + "f" * 5000),
    "a large float": LISTENER + "header_timeout_s = 1e99999",
    "a date": LISTENER + "header_timeout_s = 2026-02-30",
    "a long port": LISTENER.replace("2525", "2" * 5000),
    "a long key": LISTENER + "k" * 100_000 + " = 1",
    "a key of two lines": LISTENER + '"a\\nb" = 1',
    "thousands of mistakes": LISTENER.replace('"mx"', "[" + "1," * 9000 + "]"),
    "thousands of mistakes in bind": LISTENER.replace(
        '"127.0.0.1:2525"', "[" + "1," * 9000 + "]"
    ),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_any_error_in_a_file_is_a_short_configuration_error(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "proxyshim.toml"
    path.write_text(text)
    lines = complaint_about(path).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert len(lines) <= 11
    assert all(len(line) < 1000 for line in lines)


VALUES = st.recursive(
    st.integers(-(16**5000), 16**5000).map(hex)
    | st.sampled_from(["true", "1e400", "nan", '""', "2026-01-01", "07:32:00"])
    | st.integers(0, 2000).map(lambda n: "[" * n + "]" * n),
    lambda inner: st.lists(inner, max_size=3).map(lambda v: "[" + ",".join(v) + "]"),
    max_leaves=4,
)


@given(
    key=st.sampled_from(["name", "bind", "haproxy_hosts", "header_timeout_s", "x"]),
    value=VALUES,
)
def test_a_value_of_any_kind_raises_nothing_but_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    kept = [line for line in LISTENER.splitlines() if not line.startswith(f"{key} ")]
    path.write_text("\n".join([*kept, f"{key} = {value}\n"]))
    with suppress(ConfigError):  # a few of these values are valid
        load(path)


def test_a_haproxy_hosts_file_with_endless_digits_is_a_configuration_error(
    tmp_path: Path,
) -> None:
    hosts = tmp_path / "haproxy_hosts"
    hosts.write_text(f"192.0.2.1/{'1' * 5000}\n{'1' * 5000}.0.0.1\n")
    path = tmp_path / "proxyshim.toml"
    path.write_text(LISTENER + 'haproxy_hosts = "haproxy_hosts"\n')
    assert complaint_about(path).count(f"{hosts}: line ") == 2
