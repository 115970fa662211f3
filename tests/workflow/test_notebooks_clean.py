"""What is committed of a notebook: a title, a cell of parameters, and no output."""

import nbformat
import pytest
from tiny import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    return nbformat.read(request.param, as_version=4).cells


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_carries_no_output(cells):
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_starts_with_a_title(cells):
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")


def test_has_one_cell_of_parameters(cells):
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0].cell_type == "code"
