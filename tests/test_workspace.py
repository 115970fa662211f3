import json
from pathlib import Path

import pytest

import eelib
from eelib.corpus.reading import read_documents
from eelib.errors import EelibError, InvalidInputError
from eelib.heads.recipe import Recipe
from eelib.workspace import (
    Workspace,
    atomic_write,
    expanded,
    home,
    provenance,
    read_json,
    read_note,
    read_table,
    read_tensors,
    write_json,
)


def test_a_failed_write_leaves_the_earlier_result(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("earlier")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_artefacts_lie_under_the_working_folder_or_where_one_says(tmp_path, monkeypatch):
    monkeypatch.delenv("EELIB_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    workspace = Workspace("m")
    assert workspace.heads == tmp_path / "data" / "heads" / "m"
    monkeypatch.chdir("/")
    assert workspace.heads == tmp_path / "data" / "heads" / "m", "a workspace does not move with the process"
    monkeypatch.setenv("EELIB_HOME", str(tmp_path / "elsewhere"))
    assert Workspace("m").figures == tmp_path / "elsewhere" / "figures" / "m"
    assert Workspace("m", tmp_path).figures == tmp_path / "figures" / "m"


def test_home_and_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    assert Workspace("m", "$SCRATCH/runs").root == tmp_path / "runs"
    assert Workspace("m", "~/runs").root == Path.home() / "runs"
    monkeypatch.setenv("EELIB_HOME", "$SCRATCH")
    assert home() == tmp_path


@pytest.mark.parametrize(
    "given", ["Once upon a time, there was a token. " * 20, "a/" * 3000, "a\0b", "~nobody-here/x", 5, None]
)
def test_what_no_file_can_be_called(given, tmp_path):
    """Such as a text where a file's name is expected: refused in words, wherever a name comes in."""
    takers = [expanded, read_json, read_table, read_tensors, read_note, provenance, eelib.load_model]
    takers += [Recipe.load, lambda name: list(read_documents(name)), lambda name: write_json(name, {})]
    if given is not None:  # that is the working folder
        takers.append(lambda name: Workspace("m", name))
    for take in takers:
        with pytest.raises(EelibError) as error:
            take(given)
        assert len(str(error.value)) < 400, "the text itself is not repeated"
    with pytest.raises(InvalidInputError, match="is no name that a file can have"):
        expanded(given)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("heads: {depths: 2}", encoding="utf-8")
    if isinstance(given, str) and not given.startswith("~"):
        for take in (Workspace, lambda name: Recipe.load(recipe, {"corpus": {"prompts": name}})):
            with pytest.raises(InvalidInputError):
                take(given)


def test_a_record_that_names_what_no_file_can_be_called(tmp_path):
    (tmp_path / "provenance").mkdir()
    names = ["x" * 300, "a/" * 3000, "a\0b", "\ud800"]
    record = {"files": {"a.csv": "0" * 64}, "inputs": dict.fromkeys(names, "1" * 64)}
    (tmp_path / "provenance" / "a.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "a.csv").write_text("x", encoding="utf-8")
    chain = provenance(tmp_path / "a.csv")
    assert chain.state == "changed" and [one.state for one in chain.inputs] == ["missing"] * 4 and str(chain)
