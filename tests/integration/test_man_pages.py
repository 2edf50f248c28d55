"""The man pages: made from docs/man, and accepted by man without a warning."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from proxyshim import __version__
from tests.docs import REFERENCE, ROOT, code_in, read_document
from tests.integration.lab.needs import find_program

PAGES = ("man5/haproxy_hosts.5", "man5/proxyshim.toml.5", "man8/proxyshim.8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    find_program("go-md2man")
    directory = tmp_path_factory.mktemp("man")
    subprocess.run([ROOT / "tools" / "man-pages", directory], check=True, timeout=30)
    return directory


def show(page: Path) -> tuple[str, str]:
    """Return what man prints for a page, and its warnings."""
    done = subprocess.run(
        [find_program("man"), "--warnings", "-E", "UTF-8", "-l", page],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_every_source_becomes_a_page(made: Path) -> None:
    files = [path for path in made.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(made)) for path in files) == sorted(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_man_shows_the_page_without_a_warning(made: Path, page: str) -> None:
    text, warnings = show(made / page)
    assert warnings == ""
    assert f"proxyshim {__version__}" in text
    # Nothing of Markdown is left.
    assert not re.search(r"]\(|<!--|^ *\||```|\*\*", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_whatis_finds_the_page(made: Path, page: str) -> None:
    done = subprocess.run(
        [find_program("lexgrog"), made / page],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert f'"{Path(page).stem} - ' in done.stdout


def test_the_page_of_the_configuration_has_every_key(made: Path) -> None:
    text, _ = show(made / "man5" / "proxyshim.toml.5")
    rows = read_document(REFERENCE / "configuration.md").rows()
    keys = {code_in(row[0])[0] for row in rows if len(row) == 4}
    missing = [
        key for key in keys if not re.search(rf"(?m)^ +{key} (=|\(\w+\)$)", text)
    ]
    assert missing == []


def test_the_page_of_the_program_has_every_option_and_exit_code(made: Path) -> None:
    text, _ = show(made / "man8" / "proxyshim.8")
    rows = read_document(REFERENCE / "command-line.md").rows()
    terms = [", ".join(code_in(row[0])) or row[0] for row in rows]
    missing = [term for term in terms if not re.search(rf"(?m)^ +{term}\b", text)]
    assert missing == []
