"""The files in etc/ work as shipped, and show every key with its default."""

import dataclasses
import itertools
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from proxyshim import config
from proxyshim.allowlist import Allowlist

ETC = Path(__file__).parent.parent.parent / "etc"
EXAMPLE = ETC / "proxyshim.toml"
HOSTS = ETC / "haproxy_hosts"

TABLES = {
    "log": config.Log,
    "metrics": config.Metrics,
    "dns": config.Dns,
    "limits": config.Limits,
    "listener": config.ListenerSettings,
}

# A comment that shows a key has no blank after the "#".
COMMENTED_KEY = re.compile(r"(?m)^#(\w+ *= *.+)$")


def shown() -> dict[str, Any]:
    """Return the tables, including the keys that are commented out."""
    tables = tomllib.loads(COMMENTED_KEY.sub(r"\1", EXAMPLE.read_text("utf-8")))
    [tables["listener"]] = tables["listener"]
    return tables


def commented() -> dict[str, Any]:
    """Return only the keys that are commented out, table by table."""
    lines = EXAMPLE.read_text("utf-8").splitlines()
    kept = [line for line in lines if re.match(r"\[|#\w+ *= ", line)]
    tables = tomllib.loads(COMMENTED_KEY.sub(r"\1", "\n".join(kept)))
    [tables["listener"]] = tables["listener"]
    return tables


def test_the_example_loads_as_shipped(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    shutil.copy(HOSTS, tmp_path)
    loaded = config.load(tmp_path / EXAMPLE.name)
    assert loaded.metrics is not None
    assert [len(each.allowlist) for each in loaded.listeners] == [0]


@pytest.mark.parametrize("table", TABLES)
def test_the_example_shows_every_key(table: str) -> None:
    fields = {field.name for field in dataclasses.fields(TABLES[table])}
    assert set(shown()[table]) == fields


@pytest.mark.parametrize("table", TABLES)
def test_a_key_that_is_commented_out_shows_its_default(table: str) -> None:
    defaults = {
        field.name: list(field.default)
        if isinstance(field.default, tuple)
        else field.default
        for field in dataclasses.fields(TABLES[table])
    }
    # A key without a default shows an example.
    shown = {
        key: v for key, v in commented()[table].items() if defaults[key] is not None
    }
    assert shown == {key: defaults[key] for key in shown}


def test_the_example_loads_with_every_key_uncommented(tmp_path: Path) -> None:
    text = COMMENTED_KEY.sub(r"\1", EXAMPLE.read_text("utf-8"))
    (tmp_path / "proxyshim.toml").write_text(text)
    shutil.copy(HOSTS, tmp_path)
    (tmp_path / "denied_clients").write_text("\n")
    config.load(tmp_path / "proxyshim.toml")


def test_every_key_has_a_comment_right_above_it() -> None:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    for above, line in itertools.pairwise(lines):
        if re.match(r"#?\w+ *= ", line):
            assert above.startswith("# "), line


def test_comments_on_durations_and_sizes_begin_with_the_unit() -> None:
    text = EXAMPLE.read_text("utf-8")
    for unit, suffix in (("Seconds", "_s"), ("Octets", "_octets")):
        for key in shown()["listener"]:
            if key.endswith(suffix):
                comment = re.search(rf"((?:^# .*\n)+)#{key} =", text, re.MULTILINE)
                assert comment is not None, key
                assert comment[1].startswith(f"# {unit}"), key


def test_the_example_list_of_proxies_lists_nobody() -> None:
    assert len(Allowlist.parse(HOSTS.read_text("utf-8"), "haproxy_hosts")) == 0


def test_the_commented_examples_in_the_list_of_proxies_are_valid() -> None:
    entries = re.findall(r"(?m)^#   (\S.*)$", HOSTS.read_text("utf-8"))
    assert len(Allowlist.parse("\n".join(entries), "haproxy_hosts")) == len(entries) > 0
