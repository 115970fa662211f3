"""What making heads costs and brings, as ratios within one run: `make bench-heads`. Minutes to an hour; run it alone.

generation: self-generation against `model.generate` and the `Batcher`. training: `mlp` heads with a draft vocabulary
against full-vocabulary `linear` ones, same text, without and with kept teacher. long: the same on some 100,000 tokens,
with kept teacher. recipes: two recipes on greedy answers to held-out prompts. own-text: heads trained on chat, on code
and on both (`own_text.py`).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from own_text import own_text

import eelib
from eelib.backbone.teacher import Teacher
from eelib.corpus.chat import Turns, answers
from eelib.corpus.generation import generate_texts
from eelib.errors import InvalidInputError
from eelib.heads.recipe import make_heads
from eelib.statistics import mean_interval
from eelib.timing import machine

PROJECT = Path(__file__).parents[2]

TRIALS = {  # documents; kind of heads, drafted tokens, whether teacher are kept, learning rate
    "training": (
        120,
        [
            ("mlp", 8192, False, 3e-3),
            ("linear", None, False, 3e-3),
            ("mlp", 8192, True, 3e-3),
            ("mlp", 16384, True, 3e-3),
            ("linear", None, True, 3e-3),
        ],
    ),
    "long": (900, [("mlp", size, True, 3e-3) for size in (8192, 16384)] + [("linear", None, True, 3e-3)]),
}
PARTS = ("generation", *TRIALS, "recipes", "own-text")


def generation(model, tokenizer, length: int = 160, repeats: int = 2) -> pd.DataFrame:
    """Writers of text: tokens drawn a second (the opening is not), warm, interleaved, medians."""
    turns = Turns.of(tokenizer)
    opening = torch.tensor([turns.opening])

    settings = {"do_sample": True, "temperature": 0.7, "top_k": 0, "max_length": length, "eos_token_id": None}

    def ours(rows, int8=False):
        generate_texts(model, turns, length, [0.7] * rows, 0.7, 64, torch.Generator().manual_seed(0), int8=int8)

    def in_turn(rows):
        batcher = eelib.decoding.Batcher(model, policy=eelib.Never(), rows=rows, **settings)
        for finished in batcher.run(opening[0] for _ in range(rows)):
            finished.result()

    def theirs(rows):
        model.generate(opening.repeat(rows, 1), pad_token_id=0, **settings)

    writers = {  # by name, rows and type
        ("transformers", 64, "float32"): theirs,
        ("eelib's Batcher", 64, "float32"): in_turn,
        ("eelib", 64, "float32"): ours,
        ("eelib", 576, "float32"): ours,
        ("eelib", 576, "int8"): lambda rows: ours(rows, int8=True),
    }  # fmt: skip
    speeds = {name: [] for name in writers}
    for _ in range(repeats + 1):  # the first of each warms up
        for name, write in writers.items():
            start = time.perf_counter()
            write(name[1])
            speeds[name].append(name[1] * (length - opening.shape[1]) / (time.perf_counter() - start))
    table = pd.DataFrame(speeds.keys(), columns=["writer", "rows", "dtype"])
    table["tokens_per_second"] = [float(np.median(found[1:])) for found in speeds.values()]
    return table.assign(
        ratio=table.tokens_per_second / table.tokens_per_second[0],
        command='make bench-heads ARGS="generation --write"', **_run_here(),
    )  # fmt: skip


def _run_here() -> dict[str, object]:
    """Where and when a table was measured, as columns."""
    about = machine()
    return {"machine": f"{about['processor']}, {about['threads']} threads", "date": pd.Timestamp.now().date()}


def training(model, tokenizer, corpus: eelib.Corpus, scratch: Path, documents: int, trials: list) -> pd.DataFrame:
    """Tokens trained on a second and agreement after the same tokens, by the same pipeline.

    trials: kind of heads, drafted tokens, whether teacher are kept, learning rate.
    """
    texts, loss_mask = corpus.train[:documents], corpus.loss_mask["train"][:documents]
    depths = eelib.Backbone.of(model).check_depths(4)
    kept, rows = Teacher(model, depths, scratch), []
    kept.cache(texts, loss_mask)
    for kind, drafted, keep, rate in trials:
        heads = eelib.ExitHeads.init(model, depths, kind, drafted, sequences=corpus.train, tokenizer=tokenizer)
        report = eelib.train_heads(
            model, heads, texts, eelib.TrainConfig(epochs=1, batch_size=4, learning_rate=rate), loss_mask=loss_mask,
            teacher=kept if keep else None, validation=corpus.test, validation_loss_mask=corpus.loss_mask["test"],
        )  # fmt: skip
        agreement = {f"depth {r['depth']}": r["agreement"] for r in heads.training_record["validation"]}
        speed, tokens = report.tokens_per_second.iloc[-1], heads.training_record["tokens"]
        rows.append(
            {
                "heads": kind,
                "drafted": drafted or "all",
                "teacher kept": keep,
                "learning rate": rate,
                "tokens": tokens,
                "tokens/s": speed,
            }
            | agreement
        )
    return pd.DataFrame(rows)


def held_out(model, tokenizer, n: int = 36, new: int = 128) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The model's greedy answers to the last n GSM8K questions and n HellaSwag contexts, and where it speaks."""
    asked = []
    for name, field in (("gsm8k", "prompt"), ("hellaswag", "ctx")):
        rows = [
            json.loads(r) for r in (PROJECT / f"data/benchmarks/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        asked += [row[field] for row in rows[-n:]]
    return answers(model, tokenizer, asked, new, batch_size=n)


def recipes(model, tokenizer, files: list[str], folder: Path) -> pd.DataFrame:
    """Heads by each recipe, made one after the other, compared with the first one's."""
    made = {}
    for file in files:
        workspace, recipe = eelib.Workspace(Path(file).stem, folder), eelib.Recipe.load(Path(file).resolve())
        start = time.perf_counter()
        heads = make_heads(recipe, model, tokenizer, workspace).heads
        made[Path(file).stem] = heads, time.perf_counter() - start
    return compare(model, tokenizer, made)


def compare(model, tokenizer, made: dict[str, tuple[eelib.ExitHeads, float]]) -> pd.DataFrame:
    """Seconds, agreement and coverage at 90% exit agreement of heads, and disagreements cut against the first ones.

    Intervals are paired by text; the coverage is read off the same texts (best case, as in any tuning).
    """
    texts, loss_mask = held_out(model, tokenizer)
    rows, first = [], None
    for name, (heads, seconds) in made.items():
        traces = eelib.record_traces(model, heads, texts, loss_mask=loss_mask)
        coverage = eelib.calibrate(traces, "entropy", 0.9).table.set_index("depth").coverage
        wrong = 1 - traces.groupby(["depth", "sequence"]).agrees.mean().unstack()  # [depth, text]
        first = wrong if first is None else first
        for depth in heads.depths:
            mine, reference = wrong.loc[depth].to_numpy(), first.loc[depth].to_numpy()
            cut = mean_interval((reference - mine) / reference.mean())
            rows.append({
                "heads": name, "seconds": seconds, "tokens": heads.training_record["tokens"],
                "depth": depth, "agreement": 1 - mine.mean(), "coverage at 0.9": coverage[depth],
                "cut": cut[0], "cut_low": cut[1], "cut_high": cut[2],
            })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    """Prints one table a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["generation", "training"], help=", ".join(PARTS))
    parser.add_argument("--recipes", nargs="+", default=["config/reference_heads.yaml", "config/heads.yaml"])
    parser.add_argument("--folder", type=Path, default=PROJECT / "data" / "bench", help="for what recipes make")
    parser.add_argument("--write", action="store_true", help="docs/results/writing_speed.csv, own_text.csv")
    given = parser.parse_args()
    if set(given.parts) - set(PARTS):
        raise InvalidInputError(f"Unknown parts {given.parts}: expected {', '.join(PARTS)}.")
    model, tokenizer = eelib.load_model("smollm2-135m", dtype="float32")
    if "generation" in given.parts:
        table = generation(model, tokenizer).round({"tokens_per_second": 0, "ratio": 3})
        print(table.to_string(index=False), flush=True)
        if given.write:
            table.to_csv(PROJECT / "docs" / "results" / "writing_speed.csv", index=False)
    for part in [part for part in TRIALS if part in given.parts]:
        corpus = eelib.Corpus.load(eelib.Workspace("smollm2-135m").corpus)
        table = training(model, tokenizer, corpus, given.folder / "teacher", *TRIALS[part])
        print(table.round(3).to_string(index=False), flush=True)
    if "recipes" in given.parts:
        print(recipes(model, tokenizer, given.recipes, given.folder).round(3).to_string(index=False), flush=True)
    if "own-text" in given.parts:
        table = own_text("smollm2-135m", given.folder).assign(**_run_here())
        print(table.round(3).to_string(index=False), flush=True)
        if given.write:
            table.to_csv(PROJECT / "docs" / "results" / "own_text.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
