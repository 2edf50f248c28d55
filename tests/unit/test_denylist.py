"""The list of denied clients: its grammar, half a file, and what counts as a change."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proxyshim.addresses import Endpoint, read_address
from proxyshim.allowlist import MAX_COMPLAINTS, Networks
from proxyshim.check.setup import judge_setup
from proxyshim.check.surroundings import Surroundings
from proxyshim.config import Config, load
from proxyshim.config.denylist import read_denylist, signature_of
from proxyshim.errors import ConfigError, PeerError, Reason
from proxyshim.identity import Identity
from proxyshim.metrics import Metrics
from proxyshim.session.denylist import DeniedClients

LISTENER = """
[[listener]]
name = "mx"
bind = "127.0.0.1:2525"
backend = "127.0.0.1:10725"
"""


def loaded(directory: Path, text: bytes | None) -> Config:
    """Load a configuration whose ``denied_clients`` has this text; None for no file."""
    path = directory / "proxyshim.toml"
    path.write_text(LISTENER + 'denied_clients = "denied"\n')
    if text is not None:
        (directory / "denied").write_bytes(text)
    return load(path)


def denies(config: Config, address: str) -> bool:
    [listener] = config.listeners
    assert listener.denylist is not None
    return read_address(address) in listener.denylist.networks


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.0/24", "203.0.113.7"),
        ("2001:db8::/32", "2001:db8:1::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.0/120", "203.0.113.7"),
        ("203.0.113.7", "::ffff:203.0.113.7"),
    ],
)
@pytest.mark.parametrize("line", ["{}\n", "# bans\n\n  {} # spam\n", "{}\r\n"])
def test_an_address_in_the_file_is_denied(
    tmp_path: Path, line: str, entry: str, address: str
) -> None:
    config = loaded(tmp_path, line.format(entry).encode())
    assert denies(config, address)
    assert not denies(config, "198.51.100.1")


@pytest.mark.parametrize("text", [b"\n", b"\r\n", b"# nobody\n"])
def test_a_file_with_a_newline_and_no_entry_denies_nobody(
    tmp_path: Path, text: bytes
) -> None:
    assert not denies(loaded(tmp_path, text), "203.0.113.7")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty; an empty list is one newline"),
        (b"\xef\xbb\xbf", "is empty; an empty list is one newline"),
        (b"203.0.113.7\n203.0.11", "line 2: '203.0.11': does not end with a newline"),
        (b"203.0.113.7", "line 1: '203.0.113.7': does not end with a newline"),
        (b"203.0.113.7\n ", "line 2: ' ': does not end with a newline"),
        (
            b"203.0.113.7\nspammer.example\n",
            "line 2: 'spammer.example': expected an IP",
        ),
        (b"0.0.0.0/0\n", "line 1: '0.0.0.0/0': would list every address there is"),
        (b"\xff\n", "not UTF-8"),
    ],
)
def test_half_a_file_and_a_broken_one_are_configuration_errors(
    tmp_path: Path, text: bytes | None, words: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text)
    [line] = str(raised.value).splitlines()
    assert line.startswith(
        f"{tmp_path}/proxyshim.toml: listener mx: denied_clients = 'denied':"
        f" {tmp_path}/denied: {words}"
    )


def test_a_directory_is_not_a_list(tmp_path: Path) -> None:
    (tmp_path / "denied").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        loaded(tmp_path, None)


def test_only_the_first_complaints_about_a_long_list_are_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, b"x\n" * 5_000)
    lines = str(raised.value).splitlines()
    assert len(lines) == MAX_COMPLAINTS + 1
    assert lines[-1].endswith(f": and {5_000 - MAX_COMPLAINTS} more bad entries")


def test_the_parser_rests_after_each_slice_of_a_long_list() -> None:
    rests: list[None] = []
    text = "".join(f"10.0.{n >> 8}.{n & 255}\n" for n in range(10_000))
    assert len(Networks.parse(text, "denied", lambda: rests.append(None))) == 10_000
    assert len(rests) >= 10


def test_check_names_the_number_of_denied_clients(tmp_path: Path) -> None:
    config = loaded(tmp_path, b"203.0.113.7\n198.51.100.0/24\n")
    texts = [finding.text for finding in judge_setup(config, Surroundings({}, ()))]
    assert any("2 clients or networks denied by denied" in text for text in texts)


# What counts as a change.


def replaced(path: Path) -> None:
    before = path.stat()
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(path)


def appended(path: Path) -> None:
    with path.open("a") as file:
        file.write("198.51.100.1\n")


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [replaced, appended, touched, removed])
def test_a_changed_file_has_another_signature(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "denied"
    path.write_text("203.0.113.7\n")
    denylist = read_denylist(path)
    assert signature_of(path) == denylist.signature
    change(path)
    assert signature_of(path) != denylist.signature


# Whom the list is about.


def endpoint(address: str) -> Endpoint:
    return Endpoint(read_address(address), 40001)


def test_a_denied_client_is_refused_and_a_health_check_never() -> None:
    denied = DeniedClients()
    client = endpoint("203.0.113.7")
    denied.check(Identity(client, None))
    denied.networks = Networks.parse("203.0.113.0/24\n", "denied")
    with pytest.raises(PeerError) as raised:
        denied.check(Identity(client, None))
    assert raised.value.reason is Reason.CLIENT_DENIED
    denied.check(Identity(endpoint("198.51.100.1"), None))
    denied.check(Identity(client, None, Reason.NO_CLIENT_ADDRESS))
    denied.check(Identity(client, None, Reason.CLAIM_NOT_BELIEVED))
    denied.check(Identity(None, None, Reason.NO_CLIENT_ADDRESS))


def test_the_size_of_a_denylist_is_exposed() -> None:
    metrics = Metrics()
    metrics.note_denylist("mx", 3)
    [family] = [m for m in metrics.collect() if m.name == "proxyshim_denylist_entries"]
    assert [(s.labels, s.value) for s in family.samples] == [({"listener": "mx"}, 3)]
