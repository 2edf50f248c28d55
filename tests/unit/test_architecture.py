"""The shape of the package, read from its imports: what is pure, and what is above what.

Each rule is a function from imports to complaints, and is itself tested on made-up
imports below: a rule that cannot fail says nothing.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "proxyshim"

# A part is a module, or a folder of them, directly in the package.  It may import from
# the lines below its own, and from within itself; not from its own line.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"check", "demo"},
    {"service"},
    {"session"},
    {"conveyance"},
    {"backend", "names"},
    {"net"},
    {"config", "logs", "metrics"},
    {"allowlist", "limits", "throttle"},
    {"proxy_header", "smtp"},
    {"findings", "identity"},
    {"addresses", "errors"},
)

# These only interpret their arguments, and import nothing of ours but each other.
PURE = {
    "addresses",
    "allowlist",
    "errors",
    "findings",
    "identity",
    "limits",
    "proxy_header",
    "smtp",
    "throttle",
}

# Whatever can wait, look outside, roll dice or log.
IMPURE_LIBRARIES = {
    "aiosmtpd",
    "asyncio",
    "click",
    "concurrent",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "prometheus_client",
    "random",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "ssl",
    "structlog",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "uvloop",
}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, and which of ours imports it: dotted, without "proxyshim."."""

    importer: str
    imported: str
    ours: bool

    def __str__(self) -> str:
        """Say it as a complaint does."""
        return f"{self.importer} imports {self.imported}"


def part_of(module: str) -> str:
    """Return the module or folder of the package that *module* is or belongs to."""
    return module.partition(".")[0]


def name_of(file: Path) -> str:
    """Return ``smtp.verbs`` for ``proxyshim/smtp/verbs.py``, ``smtp`` for its __init__."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def source_files() -> tuple[Path, ...]:
    return tuple(sorted(PACKAGE.rglob("*.py")))


def read_imports(importer: str, source: str) -> Iterator[Import]:
    """Find every import in *source*, those inside functions and TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer}: write the whole name, not dots"
            assert node.module is not None
            # What "from proxyshim import errors" brings is a module or a name; the rules
            # look only at its part, so take it for a module, but for the version.
            names = [node.module]
            if node.module == "proxyshim":
                names = [f"proxyshim.{alias.name}" for alias in node.names]
        for name in names:
            if name in ("proxyshim", "proxyshim.__version__"):
                continue
            ours = name.startswith("proxyshim.")
            yield Import(importer, name.removeprefix("proxyshim."), ours)


@cache
def package_imports() -> tuple[Import, ...]:
    return tuple(
        found
        for file in source_files()
        for found in read_imports(name_of(file), file.read_text("utf-8"))
    )


def impurities(imports: Iterable[Import]) -> list[str]:
    """Complain of pure parts that import what is not."""
    return [
        str(one)
        for one in imports
        if part_of(one.importer) in PURE
        and (
            part_of(one.imported) not in PURE
            if one.ours
            else part_of(one.imported) in IMPURE_LIBRARIES
        )
    ]


def upward_imports(imports: Iterable[Import]) -> list[str]:
    """Complain of imports of ours that do not point down the table."""
    line_of = {part: line for line, layer in enumerate(LAYERS) for part in layer}
    return [
        str(one)
        for one in imports
        if one.ours
        and (importer := part_of(one.importer)) != (imported := part_of(one.imported))
        and line_of[importer] >= line_of[imported]
    ]


def opened_files(module: str, source: str) -> list[str]:
    """Complain of open(), which needs no import."""
    return [
        f"{module}:{node.lineno} calls open()"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "open"
    ]


def test_every_part_has_its_line_in_the_table() -> None:
    parts = {part_of(name_of(file)) for file in source_files()} - {""}
    assert parts - set().union(*LAYERS) == set()


def test_pure_parts_import_nothing_that_can_wait_or_look_outside() -> None:
    assert impurities(package_imports()) == []


def test_imports_point_down() -> None:
    assert upward_imports(package_imports()) == []


def test_pure_parts_read_no_file() -> None:
    assert [
        complaint
        for file in source_files()
        if part_of(name_of(file)) in PURE
        for complaint in opened_files(name_of(file), file.read_text("utf-8"))
    ] == []


def test_every_module_says_what_it_holds() -> None:
    silent = [
        str(file.relative_to(PACKAGE))
        for file in source_files()
        if not ast.get_docstring(ast.parse(file.read_text("utf-8")))
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("smtp.guard", "import asyncio"),
        ("proxy_header.v1", "from socket import AF_INET"),
        ("addresses", "def now():\n    import time"),
        ("allowlist", "import os.path"),
        ("errors", "import a, random"),
        ("smtp.lines", "from proxyshim.config import Config"),
        ("smtp.lines", "from proxyshim import config"),
    ],
)
def test_an_impure_import_is_found(importer: str, source: str) -> None:
    assert len(impurities(read_imports(importer, source))) == 1


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("session.relay", "from proxyshim.service.server import Server"),
        ("backend", "import proxyshim.session.session"),
        ("smtp.guard", "from proxyshim.proxy_header import read_header"),
        ("proxy_header.v1", "from proxyshim.smtp import replies"),
        ("errors", "from proxyshim import addresses"),
        ("net.connection", "from proxyshim.names import Names"),
        ("config", "if TYPE_CHECKING:\n    from proxyshim.cli import main"),
    ],
)
def test_an_upward_import_is_found(importer: str, source: str) -> None:
    assert len(upward_imports(read_imports(importer, source))) == 1


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("cli", "from proxyshim import __version__"),
        ("session", "from proxyshim.smtp.guard import Guard"),
        ("smtp.guard", "from proxyshim.smtp.verbs import VERBS"),
        ("proxy_header", "import struct, ipaddress\nfrom proxyshim import errors"),
    ],
)
def test_a_downward_import_is_allowed(importer: str, source: str) -> None:
    imports = list(read_imports(importer, source))
    assert upward_imports(imports) + impurities(imports) == []
