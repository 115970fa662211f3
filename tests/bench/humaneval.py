"""Pass@1 on HumanEval of early exit beside the full model's: `make bench-code`.

The 104 tasks that no head was trained on, one greedy answer each (arXiv 2107.03374), and the answers' programs run
against the tests. Early exit is no worse where the 95% interval of the paired difference lies above -0.05, and worse
where it lies below 0. Answers are written in batches and kept in data/bench/humaneval, so that a killed run goes on.
Half an hour for a model of 0.5B parameters on two cores; needs its heads and traces (`make sizes`). With `--write` the
table becomes docs/results/humaneval_<model>.csv.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

import eelib
from eelib import evaluation
from eelib.backbone.loading import batch_dtype
from eelib.decoding import Batcher
from eelib.evaluation.cases import read_rows
from eelib.statistics import format_interval, mean_interval
from eelib.workspace import read_table, write_whole

PROJECT = Path(__file__).parents[2]
MARGIN = 0.05
FIELDS = ("pass_at_1", "less_full")


def write_answers(folder: Path, tokenizer, prompts: Sequence, batcher: Batcher, n_blocks: int) -> pd.DataFrame:
    """An answer a prompt, each in a file of its own: answer, tokens, exited (share of them)."""
    missing = [number for number in range(len(prompts)) if not (folder / f"{number}.json").is_file()]
    done = batcher.run(prompts[number] for number in missing)
    for one in tqdm(done, total=len(missing), desc=f"answers, {folder.name}", unit="answer"):
        if one.error is not None:
            raise one.error
        output = one.output
        row = {
            "answer": tokenizer.decode(output.sequences[0, -output.stats.emitted :], skip_special_tokens=True),
            "tokens": output.stats.emitted, "exited": float((output.trace.depth < n_blocks).mean()),
        }  # fmt: skip
        write_whole(folder / f"{missing[one.number]}.json", json.dumps(row))
    return pd.DataFrame([json.loads((folder / f"{n}.json").read_text("utf-8")) for n in range(len(prompts))])


def verdict(row: dict) -> str:
    """What the paired difference to the full model says."""
    return "no worse" if row["less_full_low"] > -MARGIN else "worse" if row["less_full_high"] < 0 else "undecided"


def measure(name: str, slug: str, epsilons: list[float], tasks: int, new: int, rows: int) -> pd.DataFrame:
    """One row a setting: setting, tasks, tokens (mean), exited, pass_at_1 and less_full with intervals, verdict."""
    ws = eelib.Workspace(slug, PROJECT)
    lm, tokenizer = eelib.load_model(name, dtype=batch_dtype("bfloat16"))
    heads, traces = eelib.ExitHeads.from_pretrained(ws.heads, lm), read_table(ws.traces / "calibration.parquet")
    prompts = evaluation.load_prompts(tokenizer, tasks, file="code_completion")
    cases, n_blocks = read_rows("humaneval")[:tasks], eelib.Backbone.of(lm).n_blocks
    policies = {"full": eelib.Never()}
    for epsilon in epsilons:
        found = eelib.calibrate(traces, "entropy", epsilon)
        policies[f"ε = {epsilon:g}"] = eelib.Confidence.from_calibration(found)
    table, passed = [], {}
    for setting, policy in policies.items():
        key = hashlib.sha256(f"{policy} {new} {lm.dtype}".encode()).hexdigest()[:8]
        folder = PROJECT / "data" / "bench" / "humaneval" / slug / f"{setting} {key}"
        batcher = Batcher(lm, policy=policy, heads=heads, verify=False, rows=rows, max_new_tokens=new, do_sample=False)
        answers = write_answers(folder, tokenizer, prompts, batcher, n_blocks)
        programs = [evaluation.program(case, answer) for case, answer in zip(cases, answers.answer, strict=True)]
        passed[setting] = pd.Series(evaluation.passes(programs, allow_execution=True, processes=2), dtype=float)
        row = {"setting": setting, "tasks": tasks, "tokens": answers.tokens.mean(), "exited": answers.exited.mean()}
        for field, values in zip(FIELDS, (passed[setting], passed[setting] - passed["full"]), strict=True):
            row |= dict(zip((field, f"{field}_low", f"{field}_high"), mean_interval(values), strict=True))
        table.append(row | {"verdict": verdict(row) if setting != "full" else ""})
    return pd.DataFrame(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b", help="as load_model takes it")
    parser.add_argument("--slug", help="folder name of its artefacts, where that is another")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--tasks", type=int, default=104)
    parser.add_argument("--new", type=int, default=320, help="maximum number of tokens of an answer")
    parser.add_argument("--rows", type=int, default=8, help="answers written at once")
    parser.add_argument("--allow-execution", action="store_true", help="run the programs that the model writes")
    parser.add_argument("--write", action="store_true", help="write docs/results/humaneval_<model>.csv")
    given = parser.parse_args()
    if not given.allow_execution:
        parser.error("this runs model-written programs: say --allow-execution if this machine may do that")
    slug = given.slug or given.model
    found = measure(given.model, slug, given.epsilons, given.tasks, given.new, given.rows)
    for row in found.to_dict("records"):
        told = [f"{field} {format_interval(row, field)}" for field in FIELDS]
        print(f"{row['setting']:10}", f"exited {row['exited']:.0%}", *told, row["verdict"], sep="  ")
    if given.write:
        file = PROJECT / "docs" / "results" / f"humaneval_{slug}.csv"
        write_whole(file, found.to_csv(index=False, float_format="%.6g"))
