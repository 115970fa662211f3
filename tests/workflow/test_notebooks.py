"""Notebooks, run by the batch as a reader would run them, small, on a Pythia-like model.

Those of `make paper-full` run in `make test-slow`; test_notebooks_clean.py reads what they call.
"""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from tiny import PROJECT, tiny_model
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

import eelib
from eelib import evaluation
from eelib.workspace import read_note

pytestmark = pytest.mark.timeout(1800)  # half a dozen notebooks in one fixture: minutes, and more on a slower machine

SMALL = {
    "01_train_heads": {
        "changes": {
            "corpus": {"documents": 120, "length": 56, "prompts": None, "invent": False, "prompt_length": 16},
            "heads": {"draft_vocab_size": 2048},
        }
    },
    "00_quickstart": {"max_new_tokens": 16, "calibration_documents": 4},
    "02_confidence": {"resamples": 10, "documents": 12, "length": 48},
    "03_calibration": {"epsilons": [0.5, 0.9], "splits": 5, "trials": 5},
    "04_speed_accuracy": {"cases": 4, "questions": 2, "max_new_tokens": 8, "repeats": 1, "epsilons": [0.5, 0.8]},
    "07_robustness": {
        "questions": 2, "rounds": 1, "found_prompts": 1, "max_new_tokens": 8, "runs": 50,
    },
    "06_heads": {"documents": 20, "draft_vocab_sizes": [100]},
    "08_layerskip_training": {
        "steps": 5, "tested": 2, "documents": 8, "length": 48, "cases": 4, "prompts": 2, "max_new_tokens": 8,
    },
    "05_acceptance": {
        "tuning_prompts": 2, "held_out_prompts": 2, "max_new_tokens": 8, "epsilons": [0.5], "max_drafts": [4],
        "draft_lengths": [2, 4], "decoded_prompts": 1, "finalists": 1,
    },
    "09_baselines": {
        "tuning_prompts": 2, "decoded_prompts": 1, "repeats": 2, "epsilons": [0.5], "classifier_texts": 8,
        "max_new_tokens": 8, "compile_static": False,
    },
    "10_popular_claims": {
        "decoded_prompts": 1, "repeats": 1, "thresholds": [0.8], "cases": 3, "sled_exits": 2, "max_new_tokens": 8,
    },
    "12_explorer": {"max_new_tokens": 12},
    "13_batches": {"sizes": [1, 2], "repeats": 1, "max_new_tokens": 6, "rules": ["each", "all"]},
    "05_acceptance_full": {"held_out_prompts": 2, "curve_epsilons": [0.8], "curve_draft_lengths": [1]},
}  # fmt: skip
LONG = {
    "05_acceptance_full", "06_heads", "07_robustness", "08_layerskip_training", "09_baselines", "10_popular_claims",
    "13_batches",
}  # fmt: skip
"""Those of `make paper-full` only."""


def run_batch(config: Path, *targets: str) -> str:
    command = [sys.executable, "-m", "workflow.batch", "paper", "--config", str(config), *targets]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def pythia_like(folder: Path, seed: int = 0) -> Path:
    """A random GPT-NeoX with a tokenizer of its own, saved as the Hub would hand it out, and text to read."""
    questions = [
        json.loads(line)["prompt"] for line in (PROJECT / "data/benchmarks/gsm8k.jsonl").read_text("utf-8").splitlines()
    ]
    (folder / "text").mkdir()
    rows = [json.dumps({"text": question}) for question in questions]
    (folder / "text" / "train.jsonl").write_text("\n".join(rows))
    bytes_of = ByteLevelBPETokenizer()
    bytes_of.train_from_iterator(questions, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=bytes_of._tokenizer, **names).save_pretrained(folder / "model")
    model = tiny_model("gpt_neox", torch.float32, seed, vocab_size=400, max_position_embeddings=1024)
    model.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def pythia(tmp_path_factory) -> eelib.Workspace:
    folder = tmp_path_factory.mktemp("pythia")
    model = {"name": str(pythia_like(folder)), "dtype": "float32"}
    text = {"source": str(folder / "text"), "documents": None, "length": 48}
    changes = {"changes": {"corpus": text, "heads": {"draft_vocab_size": None}}}
    parameters = SMALL | {name: SMALL[name] | changes for name in ("01_train_heads", "06_heads")}
    config = {"workspace": str(folder), "models": {"small": model}, "parameters": parameters}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run_batch(folder / "config.yaml")
    return eelib.Workspace("small", folder)


