"""What is committed of a notebook: a title, a cell of parameters, no output, and calls of what the library has."""

import ast
import inspect

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


def test_calls_what_the_library_has(cells):
    """By the names and parameters of today, also where a notebook runs in `make test-slow` only."""
    tree = ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    names, checked = {}, 0
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "imports", "exec"), names)
    for node in ast.walk(tree):
        called = resolve(node.func if isinstance(node, ast.Call) else node, names)
        if isinstance(node, ast.Call) and (getattr(called, "__module__", None) or "").startswith("eelib"):
            unpacked = [part for part in node.args if isinstance(part, ast.Starred)]
            keywords = {part.arg: part for part in node.keywords}
            signature = inspect.signature(called)
            bind = signature.bind_partial if unpacked or None in keywords else signature.bind
            bind(*(part for part in node.args if part not in unpacked), **{k: v for k, v in keywords.items() if k})
            checked += 1
    assert checked


def resolve(node: ast.AST, names: dict) -> object:
    """What a dotted name stands for that begins with something imported; None for everything else."""
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return names.get(node.id) if isinstance(node, ast.Name) else None
