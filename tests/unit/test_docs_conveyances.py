"""The table of servers and conveyances has a cell for each cell of the matrix, no other."""

import pytest

from tests.docs import ROOT, Document, code_in, read_document
from tests.matrix.servers import KINDS

PAGE = read_document(ROOT / "docs" / "how-to" / "conveyance.md")
CELLS = {(kind.name, convey) for kind in KINDS for convey in kind.conveyances}
BEST = "**best**"


def rows(page: Document) -> list[list[str]]:
    return [row for row in page.rows() if len(row) == 5]


def columns(page: Document) -> list[str]:
    lines = page.text.splitlines()
    header = next(line for line in lines if line.startswith("| server | `xclient`"))
    return code_in(header)


def name_of(cell: str) -> str:
    words = cell.lower().strip("[").split("]")[0].split()
    return words[0]


def test_each_cell_of_the_table_is_tested() -> None:
    cells = {
        (name_of(row[0]), convey)
        for row in rows(PAGE)
        for convey, text in zip(columns(PAGE), row[1:], strict=True)
        if text
    }
    assert cells == CELLS


@pytest.mark.parametrize("row", rows(PAGE), ids=lambda row: name_of(row[0]))
def test_each_row_has_one_best_conveyance(row: list[str]) -> None:
    assert row.count(BEST) == 1
    assert set(row[1:]) <= {BEST, "•", ""}
