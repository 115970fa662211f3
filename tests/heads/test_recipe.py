import json
import os
import subprocess
import sys
import tempfile

import pandas as pd
import pytest
import torch
import yaml
from tiny import PROJECT, letters, tiny_model

import eelib
from eelib.errors import InvalidInputError
from eelib.heads import recipe
from eelib.heads.recipe import make_heads, small_recipe

SMALL = {
    "corpus": {"documents": 96, "length": 32, "batch_size": 32, "prompt_length": 8},
    "heads": {"depths": 2, "draft_vocab_size": 40},
    "fused": {"depths": [1]},
    "training": {"batch_size": 8, "checkpoint_every": 2, "log_every": 1},
}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(SMALL))
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("name", ["heads", "pythia_heads", "reference_heads"])
def test_the_projects_recipes_can_be_read(name):
    recipe = eelib.Recipe.load(PROJECT / "config" / f"{name}.yaml", seed=3)
    assert recipe.corpus.seed == recipe.heads["seed"] == recipe.training.seed == 3


def test_settings_can_be_changed_and_mistakes_are_named(file):
    changed = eelib.Recipe.load(file, {"corpus": {"documents": 100}, "cache_teacher": False})
    assert changed.fused["draft_vocab_size"] == 40, "as the other heads, unless the recipe says otherwise"
    assert changed.corpus.documents == 100 and changed.corpus.length == 32 and not changed.cache_teacher
    for changes, message in (
        ({"corpus": {"document": 9}}, "no setting document; it has source"),
        ({"head": {}}, "something else than a recipe"),
        ({"heads": {"kind": "magic"}}, "Unknown kind"),
        ({"fused": {"width": 0}}, "width=0"),
        ({"fused": {"kind": "mlp"}}, "in `fused` no other kind"),
        ({"training": {"epochs": 0}}, "epochs=0"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            eelib.Recipe.load(file, changes)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        eelib.Recipe.load(file.with_name("none.yaml"))
    file.write_text("just words")
    with pytest.raises(InvalidInputError, match="something else than a recipe"):
        eelib.Recipe.load(file)


def test_kept_lessons_make_the_same_heads(llama, file, tmp_path):
    """Asked while it writes or asked again: states are kept in bfloat16, so nearly the same."""
    made = {}
    for keep in (True, False):
        workspace = eelib.Workspace("tiny", tmp_path / str(keep))
        recipe = eelib.Recipe.load(file, {"cache_teacher": keep})
        made[keep] = make_heads(recipe, llama, letters(), workspace)
        heads = made[keep].heads
        assert eelib.ExitHeads.from_pretrained(workspace.heads, llama).depths == heads.depths == (2, 4)
        assert not (workspace.checkpoints / "teacher").is_dir() or not any(
            (workspace.checkpoints / "teacher").iterdir()
        )
    assert all(map(torch.equal, made[True].corpus.train, made[False].corpus.train))
    one, other = (pd.DataFrame(made[keep].heads.training_record["validation"]) for keep in (True, False))
    assert (one.loss - other.loss).abs().max() < 0.02 * other.loss.max()


def test_without_a_workspace_nothing_is_left_on_disk(llama, file, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = make_heads(eelib.Recipe.load(file), llama, letters(), None)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    saved = make_heads(eelib.Recipe.load(file), llama, letters(), eelib.Workspace("tiny", tmp_path))
    for heads, again in ((made.heads, saved.heads), (made.fused, saved.fused)):
        assert all(map(torch.equal, heads.state_dict().values(), again.state_dict().values()))
    assert set(made.report.kind) == {"mlp", "fused"}
    assert eelib.record_traces(llama, made.heads, made.corpus.test).depth.unique().tolist() == [2, 4]


def test_small_heads_fit_any_vocabulary(llama):
    assert small_recipe(llama).heads["draft_vocab_size"] is None
    large = small_recipe(tiny_model("llama", vocab_size=5000), seed=3)
    assert large.heads["draft_vocab_size"] == 4096 and large.corpus.seed == large.training.seed == 3


def test_made_again_the_heads_are_the_same_bit_for_bit(file, tmp_path):
    """As when a run is killed after its heads were saved: what was kept for them is gone."""
    model, recipe = tiny_model("llama", torch.float32), eelib.Recipe.load(file)
    one, two = (make_heads(recipe, model, letters(), eelib.Workspace("tiny", tmp_path)) for _ in range(2))
    for heads, again in ((one.heads, two.heads), (one.fused, two.fused)):
        assert all(map(torch.equal, heads.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_make_the_heads_of_one(file, tmp_path, processes):
    """Over gloo, as torch launches them on a CPU. Only the order of additions differs."""
    tiny_model("llama", torch.float64).save_pretrained(tmp_path / "model")
    letters().save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "eelib.heads.recipe", str(file), "--model", str(tmp_path / "model"), "--slug", "tiny"]
    command += ["--dtype", "float64", "--workspace", str(tmp_path / "several")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("Heads of kind fused are in") == 1, "two that know nothing of each other would both say so"
    several, one = (eelib.Workspace("tiny", tmp_path / name) for name in ("several", "one"))
    model, tokenizer = eelib.load_model(tmp_path / "model", dtype="float64", device="cpu")
    made = make_heads(eelib.Recipe.load(file), model, tokenizer, one)
    assert all(map(torch.equal, made.corpus.train, eelib.Corpus.load(several.corpus).train))
    for heads, folder in ((made.heads, several.heads), (made.fused, several.fused)):
        theirs = eelib.ExitHeads.from_pretrained(folder, model).state_dict()
        for name, value in heads.state_dict().items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-4)  # a step moves them by 3e-3
    logs = [(workspace.checkpoints / "heads.jsonl").read_text().splitlines() for workspace in (one, several)]
    for a, b in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert a["tokens"] == b["tokens"] and a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_errors_are_one_message(file, capsys):
    with pytest.raises(SystemExit) as ended:
        recipe.main([str(file), "--model", "no such model"])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith("error: Unknown model 'no such model'") and "Traceback" not in said
