"""The documents agree with the code: names, defaults, texts, links and examples."""

import ast
import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import NoneType

import click
import pytest

from proxyshim import config
from proxyshim.cli import main
from proxyshim.errors import Reason
from proxyshim.metrics import Metrics
from proxyshim.names import Result
from proxyshim.proxy_header.header import Command
from proxyshim.session.ending import ENDINGS
from proxyshim.session.record import Outcome, Phase
from proxyshim.smtp import replies
from proxyshim.smtp.guard import Mode
from tests.certificates import Authority
from tests.docs import (
    REFERENCE,
    ROOT,
    Block,
    Document,
    all_blocks,
    code_in,
    documents,
    marked,
    read_document,
)

PACKAGE = ROOT / "proxyshim"
RUNBOOK = read_document(ROOT / "docs" / "runbook.md")
README = read_document(ROOT / "README.md")


# Links, files and commands


def targets(document: Document) -> Iterator[tuple[str, Path, str]]:
    """Yield each link within the project: as written, its file and its anchor."""
    for link in document.links:
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            file = (document.path.parent / path).resolve() if path else document.path
            yield link, file, anchor


@pytest.mark.parametrize("document", documents(), ids=str)
def test_each_link_leads_to_a_file_and_heading_that_exist(document: Document) -> None:
    dead = [link for link, file, _ in targets(document) if not file.is_file()]
    assert dead == []
    lost = [
        link
        for link, file, anchor in targets(document)
        if anchor and anchor not in read_document(file).anchors
    ]
    assert lost == []


def test_every_document_is_linked_from_the_readme_or_the_index() -> None:
    indexes = [ROOT / "README.md", *(ROOT / "docs").rglob("README.md")]
    linked = {file for path in indexes for _, file, _ in targets(read_document(path))}
    lonely = [str(each) for each in documents() if each.path not in linked]
    assert lonely == []


@pytest.mark.parametrize("document", documents(), ids=str)
def test_each_file_that_a_document_names_exists(document: Document) -> None:
    named = {
        text
        for text in document.code
        if re.fullmatch(
            r"(?:[a-z_]+/)*[a-z_]+\.py|(?:etc|tests|systemd)/[\w./-]+", text
        )
    }
    missing = [
        text
        for text in named
        if not (ROOT / text).exists() and not (PACKAGE / text).exists()
    ]
    assert missing == []


def test_each_function_that_a_document_names_exists() -> None:
    named = {
        text
        for document in documents()
        for text in document.code
        if re.fullmatch(r"\w+\(\)", text)
    }
    sources = "".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    missing = [text for text in named if f"def {text[:-2]}(" not in sources]
    assert missing == []


def test_make_has_every_target_that_a_document_names() -> None:
    known = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8")))
    named = {
        target
        for document in documents()
        for target in re.findall(r"(?m)(?:`|^    )make ([a-z-]+)", document.text)
    }
    assert {"demo", "test"} <= named <= known


def test_examples_with_the_same_mark_are_the_same() -> None:
    """The integration tests run one of them."""
    for block in all_blocks():
        if block.marker:
            assert marked(block.marker) == block.text
    example = (ROOT / "etc" / "postfix-master.cf.example").read_text("utf-8")
    uncommented = re.sub(r"(?m)^#.*\n", "", example)
    assert uncommented == marked("master.cf: the recommended service")


# Configuration


@pytest.mark.parametrize("block", all_blocks("toml"), ids=str)
def test_every_toml_example_loads(block: Block, tmp_path: Path) -> None:
    for table in tomllib.loads(block.text)["listener"]:
        for key in ("haproxy_hosts", "denied_clients"):
            if key in table:
                (tmp_path / table[key]).write_text("203.0.113.10\n")
        for files in table.get("certificates", ()):
            made = Authority(tmp_path).sign("mx.example.org")
            for key, source in zip(("certificate", "key"), made, strict=True):
                target = tmp_path / files[key]
                target.parent.mkdir(exist_ok=True)
                source.rename(target)
    path = tmp_path / "proxyshim.toml"
    path.write_text(block.text)
    config.load(path)


