"""Every reader of ours with a good file of its kind: what damage and fuzzing begin with."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tiny import letters, own_text, prompts, random_heads, tiny_model

import eelib
from eelib.backbone.teacher import Teacher
from eelib.corpus.documents import _finished
from eelib.corpus.reading import read_documents
from eelib.decoding import keep_policy, kept_policy
from eelib.errors import CorpusError
from eelib.evaluation.sizes import _read
from eelib.heads import TrainConfig
from eelib.heads.exit_heads import ExitHeads
from eelib.heads.training import _Run
from eelib.workspace import (
    provenance,
    read_json,
    read_lines,
    read_note,
    read_table,
    write_json,
    write_note,
    write_table,
)
from workflow.batch import check_parameters, code_hash, read_config

RECIPE = "corpus: {documents: 20, length: 32}\nheads: {depths: [1, 3], kind: affine}\ntraining: {epochs: 1}\n"
CONFIG = (
    "workspace: '.'\nmodels: {tiny: {name: tiny, dtype: float32}}\nparameters: {01_train_heads: {recipe: a.yaml}}\n"
)
PROMPT = prompts(1)[0]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        file: name of the file that is damaged, in a folder of good files.
        read: reads the folder and uses what it got; returns what a change must not alter unseen.
        sealed: whether a single changed bit is always refused, since the file has a digest that covers it.
    """

    file: str
    read: Callable[[Path], object]
    sealed: bool = False


