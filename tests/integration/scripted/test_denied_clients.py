"""Denied clients: who gets the 421, and how a file that changes comes into force."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from proxyshim.config.denylist import Signature, signature_of
from proxyshim.config.files import read_text
from proxyshim.errors import ConfigError
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import CLIENT, CLIENT6, LOCAL_CHECK, v1, v2
from tests.integration.scripted.shim import LISTED, STRANGER, Rig
from tests.integration.scripted.wire import LIMIT_S

Denying = Callable[..., Rig]


@pytest.fixture
def denying(rig_with: OpenRig, tmp_path: Path) -> Denying:
    """Return a function that opens a shim which denies some clients."""

    def open_it(text: str, **settings: object) -> Rig:
        (tmp_path / "denied").write_text(text)
        return rig_with(denied_clients="denied", **settings)

    return open_it


def denied_reply(address: str) -> bytes:
    return f"421 4.7.1 Access from [{address}] denied\r\n".encode()


def replace_file(rig: Rig, text: str) -> None:
    """Change the list as its writers should: by a rename."""
    new = rig.directory / "denied.new"
    new.write_text(text)
    new.rename(rig.directory / "denied")


def is_denied(rig: Rig) -> bool:
    """Return True if a direct client is refused because of the list."""
    return rig.connect(STRANGER).last_words() == denied_reply(STRANGER)


@pytest.mark.parametrize("write", [v1, v2])
@pytest.mark.parametrize(
    ("entry", "claimed", "shown"),
    [
        (CLIENT, CLIENT, CLIENT),
        ("203.0.113.0/24", CLIENT, CLIENT),
        (f"::ffff:{CLIENT}", CLIENT, CLIENT),
        (CLIENT, f"::ffff:{CLIENT}", CLIENT),
        ("2001:db8::/64", CLIENT6, CLIENT6),
    ],
)
def test_a_conveyed_client_is_denied_before_the_backend_is_contacted(
    denying: Denying,
    write: Callable[[str], bytes],
    entry: str,
    claimed: str,
    shown: str,
) -> None:
    rig = denying(f"{entry}\n")
    client = rig.connect(LISTED)
    client.send(write(claimed))
    assert client.last_words() == denied_reply(shown)
    story = rig.story()
    assert (story["outcome"], story["reason"]) == ("refused", "client_denied")
    assert story["client"].startswith((shown, f"[{shown}]"))
    denied = rig.events.wait("client_denied")
    assert (denied["level"], denied["reason"]) == ("info", "client_denied")
    assert rig.backend.was_left_alone()


def test_a_direct_client_is_denied_before_its_greeting(denying: Denying) -> None:
    rig = denying(f"{STRANGER}\n")
    client = rig.connect(STRANGER)
    assert client.last_words() == denied_reply(STRANGER)
    assert rig.backend.was_left_alone()
    assert rig.shim.server.metrics.refusals["client_denied"] == 1


def test_a_client_on_a_unix_socket_is_denied_by_its_claim(
    denying: Denying, tmp_path: Path
) -> None:
    rig = denying(f"{CLIENT}\n", bind=[f"unix:{tmp_path}/mx.sock"])
    client = rig.connect()
    client.send(v2())
    assert client.last_words() == denied_reply(CLIENT)


def test_a_client_that_is_not_in_the_list_is_served(denying: Denying) -> None:
    rig = denying("198.51.100.0/24\n")
    rig.pair(v1())
    rig.pair()


@pytest.mark.parametrize("header", [LOCAL_CHECK, v1("127.0.0.1"), v1(LISTED)])
def test_a_proxy_and_its_health_checks_are_never_denied(
    denying: Denying, header: bytes
) -> None:
    rig = denying("127.0.0.0/8\n")
    client, mta = rig.pair(header, LISTED)
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    rig.pair(v1())  # a client of the proxy, which is not in the list


def test_denied_clients_are_logged_once_a_minute_and_client(denying: Denying) -> None:
    rig = denying("203.0.113.0/24\n")
    for claimed in (CLIENT, CLIENT, "203.0.113.8", CLIENT):
        client = rig.connect(LISTED)
        client.send(v1(claimed))
        assert client.last_words() == denied_reply(claimed)
    rig.story(4)
    claims = [event["claimed"] for event in rig.events.find("client_denied")]
    assert claims == [f"{CLIENT}:40001", "203.0.113.8:40001"]
    levels = [event["level"] for event in rig.events.find("session_closed")]
    assert levels == ["info", "debug", "info", "debug"]


def test_a_denied_client_takes_no_share(denying: Denying) -> None:
    rig = denying(f"{CLIENT}\n", extra="[limits]\nsessions_per_client = 1\n")
    first, second = rig.connect(LISTED), rig.connect(LISTED)
    for client in (first, second):  # the first may still be closing
        client.send(v1())
        client.expect(denied_reply(CLIENT))


def test_denied_clients_use_up_no_rate(denying: Denying) -> None:
    limits = (
        "[limits]\nconnections_per_s = 0.001\nconnections_per_client_per_s = 0.001\n"
    )
    rig = denying(f"{STRANGER}\n{CLIENT}\n", extra=limits)
    for _ in range(3):
        assert is_denied(rig)
        client = rig.connect(LISTED)
        client.send(v1())
        assert client.last_words() == denied_reply(CLIENT)
    rig.pair(source="127.0.0.4")


# A file that changes.


def test_a_changed_file_comes_into_force_without_a_reload(denying: Denying) -> None:
    rig = denying("\n")
    client, mta = rig.pair()
    replace_file(rig, f"{STRANGER}\n")
    read = rig.events.wait("denylist_read", entries=1)
    assert (read["listener"], read["level"]) == ("mx", "info")
    assert is_denied(rig)
    client.send(b"NOOP\r\n")  # a session that is open stays what it is
    mta.expect(b"NOOP\r\n")
    replace_file(rig, "\n")
    rig.events.wait("denylist_read", entries=0)
    rig.pair()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("", "denied: is empty"),
        ("198.51.100.1\n127.0.0.3", "denied: line 2: '127.0.0.3': does not end with"),
        ("198.51.100.1\nspammer\n", "denied: line 2: 'spammer': expected an IP"),
        (None, "denied: cannot be read: No such file"),
    ],
)
def test_a_broken_file_changes_nothing_and_is_logged_once(
    denying: Denying, broken: str | None, words: str
) -> None:
    rig = denying(f"{STRANGER}\n")
    if broken is None:
        (rig.directory / "denied").unlink()
    else:
        replace_file(rig, broken)
    rejected = rig.events.wait("denylist_rejected")
    assert words in rejected["detail"]
    assert (rejected["listener"], rejected["level"]) == ("mx", "error")
    assert is_denied(rig)
    # Let at least one more look at the file pass.
    heartbeat = rig.shim.server.metrics.heartbeat
    beats = threading.Event()
    while rig.shim.server.metrics.heartbeat < heartbeat + 2:
        assert not beats.wait(0.05)
    assert len(rig.events.find("denylist_rejected")) == 1
    replace_file(rig, f"{STRANGER}\n198.51.100.1\n")
    rig.events.wait("denylist_read", entries=2)


def test_each_change_to_another_broken_file_is_logged(denying: Denying) -> None:
    rig = denying("\n")
    replace_file(rig, "a\n")
    rig.events.wait("denylist_rejected")
    replace_file(rig, "b\n")
    rig.events.wait("denylist_rejected", count=2)


def test_a_file_that_could_not_be_read_is_read_when_it_can(
    denying: Denying, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = denying("\n")
    fails = threading.Event()
    fails.set()

    def read(path: Path) -> str:
        if fails.is_set():
            raise ConfigError(f"{path}: cannot be read: Too many open files")
        return read_text(path)

    monkeypatch.setattr("proxyshim.service.denylists.read_text", read)
    replace_file(rig, f"{STRANGER}\n")
    rig.events.wait("denylist_rejected")
    fails.clear()
    rig.events.wait("denylist_read", entries=1)


def test_a_reload_reads_the_file_and_may_name_another(denying: Denying) -> None:
    rig = denying("\n")
    other = rig.directory / "other"
    other.write_text(f"{STRANGER}\n")
    text = rig.shim.config.read_text()
    rig.shim.config.write_text(text.replace('"denied"', '"other"'))
    rig.shim.reload()
    assert is_denied(rig)
    rig.shim.config.write_text(text.replace('denied_clients = "denied"', ""))
    rig.shim.reload()
    rig.pair()
    assert rig.shim.server.metrics._denylists == {"mx": 0}


def test_a_file_system_that_hangs_does_not_hold_up_another_file(
    denying: Denying, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = denying("\n")
    hangs, goes_on = threading.Event(), threading.Event()

    def look(path: Path) -> Signature:
        if path.name == "denied":
            hangs.set()
            goes_on.wait(LIMIT_S)
        return signature_of(path)

    monkeypatch.setattr("proxyshim.service.denylists.signature_of", look)
    assert hangs.wait(LIMIT_S)
    rig.pair()  # sessions do not notice
    other = rig.directory / "other"
    other.write_text("\n")
    text = rig.shim.config.read_text()
    rig.shim.config.write_text(text.replace('"denied"', '"other"'))
    rig.shim.reload()
    other.write_text(f"{STRANGER}\n")
    rig.events.wait("denylist_read", entries=1)
    goes_on.set()


@pytest.mark.parametrize("broken", ["", "127.0.0.3", "spammer\n"])
def test_a_reload_with_a_broken_file_is_rejected(denying: Denying, broken: str) -> None:
    rig = denying(f"{STRANGER}\n")
    replace_file(rig, broken)
    with pytest.raises(ConfigError, match="denied_clients = 'denied'"):
        rig.shim.reload()
    assert is_denied(rig)


def test_a_long_list_is_read_while_sessions_go_on(denying: Denying) -> None:
    rig = denying("\n")
    client, mta = rig.pair()
    entries = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(100_000)]
    replace_file(rig, "\n".join([*entries, STRANGER, ""]))
    while not rig.events.find("denylist_read"):
        client.send(b"NOOP\r\n")
        mta.expect(b"NOOP\r\n")
        mta.send(b"250 ok\r\n")
        client.expect(b"250 ok\r\n")
    rig.events.wait("denylist_read", entries=100_001)
    assert is_denied(rig)
