"""An hour of decoding, training and monitoring in one process: memory and speed stay as they are.

    python tests/chaos/long_run.py [--minutes 60] [--workspace FOLDER] [--write]

On the offline model, with the heads and traces of `make paper`. A cycle decodes prompts plainly, by verified drafts and
by early exit (both watched by one monitor), by lookup, sampled and in a batch; trains heads on what was written; and
loads a second model, decodes with it and lets it go. After each it notes resident memory and speeds; `--write` keeps
them in docs/results/long_run.csv. Fails where memory grows by more than 2%, or where a model that was let go stays.
"""

import argparse
import ctypes
import gc
import itertools
import sys
import time
import weakref
from pathlib import Path

import pandas as pd
import psutil
import torch
from tqdm.auto import tqdm

import eelib
from eelib import evaluation
from eelib.statistics import mean_interval
from eelib.timing import machine

FILE = Path(__file__).parents[2] / "docs" / "results" / "long_run.csv"
LENGTH = 40
"""New tokens of each text."""


def decoded(lm, heads, prompts: list, monitor: eelib.ExitMonitor, cycle: int) -> tuple[list, dict[str, float]]:
    """One prompt by every way of decoding; texts, and tokens a second of plain decoding and of drafts."""
    verified = eelib.Confidence.from_calibration(monitor.calibration)
    prompt, speeds, texts = prompts[cycle % len(prompts)], {}, []
    for name, policy, rest in (
        ("plain", eelib.Never(), {}),
        ("dssd", verified, {}),
        ("lookup", eelib.Lookup(), {}),
        ("exit", verified, {"verify": False}),
        ("sampled", verified, {"do_sample": True, "temperature": 0.8, "seeds": cycle}),
    ):
        given = {} if name in ("plain", "lookup") else {"heads": heads}
        out = eelib.generate(lm, prompt, policy=policy, max_new_tokens=LENGTH, **given, **rest)
        if name in ("plain", "dssd"):
            speeds[name] = out.stats.emitted / out.stats.seconds
        if name in ("dssd", "exit"):
            monitor.observe(out)
        texts.append(out.sequences[0])
    batch = [one[0] for one in itertools.islice(itertools.cycle(prompts), cycle, cycle + 4)]
    outs = eelib.generate(lm, batch, heads=heads, policy=verified, max_new_tokens=LENGTH)
    return [*texts, *(out.sequences[0] for out in outs.rows)], speeds


def trained(lm, texts: list) -> float:
    """Small heads trained on texts: tokens a second."""
    heads = eelib.ExitHeads.init(lm, [6, 15], "affine")
    started = time.perf_counter()
    eelib.train_heads(lm, heads, texts, eelib.TrainConfig(epochs=1, log_every=1))
    return sum(map(len, texts)) / (time.perf_counter() - started)


def let_go(prompt, cycle: int) -> bool:
    """Whether a second model, decoded with and forgotten, is freed."""
    lm, _ = eelib.load_model("smollm2-135m", dtype="bfloat16")
    heads = eelib.ExitHeads.init(lm, [6 + cycle % 9, 18], "linear")
    eelib.generate(lm, prompt, heads=heads, policy=eelib.FixedExit(6 + cycle % 9, 3), max_new_tokens=8)
    gone = weakref.ref(lm)
    del lm, heads
    gc.collect()
    return gone() is None


def main() -> int:
    """Run cycles until the time is over; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workspace", type=Path, help="with the heads and traces of `make paper`")
    parser.add_argument("--write", action="store_true", help=f"into {FILE.name}")
    given = parser.parse_args()
    workspace = eelib.Workspace("smollm2-135m", given.workspace)
    lm, tokenizer = eelib.load_model("smollm2-135m", dtype="bfloat16")
    heads = eelib.ExitHeads.from_pretrained(workspace.heads, lm)
    traces = pd.read_parquet(workspace.traces / "calibration.parquet")
    monitor = eelib.ExitMonitor(eelib.calibrate(traces, "entropy", epsilon=0.8))
    prompts = evaluation.load_prompts(tokenizer, 12)
    rows, began, kept = [], time.monotonic(), 0
    with tqdm(total=given.minutes, unit="min", bar_format="{l_bar}{bar}| {n:.1f}/{total:.0f} min {postfix}") as bar:
        while (past := (time.monotonic() - began) / 60) < given.minutes:
            bar.n = past
            cycle = len(rows)
            texts, speeds = decoded(lm, heads, prompts, monitor, cycle)
            training = trained(lm, texts)
            kept += not let_go(prompts[0], cycle)
            del texts
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what is free already, but not given back, is no growth
            memory = psutil.Process().memory_info().rss / 2**20
            rows.append({"minutes": past, "memory": memory, **speeds, "training": training})
            bar.set_postfix_str(f"{memory:.0f} MiB, {speeds['plain']:.1f} tokens/s", refresh=True)
    table = pd.DataFrame(rows)
    about = machine()
    table = table.assign(processor=about["processor"], cores=about["cores"], threads=torch.get_num_threads())
    turn = len(prompts) if len(table) >= 4 * len(prompts) else 1
    size = len(table) // 4 // turn * turn  # quarters of the run, on the same prompts; the first warms up
    early, late = (table[at : at + size].reset_index(drop=True) for at in (size, (len(table) - size) // turn * turn))
    for column in ("memory", "plain", "dssd", "training"):
        mean, low, high = mean_interval(late[column] / early[column] - 1)
        print(f"{column}: {mean:+.2%} [{low:+.2%}, {high:+.2%}]")
    grown = late.memory.median() / early.memory.median() - 1
    print(f"{len(table)} cycles, {len(monitor.table)} sequences watched, {kept} models stayed; {grown:+.2%} memory")
    if given.write:
        table.round(3).to_csv(FILE, index=False)
    return 1 if kept or grown > 0.02 else 0


if __name__ == "__main__":
    sys.exit(main())