def check(workspace: eelib.Workspace, notebooks: set[str], n_figures: int) -> None:
    pages = {"README.md", "report.html", "report.pdf", "report.bib", "tables", "provenance"}
    figures = {p.name for p in workspace.figures.iterdir()}
    assert pages <= figures
    figures -= pages
    names = {name.rsplit(".", 1)[0] for name in figures}
    assert figures == {f"{name}.{kind}" for name in names for kind in ("pdf", "png", "csv", "md")}
    assert len(names) == n_figures
    gallery = (workspace.figures / "README.md").read_text(encoding="utf-8")
    for name in names:
        said, provenance = read_note(workspace.figures / f"{name}.md")
        assert said in gallery and provenance in gallery and "nan" not in said.split()
    for notebook in notebooks:
        cells = nbformat.read(workspace.runs / f"{notebook}.ipynb", as_version=4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    acceptance = pd.read_parquet(workspace.results / "acceptance.parquet").set_index("decoder")
    assert {"plain", "DSSD", "transformers"} < set(acceptance.index)
    accuracy = pd.read_parquet(workspace.results / "speed_accuracy.parquet")
    assert len(accuracy) == 2 * 3 and accuracy.accuracy.between(0, 1).all()


def test_the_main_job_on_a_pythia_like_model(pythia):
    check(pythia, SMALL.keys() - LONG, n_figures=16)


@pytest.mark.slow
def test_every_notebook_on_a_pythia_like_model(pythia):
    run_batch(Path(pythia.root) / "config.yaml", "full")
    check(pythia, SMALL.keys(), n_figures=30)


def test_the_first_notebook_works_where_there_are_no_heads_and_keeps_none(tmp_path):
    given = {"model": str(pythia_like(tmp_path)), "slug": "small", "dtype": "float32", "workspace": str(tmp_path)}
    command = [sys.executable, "-m", "workflow.batch", "run", "notebooks/00_quickstart.ipynb"]
    command += [str(tmp_path / "00.ipynb"), "--parameters", json.dumps(given | SMALL["00_quickstart"])]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert not (tmp_path / "data").exists() and not (tmp_path / "figures").exists(), "what it made is not kept"
    tells_what_was_gained(tmp_path / "00.ipynb")


def test_the_first_notebook_ends_with_what_was_gained(pythia):
    tells_what_was_gained(pythia.runs / "00_quickstart.ipynb")


def tells_what_was_gained(executed: Path) -> None:
    """In its last output, and shows no progress bars or warnings on the way."""
    cells = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "as fast as plain decoding" in outputs[-1]["data"]["text/markdown"]
    assert all(len(cell.source.splitlines()) < 15 for cell in cells)


def test_a_second_batch_finds_nothing_to_do(pythia):
    assert "Nothing to be done" in run_batch(Path(pythia.root) / "config.yaml")


def test_models_side_by_side(pythia, tmp_path):
    """One model under two names: nothing tells them apart."""
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(pythia.figures)
    given = {"models": ["a", "b"], "figures": str(tmp_path), "workspace": str(tmp_path)}
    command = [sys.executable, "-m", "workflow.batch", "run", "notebooks/11_sizes.ipynb", str(tmp_path / "11.ipynb")]
    done = subprocess.run([*command, "--parameters", json.dumps(given)], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    table = pd.read_csv(tmp_path / "figures" / "sizes" / "11_sizes.csv")
    assert set(table.model) == {"a", "b"} and {"agreement", "blocks saved", "speed"} <= set(table.measure)
    both = evaluation.read_sizes({"a": pythia.figures, "b": pythia.figures})
    assert not evaluation.larger_gain_more(both, "a", "b").verdict.isin(["more", "less"]).any()
