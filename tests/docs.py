"""Parse the documents: fenced blocks with their markers, headings, links, tables."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"

_FENCE = re.compile(r"^( *)```([a-z]*)$")
_MARKER = re.compile(r"^ *<!-- (.+) -->$")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, its language, and the comment right before it (its marker)."""

    path: Path
    line: int
    language: str
    marker: str
    text: str

    def __str__(self) -> str:
        """Return a name for test ids."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True, slots=True)
class Document:
    """One Markdown file."""

    path: Path
    text: str

    def __str__(self) -> str:
        """Return a name for test ids."""
        return str(self.path.relative_to(ROOT))

    @property
    def prose(self) -> str:
        """Return the text without its fenced blocks."""
        return re.sub(r"(?ms)^ *```.*?^ *```$", "", self.text)

    @property
    def headings(self) -> list[str]:
        """Return the text of each heading, in order."""
        return _HEADING.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """Return what a link to each heading has after the "#"."""
        return {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in self.headings
        }

    @property
    def links(self) -> list[str]:
        """Return the targets of all links."""
        return _LINK.findall(self.prose)

    @property
    def code(self) -> set[str]:
        """Return the texts between backticks in the prose."""
        return set(_CODE.findall(self.prose))

    @property
    def blocks(self) -> list[Block]:
        """Return the fenced blocks."""
        return list(_read_blocks(self.path, self.text))

    def section(self, heading: str) -> "Document":
        """Return the text between a heading and the next one of any level."""
        found = re.search(
            rf"(?ms)^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)", self.prose
        )
        assert found is not None, f"{self}: no heading {heading!r}"
        return Document(self.path, found[1])

    def rows(self) -> list[list[str]]:
        """Return the cells of all table rows, without header rows and rules."""
        rows = []
        lines = self.prose.splitlines()
        for number, line in enumerate(lines):
            if not line.startswith("|") or re.fullmatch(r"[|\- ]+", line):
                continue
            if number + 1 < len(lines) and re.fullmatch(r"[|\- ]+", lines[number + 1]):
                continue
            cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
            rows.append([cell.strip() for cell in cells])
        return rows


def _read_blocks(path: Path, text: str) -> Iterator[Block]:
    marker, start, indent, language = "", 0, "", ""
    body: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if body is not None:
            if line == f"{indent}```":
                yield Block(path, start, language, marker, "\n".join(body) + "\n")
                body, marker = None, ""
            else:
                body.append(line.removeprefix(indent))
        elif fence is not None:
            body, start, (indent, language) = [], number, fence.groups()
        elif line.strip():
            found = _MARKER.match(line)
            marker = found[1] if found else ""


@cache
def documents() -> tuple[Document, ...]:
    """Return README, changelog and everything in docs/."""
    names = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
    paths = [ROOT / name for name in names]
    paths += sorted((ROOT / "docs").rglob("*.md"))
    return tuple(read_document(path) for path in paths)


def read_document(path: Path) -> Document:
    """Read one document."""
    return Document(path, path.read_text("utf-8"))


def all_blocks(language: str = "") -> list[Block]:
    """Return the fenced blocks of all documents, or those in one language."""
    return [
        block
        for document in documents()
        for block in document.blocks
        if language in ("", block.language)
    ]


def marked(marker: str) -> str:
    """Return the block after that comment.  If there are several, they must be equal."""
    texts = {block.text for block in all_blocks() if block.marker == marker}
    assert texts, f"no block is marked {marker!r}"
    assert len(texts) == 1, f"blocks marked {marker!r} differ"
    return texts.pop()


def code_in(cell: str) -> list[str]:
    """Return the texts between backticks in a table's cell."""
    return _CODE.findall(cell)
