from pathlib import Path

import pytest

from eelib.workspace import Workspace, atomic_write, home


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
