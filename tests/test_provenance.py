"""Provenance: from a figure back to the model's files, and what has changed since."""

import json
import time

import pandas as pd
import psutil
import pytest
import torch
from tiny import letters, prompts, random_heads, tiny_model

import eelib
from eelib import plotting
from eelib.heads import Recipe, make_heads
from eelib.workspace import ledger, provenance, read_table, write_table
from eelib.workspace.ledger import RUN


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Model, heads, traces and a figure, each made by a process of its own: nothing else was read before."""
    monkeypatch.setattr(ledger, "_inputs", {})
    run = {"notebook": "01_train_heads.ipynb", "parameters": {"model": "m", "seed": 7, "dtype": "float32"}}
    monkeypatch.setenv(RUN, json.dumps(run))
    workspace = eelib.Workspace("m", tmp_path)
    folder = tmp_path / "data" / "models" / "m"
    tiny_model("llama").save_pretrained(folder)
    letters().save_pretrained(folder)
    model, _ = eelib.load_model(folder, device="cpu")
    random_heads(model).save_pretrained(workspace.heads)
    ledger._inputs.clear()
    heads = eelib.ExitHeads.from_pretrained(workspace.heads, eelib.load_model(folder, device="cpu")[0])
    write_table(workspace.traces / "test.parquet", eelib.record_traces(model, heads, [prompts(1)[0][0]]))
    ledger._inputs.clear()
    traces = read_table(workspace.traces / "test.parquet")
    figure, (axes,) = plotting.panels(1)
    axes.plot(traces.entropy)
    plotting.save_figure(figure, workspace.figures, "02_roc", traces[["entropy"]], "**Up.**")
    return workspace


def test_the_chain_from_a_figure_to_the_model(made):
    chain = provenance(made.figures / "02_roc.pdf")
    found = {path.relative_to(made.root).as_posix(): one.state for path, one in chain.files().items()}
    assert found == {
        "figures/m/02_roc.pdf": "recorded", "data/traces/m/test.parquet": "recorded",
        "data/heads/m/config.json": "recorded", "data/heads/m/model.safetensors": "recorded",
        **{f"data/models/m/{name}": "source" for name in ("config.json", "model.safetensors", "tokenizer.json")},
    }  # fmt: skip
    told = str(chain)
    assert told.startswith("02_roc.pdf · ") and "../../data/models/m/model.safetensors" in told
    for said in ("by 01_train_heads.ipynb", "seed 7", "model m", "torch 2", "eelib "):
        assert said in told
    record = chain.record
    assert {"run", "commit", "uncommitted_changes", "machine", "environment", "made", "inputs", "files"} <= set(record)
    assert record["run"]["parameters"]["seed"] == 7 and len(record["environment"]) == 64
    own = psutil.Process()
    assert 0 < record["so_far"]["minutes"] <= (time.time() - own.create_time()) / 60 + 0.01
    assert record["so_far"].get("peak_gib", 1) > 0.1  # torch alone is more


def test_what_has_changed_or_is_gone_is_told(made):
    (made.figures / "02_roc.csv").write_text("entropy\n1\n", encoding="utf-8")
    assert provenance(made.figures / "02_roc.csv").state == "changed"
    random_heads(tiny_model("llama"), seed=5).save_pretrained(made.heads)
    (made.root / "data" / "models" / "m" / "tokenizer.json").unlink()
    found = {path.name: one.state for path, one in provenance(made.figures / "02_roc.png").files().items()}
    assert found["model.safetensors"] in ("changed", "source") and found["tokenizer.json"] == "missing"
    assert provenance(made.heads / "model.safetensors").state == "recorded"
    assert "changed" in str(provenance(made.figures / "02_roc.png"))
    assert provenance(made.root / "nothing.csv").state == "missing"


def test_a_file_of_unknown_origin_is_a_source(tmp_path):
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "a.csv")
    chain = provenance(tmp_path / "a.csv")
    assert (chain.state, chain.inputs, chain.record) == ("source", (), {})


def test_records_that_name_each_other(tmp_path):
    """As only whoever writes them by hand would make them."""
    (tmp_path / "provenance").mkdir()
    for one, other in ("ab", "ba"):
        (tmp_path / f"{one}.csv").write_text(one, encoding="utf-8")
        content = {"files": {f"{one}.csv": "0" * 64}, "inputs": {f"{other}.csv": "0" * 64}}
        (tmp_path / "provenance" / f"{one}.json").write_text(json.dumps(content), encoding="utf-8")
    assert set(provenance(tmp_path / "a.csv").files()) == {tmp_path / "a.csv", tmp_path / "b.csv"}


def test_many_inputs_are_not_kept_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "_inputs", {})
    monkeypatch.setattr(ledger, "_forgotten", 0)
    for i in range(ledger._MOST_INPUTS + 5):
        ledger.note_input(tmp_path / f"{i}", "0" * 64)
    write_table(tmp_path / "t.parquet", pd.DataFrame({"a": [1]}))
    record = provenance(tmp_path / "t.parquet").record
    assert len(record["inputs"]) == ledger._MOST_INPUTS and record["inputs_forgotten"] == 5


def test_files_of_a_temporary_folder_that_is_gone_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "_inputs", {})
    for folder in ("temporary", "kept"):
        (tmp_path / folder).mkdir()
        ledger.note_input(tmp_path / folder / "thresholds.json", "0" * 64)
    (tmp_path / "temporary").rmdir()
    write_table(tmp_path / "t.parquet", pd.DataFrame({"a": [1]}))
    assert list(provenance(tmp_path / "t.parquet").record["inputs"]) == ["kept/thresholds.json"]


def test_what_one_process_makes_comes_from_what_it_made_before(tmp_path, monkeypatch):
    """And not from its intermediate files, of which there are thousands."""
    monkeypatch.setattr(ledger, "_inputs", {})
    model, workspace = tiny_model("llama", torch.float32), eelib.Workspace("m", tmp_path)
    recipe = Recipe(
        eelib.CorpusConfig(documents=60, length=40, batch_size=60, prompt_length=12), {"depths": [2, 4]},
        eelib.TrainConfig(epochs=1, batch_size=4),
    )  # fmt: skip
    make_heads(recipe, model, letters(), workspace)
    files = provenance(workspace.heads / "model.safetensors").files()
    found = {path.relative_to(tmp_path).as_posix() for path in files}
    splits = {
        f"data/corpora/m/{name}" for name in ("train.parquet", "calibration.parquet", "test.parquet", "corpus.json")
    }
    assert found == {"data/heads/m/model.safetensors"} | splits
    assert all(one.state == "recorded" for one in files.values())
