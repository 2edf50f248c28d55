"""The shape of the package, read from its imports and definitions.

Each rule is a function from what was read to a list of complaints, and is itself tested below on
made-up input: a check that cannot fail proves nothing.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.docs import ROOT, read_document

PACKAGE = Path(__file__).parent.parent.parent / "proxyshim"

# A part is a module, or a folder of them, directly in the package.  It may import from
# the lines below its own, and from within itself; not from its own line.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"check", "demo", "routes"},
    {"service"},
    {"session"},
    {"conveyance"},
    {"backend", "names"},
    {"dns"},
    {"net"},
    {"config", "logs", "metrics"},
    {"allowlist", "limits", "throttle"},
    {"proxy_header", "smtp"},
    {"findings", "identity"},
    {"addresses", "errors"},
)

# These only interpret their arguments, and import only each other from this package.
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

# Libraries that can wait, look outside, roll dice or log.
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
    """One import: both modules dotted, without "proxyshim."; *ours* if it is of this package."""

    importer: str
    imported: str
    ours: bool

    def __str__(self) -> str:
        """Return the text of a complaint."""
        return f"{self.importer} imports {self.imported}"


def part_of(module: str) -> str:
    """Return the part that *module* belongs to: a module or folder directly in the package."""
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
            # "from proxyshim import errors" may import a module or a name.  The rules look
            # only at its part, so we treat it as a module, except for the version.
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
    """Return the imports of pure parts that are not pure."""
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
    """Return our own imports that do not point down the table."""
    line_of = {part: line for line, layer in enumerate(LAYERS) for part in layer}
    return [
        str(one)
        for one in imports
        if one.ours
        and (importer := part_of(one.importer)) != (imported := part_of(one.imported))
        and line_of[importer] >= line_of[imported]
    ]


def opened_files(module: str, source: str) -> list[str]:
    """Return the calls of open(), which needs no import."""
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


def test_every_module_has_a_docstring() -> None:
    silent = [
        str(file.relative_to(PACKAGE))
        for file in source_files()
        if not ast.get_docstring(ast.parse(file.read_text("utf-8")))
    ]
    assert silent == []


# Circles between modules.


def module_arrows(imports: Iterable[Import]) -> set[tuple[str, str]]:
    """Return who imports whom, without a package's imports of its own modules."""
    modules = {name_of(file) for file in source_files()}
    arrows = set()
    for one in imports:
        if not one.ours:
            continue
        # "from proxyshim.smtp import replies" imports the module, not only the package.
        imported = one.imported if one.imported in modules else part_of(one.imported)
        own_module = imported.startswith(f"{one.importer}.")
        if imported != one.importer and not own_module:
            arrows.add((one.importer, imported))
    return arrows


def circles(arrows: set[tuple[str, str]]) -> list[str]:
    """Return the modules that can be reached from themselves."""
    return sorted({start for start, _ in arrows if start in reachable(arrows, start)})


def reachable(arrows: set[tuple[str, str]], start: str) -> set[str]:
    """Return everything that *start* imports, directly or through others."""
    found: set[str] = set()
    todo = [start]
    while todo:
        here = todo.pop()
        for importer, imported in arrows:
            if importer == here and imported not in found:
                found.add(imported)
                todo.append(imported)
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(module_arrows(package_imports())) == []


def test_a_circle_is_found() -> None:
    arrows = {("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")}
    assert circles(arrows) == ["a", "b", "c"]


# Size.

MAX_METHODS = 23  # a class with one job rarely needs more than 20
MAX_LINES = 400


def oversized(module: str, source: str) -> list[str]:
    """Return the classes with too many methods, and the module if it is too long."""
    found = []
    if (lines := source.count("\n")) > MAX_LINES:
        found.append(f"{module} has {lines} lines")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            methods = sum(
                isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
                for each in node.body
            )
            if methods > MAX_METHODS:
                found.append(f"{module}: {node.name} has {methods} methods")
    return found


def test_classes_and_modules_have_one_job() -> None:
    assert [
        complaint
        for file in source_files()
        for complaint in oversized(name_of(file), file.read_text("utf-8"))
    ] == []


def test_a_class_or_module_that_is_too_large_is_found() -> None:
    methods = "".join(f"    def m{n}(self): ...\n" for n in range(MAX_METHODS + 1))
    assert len(oversized("made_up", f"class Large:\n{methods}")) == 1
    assert len(oversized("made_up", "pass\n" * (MAX_LINES + 1))) == 1


# The drawing in docs/explanation/design.md, and the map in proxyshim/__init__.py.

# Boxes of the drawing that stand for several parts.
BOXES = {
    **dict.fromkeys(("allowlist", "config", "limits", "logs"), "settings"),
    **dict.fromkeys(("metrics", "throttle"), "settings"),
    **dict.fromkeys(("addresses", "errors", "findings", "identity"), "types"),
}


def real_arrows(imports: Iterable[Import]) -> set[tuple[str, str]]:
    """Return the arrows between the boxes of the drawing."""
    arrows = set()
    for one in imports:
        importer, imported = part_of(one.importer), part_of(one.imported)
        importer, imported = (BOXES.get(each, each) for each in (importer, imported))
        if one.ours and importer not in ("", "__main__", imported):
            arrows.add((importer, imported))
    return arrows


def drawn_arrows() -> set[tuple[str, str]]:
    drawing = read_document(ROOT / "docs" / "explanation" / "design.md")
    [block] = [each for each in drawing.blocks if "flowchart" in each.text]
    return set(re.findall(r"(?m)^ +(\w+) --> (\w+)$", block.text))


def false_drawing(drawn: set[tuple[str, str]], real: set[tuple[str, str]]) -> list[str]:
    """Return the arrows that exist only in the drawing, and those that do not follow from it."""
    invented = [f"{a} does not import {b}" for a, b in drawn - real]
    missing = [
        f"{a} imports {b}, which the drawing does not show"
        for a, b in real
        if b not in reachable(drawn, a)
    ]
    return sorted(invented + missing)


def test_the_drawing_shows_the_real_imports() -> None:
    assert false_drawing(drawn_arrows(), real_arrows(package_imports())) == []


def test_a_false_drawing_is_found() -> None:
    real = {("a", "b"), ("b", "c"), ("a", "c")}
    assert false_drawing({("a", "b"), ("b", "c")}, real) == []
    assert len(false_drawing({("a", "b")}, real)) == 2
    assert len(false_drawing(real | {("c", "a")}, real)) == 1


def test_the_map_of_the_package_has_every_part_on_its_line() -> None:
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    table = source.partition("::\n")[2].partition("\nA part imports")[0]
    first_column = [line[:32] for line in table.splitlines() if line]
    lines = [set(re.findall(r"\w+", line)) for line in first_column]
    assert lines == [layer for layer in LAYERS if layer != {"__main__"}]


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
