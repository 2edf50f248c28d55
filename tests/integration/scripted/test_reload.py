"""A reload: what it changes, what it reports as needing a restart, and that it is atomic."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from proxyshim.config import load
from proxyshim.errors import ConfigError
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import GREETING, Backend
from tests.integration.scripted.shim import STRANGER, Rig

METRICS = '[metrics]\nbind = "127.0.0.1:0"\n'


def change(rig: Rig, was: str, now: str) -> None:
    """Change the text of the configuration."""
    text = rig.shim.config.read_text()
    assert was in text
    rig.shim.config.write_text(text.replace(was, now))


def another_listener(name: str, backend: Backend, bind: str = "127.0.0.1:0") -> str:
    keys = {"name": name, "bind": [bind], "backend": backend.name}
    return "[[listener]]\n" + "".join(
        f"{k} = {json.dumps(v)}\n" for k, v in keys.items()
    )


def keys_needing_restart(rig: Rig, count: int = 1) -> list[str]:
    """Return the keys that the *count*-th warning names."""
    event: Mapping[str, Any] = rig.events.wait("restart_needed", count=count)
    assert event["level"] == "warning"
    return list(event["keys"])


def test_a_new_listener_needs_a_restart_and_does_no_harm(rig: Rig) -> None:
    change(rig, "[[listener]]", another_listener("new", rig.backend) + "\n[[listener]]")
    rig.shim.reload()
    assert keys_needing_restart(rig) == ["listener"]
    rig.events.wait("config_reloaded")
    rig.pair(v1())
    assert set(rig.shim.server.metrics._allowlists) == {"mx"}


def test_a_removed_listener_needs_a_restart_and_is_still_served(rig: Rig) -> None:
    change(rig, 'name = "mx"', 'name = "renamed"')
    rig.shim.reload()
    assert keys_needing_restart(rig) == ["listener"]
    rig.pair(v1())


@pytest.mark.parametrize(
    ("was", "now", "key"),
    [
        ('bind = ["127.0.0.1:0"]', 'bind = ["127.0.0.1:1"]', "listener.bind"),
        ("[[listener]]", '[[listener]]\nagent_bind = "127.0.0.1:1"', "listener.agent_bind"),
        ("[[listener]]", '[[listener]]\nunix_mode = "0600"', "listener.unix_mode"),
        (METRICS, "", "metrics.bind"),
        (METRICS, '[metrics]\nbind = "127.0.0.1:1"\n', "metrics.bind"),
        ("[[listener]]", '[log]\nlevel = "debug"\n[[listener]]', "log"),
        ("[[listener]]", "[dns]\nmax_cached = 1\n[[listener]]", "dns"),
    ],
)  # fmt: skip
def test_every_reload_names_the_keys_that_need_a_restart(
    rig_with: OpenRig, was: str, now: str, key: str
) -> None:
    rig = rig_with(extra=METRICS)
    before = rig.shim.config.read_text()
    change(rig, was, now)
    for count in (1, 2):
        rig.shim.reload()
        assert keys_needing_restart(rig, count) == [key]
    rig.shim.config.write_text(before)
    rig.shim.reload()  # the configuration of the start again, so there is no warning
    rig.events.wait("config_reloaded", count=3)
    assert len(rig.events.find("restart_needed")) == 2


def test_settings_and_list_change_together_or_not_at_all(rig: Rig) -> None:
    other = Backend()
    rig.opened.callback(other.close)
    hosts = rig.shim.config.with_name("haproxy_hosts")
    change(rig, rig.backend.name, other.name)
    hosts.write_text(f"{STRANGER}\neverybody\n")
    with pytest.raises(ConfigError):
        load(rig.shim.config)  # SIGHUP loads the file first, too
    rig.pair(v1())
    hosts.write_text(f"{STRANGER}\n")
    rig.shim.reload()
    proxy = rig.connect(STRANGER)
    proxy.send(v1())
    rig.opened.enter_context(other.accept()).introduce()
    proxy.expect(GREETING)


def test_an_open_session_keeps_its_configuration(rig_with: OpenRig) -> None:
    rig = rig_with(drain_timeout_s=0.1)
    client, mta = rig.relaxed_pair(v1())
    change(rig, "haproxy_hosts = ", "#haproxy_hosts = ")
    rig.shim.reload()
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    mta.send(b"250 ok\r\n")
    client.expect(b"250 ok\r\n")


def test_a_reload_updates_the_age_of_the_list(rig: Rig) -> None:
    _, read_at = rig.shim.server.metrics._allowlists["mx"]
    rig.shim.config.with_name("haproxy_hosts").write_text("127.0.0.2\n127.0.0.3\n")
    rig.shim.reload()
    entries, again_at = rig.shim.server.metrics._allowlists["mx"]
    assert entries == 2
    assert again_at > read_at