class Places:
    """Good files of every kind, in one folder; made once."""

    def __init__(self, folder: Path):
        self.model, self.folder = tiny_model("llama", torch.float32), folder
        self.own = own_text(self.model, PROMPT, max_new_tokens=8)
        texts = [prompt[0] for prompt in prompts(6, 20)]
        self.heads, self.texts = random_heads(self.model), texts
        keep_policy(self.heads, eelib.FixedExit(3, 2))
        self.heads.save_pretrained(folder / "heads")
        some = {"sequences": texts, "tokenizer": letters()}
        drafting = eelib.ExitHeads.init(self.model, [2], "fused", 20, width=8, **some)
        drafting.save_pretrained(folder / "fused")
        self.traces = eelib.record_traces(self.model, self.heads, texts)
        eelib.calibrate(self.traces, "entropy", 0.5).to_json(folder / "calibration.json")
        write_table(folder / "traces.parquet", self.traces)
        masks = [torch.ones(len(text), dtype=torch.bool) for text in texts]
        splits = {"train": texts[:4], "calibration": texts[4:5], "test": texts[5:]}
        loss_mask = {name: masks[: len(of)] for name, of in splits.items()}
        eelib.Corpus(**splits, loss_mask=loss_mask, written=6, made_of={"source": "self"}).save(folder / "corpus")
        self.teacher = Teacher(self.model, [2, 4], folder / "teacher")
        self.teacher.cache(texts[:1])
        (cached,) = folder.glob("teacher/*/*.safetensors")
        self.cached = cached.relative_to(folder).as_posix()
        self._checkpoint(folder / "checkpoint.safetensors")
        np.savez(folder / "batch.npz", torch.stack(texts).numpy(), torch.stack(masks).numpy())
        write_json(folder / "invented.json", {"prompts": ["one", "two"]})
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
        rows = [json.dumps({"text": f"question {i} é"}) for i in range(3)]
        (folder / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
        (folder / "prompts.txt").write_text("one\ntwo\n\nthree é\n", encoding="utf-8")
        (folder / "prompts.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode(), mtime=0))
        write_note(folder / "note.md", "**Up.** From 0.5 to 0.6.", "2026 · here")
        (folder / "speed.csv").write_text("decoder,speed_ratio\nplain,1\nDSSD,1.5\n", encoding="utf-8")
        self.model.save_pretrained(folder / "model")
        letters().save_pretrained(folder / "model")
        notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        code = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": "seed = 0"}
        notebook["cells"] += [code | {"outputs": [], "execution_count": None}]
        notebook["metadata"]["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        (folder / "notebook.ipynb").write_text(json.dumps(notebook), encoding="utf-8")

    def _run(self, path: Path) -> _Run:
        heads = random_heads(self.model, (2,)).requires_grad_(True)
        return _Run(heads, TrainConfig(epochs=1), self.texts, None, path)

    def _checkpoint(self, path: Path) -> None:
        run = self._run(path)
        for parameter in run.heads.parameters():
            moments = {key: torch.ones_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            run.optimizer.state[parameter] = {"step": torch.tensor(3.0), **moments}
        run.step = 3
        run.save()

    def decode(self, folder: Path) -> object:
        """Lossless text with heads of a file is the model's own, whatever they hold."""
        heads = ExitHeads.from_pretrained(folder, self.model)
        repr(heads), heads._repr_html_()
        policy = eelib.FixedExit(heads.depths[0], 2)
        out = eelib.generate(self.model, PROMPT, heads=heads, policy=policy, exact=False, max_new_tokens=8)
        assert torch.equal(out.sequences, self.own), "another text than the model's own"
        return heads.config, heads.fingerprint()

    def calibration(self, folder: Path) -> object:
        found = eelib.Calibration.from_json(folder / "calibration.json")
        repr(found), found._repr_html_()
        policy = eelib.Confidence.from_calibration(found)
        policy.check(self.heads)
        return found.digest

    def corpus(self, folder: Path) -> object:
        found = eelib.Corpus.load(folder / "corpus")
        found._repr_html_()
        return eelib.evaluate_heads(self.model, self.heads, found.test, found.loss_mask["test"]).loss.tolist()

    def restore(self, folder: Path) -> object:
        run = self._run(folder / "checkpoint.safetensors")
        run.restore()
        return run.step

    def outputs(self, folder: Path) -> object:
        return Teacher(self.model, [2, 4], folder / "teacher").outputs(self.texts[:1]).final.sum().item()

    def policy(self, folder: Path) -> object:
        return kept_policy(ExitHeads.from_pretrained(folder / "heads", self.model))

    def load(self, folder: Path) -> None:
        eelib.Backbone.of(eelib.load_model(folder / "model", device="cpu")[0])

    def readers(self) -> dict[str, Reader]:
        """Every reader, by name."""

        def texts(name):
            return lambda folder: [text.encode() for text in read_documents(str(folder / name))]

        def table(folder):
            found = read_table(folder / "traces.parquet", "entropy")
            return eelib.calibrate(found, "entropy", 0.5).digest

        def invented(folder):
            return read_json(folder / "invented.json", CorpusError).get("prompts")

        def notebook(folder):
            check_parameters(folder / "notebook.ipynb", {"seed": 1})
            return code_hash(folder / "notebook.ipynb")

        return {
            "heads: weights": Reader("heads/model.safetensors", lambda f: self.decode(f / "heads"), sealed=True),
            "heads: config": Reader("heads/config.json", lambda f: self.decode(f / "heads"), sealed=True),
            "heads: policy": Reader("heads/config.json", self.policy, sealed=True),
            "fused heads: weights": Reader("fused/model.safetensors", lambda f: self.decode(f / "fused"), sealed=True),
            "fused heads: config": Reader("fused/config.json", lambda f: self.decode(f / "fused"), sealed=True),
            "calibration": Reader("calibration.json", self.calibration, sealed=True),
            "traces": Reader("traces.parquet", table, sealed=True),
            "corpus: about": Reader("corpus/corpus.json", self.corpus, sealed=True),
            "corpus: text": Reader("corpus/test.parquet", self.corpus, sealed=True),
            "teacher outputs": Reader(self.cached, self.outputs, sealed=True),
            "checkpoint": Reader("checkpoint.safetensors", self.restore, sealed=True),
            "batch of text": Reader("batch.npz", lambda f: _finished(f / "batch.npz", 20)),
            "invented prompts": Reader("invented.json", invented, sealed=True),
            "recipe": Reader("recipe.yaml", lambda f: repr(eelib.Recipe.load(f / "recipe.yaml"))),
            "config": Reader("config.yaml", lambda f: read_config(f / "config.yaml")),
            "prompts: jsonl": Reader("prompts.jsonl", texts("prompts.jsonl")),
            "prompts: text": Reader("prompts.txt", texts("prompts.txt")),
            "prompts: gzip": Reader("prompts.jsonl.gz", texts("prompts.jsonl.gz")),
            "cases": Reader("prompts.jsonl", lambda f: read_lines(f / "prompts.jsonl", "text")),
            "note": Reader("note.md", lambda f: read_note(f / "note.md")),
            "table of a figure": Reader("speed.csv", lambda f: _read(f / "speed.csv", "decoder", "speed_ratio")),
            "notebook": Reader("notebook.ipynb", notebook),
            "provenance": Reader("provenance/traces.json", lambda f: str(provenance(f / "traces.parquet"))),
            "model: config": Reader("model/config.json", self.load),
            "model: weights": Reader("model/model.safetensors", self.load),
            "model: tokenizer": Reader("model/tokenizer.json", self.load),
        }  # fmt: skip