def documented_settings(heading: str) -> dict[str, str]:
    """Return key -> default, as the reference shows them."""
    section = read_document(REFERENCE / "configuration.md").section(heading)
    return {
        code_in(row[0])[0]: (code_in(row[1]) or [row[1]])[0] for row in section.rows()
    }


def in_toml(value: object) -> str:
    """Write a default as the reference does."""
    match value:
        case dataclasses._MISSING_TYPE():
            return "required"
        case NoneType():
            return "none"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case tuple():
            assert value == (), "write the elements here too"
            return "[]"
        case _:
            return str(value)


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("[log]", config.Log),
        ("[metrics]", config.Metrics),
        ("[dns]", config.Dns),
        ("[limits]", config.Limits),
        ("[[listener]]", config.ListenerSettings),
    ],
)
def test_every_setting_is_documented_with_its_default(
    heading: str, table: type
) -> None:
    assert dataclasses.is_dataclass(table)
    fields = {field.name: in_toml(field.default) for field in dataclasses.fields(table)}
    assert documented_settings(heading) == fields


def test_the_unit_of_every_setting_is_documented() -> None:
    units = {"s": "seconds", "octets": "octets"}
    for row in read_document(REFERENCE / "configuration.md").rows():
        if len(row) == 4:
            key = code_in(row[0])[0]
            unit = units.get(key.rpartition("_")[2], "")
            if key.endswith("_per_s"):
                unit = "per second"
            assert row[2] == unit, row[0]


# Reasons, replies, the log, the metrics, the command line


