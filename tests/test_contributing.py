"""CONTRIBUTING's recipes, followed to the letter in a copy of what they change, and the tests that they add, run."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from tiny import PROJECT, letters, tiny_model

import eelib

TEXT = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|diff)\n# (\S+)\n(.*?)```", TEXT, re.DOTALL)
HOUSE = "one_way or fits_a_screen or 14_rounds"
"""What the house asks of rooms and notebooks: of tests/test_rooms.py and tests/workflow/test_notebooks_clean.py."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The parts of the checkout that recipes touch, after all recipes."""
    folder = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__", "*.ipynb")
    for part in ("eelib", "tests", "workflow", "notebooks"):
        shutil.copytree(PROJECT / part, folder / part, ignore=ignore)
    shutil.copy(PROJECT / "pyproject.toml", folder)
    for kind, path, block in BLOCKS:
        file = folder / path
        if kind == "diff":
            file.write_text(patched(file.read_text(encoding="utf-8"), block, path), encoding="utf-8")
            continue
        assert not file.exists(), f"{path} is there already: a recipe makes a new file"
        if file.suffix == ".ipynb":
            nbformat.write(notebook(block), file)
        else:
            file.write_text(block, encoding="utf-8")
    return folder


def patched(text: str, diff: str, path: str) -> str:
    """A text after a diff whose hunks are parted by @@: lines as they are, with - taken out, with + put in."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
        assert text.count(before) == 1, f"{path} has {text.count(before)} times, not once:\n{before}"
        text = text.replace(before, after)
    return text


def notebook(block: str) -> nbformat.NotebookNode:
    """Cells from a script in which `# %%` begins each of them."""
    cells = []
    for cell in block.split("# %%")[1:]:
        kind, _, source = cell.partition("\n")
        if "markdown" in kind:
            cells.append(nbformat.v4.new_markdown_cell(source.replace("# ", "", 1).strip()))
        else:
            tags = {"tags": ["parameters"]} if "parameters" in kind else {}
            cells.append(nbformat.v4.new_code_cell(source.strip(), metadata=tags))
    return nbformat.v4.new_notebook(cells=cells)


def test_there_are_five_recipes():
    for recipe in ("A metric", "A kind of head", "A policy", "A baseline", "A notebook"):
        section = TEXT.partition(f"\n## {recipe}\n")[2].partition("\n## ")[0]
        assert re.search(r"```python\n# \S+\n", section), recipe


def test_it_names_every_room():
    row = TEXT.partition("## Where things are")[2].partition("## ")[0]
    rooms = {path.stem for path in (PROJECT / "eelib").iterdir() if path.stem[0] != "_"}
    assert rooms <= set(re.findall(r"\w+", row))


def test_it_is_short():
    assert len(TEXT.split()) < 1000


def test_what_the_recipes_add_works_and_fits_the_house(copy):
    added = [path for kind, path, _ in BLOCKS if kind == "python" and path.startswith("tests/")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"]
    rooms = ["tests/test_rooms.py", "tests/workflow/test_notebooks_clean.py"]
    chosen = " or ".join([HOUSE, *(path.rpartition("/")[2].removesuffix(".py") for path in added)])
    done = subprocess.run([*command, *added, *rooms, "-k", chosen], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20


def test_the_notebook_that_a_recipe_makes_runs(copy, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    letters().save_pretrained(tmp_path / "model")
    home = eelib.Workspace("small", tmp_path)
    eelib.ExitHeads.init(model, [2, 4], "affine").save_pretrained(home.heads)
    cells = [cell for cell in nbformat.read(copy / "notebooks/14_rounds.ipynb", 4).cells if cell.cell_type == "code"]
    given = {"model": str(tmp_path / "model"), "slug": "small", "dtype": "float64", "workspace": str(tmp_path)}
    names = {}
    for cell in cells:
        exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            assert set(given) < set(names)
            names |= given
    assert names["out"].stats.rounds > 0
    assert '"14_rounds"' in (copy / "workflow/Snakefile").read_text(encoding="utf-8")