def test_the_runbook_has_a_section_for_each_reason() -> None:
    sections = [
        heading for heading in RUNBOOK.headings if re.search("_|[a-z]$", heading)
    ]
    reasons = [text for text in sections if re.fullmatch(r"[a-z_]+", text)]
    assert sorted(reasons) == sorted(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_each_runbook_section_has_meaning_harm_check_and_remedy(reason: Reason) -> None:
    section = RUNBOOK.section(reason)
    labels = re.findall(r"(?m)^- \*\*(\w+)\*\*: \S", section.text)
    assert labels == ["Meaning", "Harm", "Check", "Do"]


def test_every_reply_that_is_sent_is_documented() -> None:
    sources = [path.read_text("utf-8") for path in PACKAGE.rglob("*.py")]
    used = set(re.findall(r"\breplies\.([A-Z_]+)\b", "".join(sources)))
    sent = {
        value.decode("ascii").removesuffix("\r\n")
        for name, value in vars(replies).items()
        if isinstance(value, bytes) and name in used
    }
    for with_address in (replies.header_forbidden, replies.client_denied):
        sent.add(with_address("address").decode("ascii").removesuffix("\r\n"))
    rows = read_document(REFERENCE / "replies.md").rows()
    assert {code_in(row[0])[0] for row in rows} == sent


@dataclasses.dataclass(frozen=True)
class LogCall:
    """A call in the package that logs: the event, and the keys given by name."""

    event: str
    keys: frozenset[str]


METHODS = {
    "debug",
    "info",
    "warning",
    "error",
    "exception",
    "note",
    "warn",
    "warn_once",
}
FROM_THE_TABLE = {ending.event for ending in ENDINGS.values() if ending.event}


def read_log_calls(source: str) -> Iterator[LogCall]:
    """Find the calls whose first text is an event."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        constants = [a.value for a in node.args if isinstance(a, ast.Constant)]
        texts = [value for value in constants if isinstance(value, str)]
        if name in METHODS and texts and re.fullmatch("[a-z]+(_[a-z]+)+", texts[0]):
            keys = {each.arg for each in node.keywords if each.arg} - {"exc_info"}
            yield LogCall(texts[0], frozenset(keys))


def log_calls() -> list[LogCall]:
    return [
        call
        for path in PACKAGE.rglob("*.py")
        for call in read_log_calls(path.read_text("utf-8"))
    ]


def documented_events() -> dict[str, set[str]]:
    """Return event -> keys, as the reference shows them."""
    document = read_document(REFERENCE / "log-events.md")
    return {
        code_in(row[0])[0]: set(code_in(row[3]))
        for row in document.rows()
        if len(row) == 4
    }


def test_every_log_event_is_documented() -> None:
    called = {call.event for call in log_calls()}
    assert set(documented_events()) == called | FROM_THE_TABLE


def test_every_key_of_an_event_is_documented() -> None:
    events = documented_events()
    missing = [
        (call.event, key)
        for call in log_calls()
        for key in sorted(call.keys - events[call.event])
    ]
    assert missing == []


def test_a_log_call_is_found() -> None:
    [found] = read_log_calls('self._log.info("thing_done", size=1, **more)')
    assert found == LogCall("thing_done", frozenset({"size"}))
    [once] = read_log_calls('service.warn_once(log, "thing_seen", hint="x")')
    assert once == LogCall("thing_seen", frozenset({"hint"}))


def story_keys() -> set[str]:
    """Return the keys that session/record.py puts into session_closed."""
    source = (PACKAGE / "session" / "record.py").read_text("utf-8")
    [account] = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "story"
    ]
    keys = set()
    for node in ast.walk(account):
        if isinstance(node, ast.Dict):
            found = [each for each in node.keys if isinstance(each, ast.Constant)]
            keys |= {str(each.value) for each in found}
        elif (
            isinstance(node, ast.Subscript)
            and ast.unparse(node.value) == "story"
            and isinstance(node.slice, ast.Constant)
        ):
            keys.add(str(node.slice.value))
    return keys


TLV_KEYS = {"authority", "unique_id", "alpn", "netns"} | {
    *(f"ssl_{key}" for key in ("client", "verify", "version", "cn")),
    *("aws_vpce_id", "azure_link_id", "gcp_psc_id"),
}


def test_every_key_of_session_closed_is_documented() -> None:
    section = read_document(REFERENCE / "log-events.md").section("session_closed")
    documented = {key for row in section.rows() for key in code_in(row[0])}
    assert documented - set(Outcome) == story_keys() | TLV_KEYS


def test_phases_outcomes_and_modes_are_documented() -> None:
    section = read_document(REFERENCE / "log-events.md").section("session_closed")
    modes = {mode.name.lower() for mode in Mode}
    assert {*Phase, *Outcome, *modes} <= section.code
    versions = {"v1": ("PROXY", "UNKNOWN"), "v2": ("PROXY", "LOCAL", "UNSPEC")}
    headers = {
        f"{version} {Command(command)}"
        for version, commands in versions.items()
        for command in commands
    }
    assert headers <= section.code


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    exposed = {}
    for family in Metrics().collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = sorted(getattr(family, "_labelnames", ()))
        exposed[name] = (family.type, labels)
    documented = {
        code_in(row[0])[0]: (row[1], sorted(code_in(row[2])))
        for row in read_document(REFERENCE / "metrics.md").rows()
        if row[0].startswith(("`proxyshim_", "`process_"))
    }
    assert documented == exposed


def test_every_result_of_a_lookup_is_documented() -> None:
    rows = read_document(REFERENCE / "metrics.md").rows()
    [meaning] = [row[3] for row in rows if row[0] == "`proxyshim_names_total`"]
    assert set(code_in(meaning)) == set(Result)


def test_every_command_and_option_is_documented() -> None:
    document = read_document(REFERENCE / "command-line.md")
    synopsis = document.blocks[0].text
    for name, command in main.commands.items():
        assert name in document.headings
        [line] = re.findall(rf"(?m)^proxyshim {name} .*$", synopsis)
        options = [each for each in command.params if isinstance(each, click.Option)]
        named = {next(iter(option.opts)) for option in options}
        assert set(re.findall(r"\[(-+[a-z]+)", line)) == named


def test_every_dependency_is_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    demo = project["optional-dependencies"]["demo"]
    wanted = {re.split("[<>=]", each)[0] for each in project["dependencies"] + demo}
    document = read_document(ROOT / "docs" / "explanation" / "dependencies.md")
    named = set(re.findall(r"(?m)^- \*\*([\w-]+)\*\*", document.text))
    tools = {"hypothesis", "mypy", "pytest", "pytest-timeout", "pytest-xdist", "ruff"}
    assert named == wanted | tools
