"""How well speed is predicted on a shared machine: `make bench-predictions`. Four minutes a run; run it alone.

Each run times the pieces of decoding, decodes the twelve policies of notebook 05 in turn, and counts those that are
predicted within 10%. In the last run a second process computes beside the timing, on and off. With `--write` the runs
become docs/results/predictions.csv.
"""

import argparse
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

import eelib
from eelib import evaluation, plotting

TABLE = Path(__file__).resolve().parents[2] / "docs" / "results" / "predictions.csv"
BUSY = "import torch; a = torch.randn(800, 800)\nwhile True: a @ a"


@contextmanager
def disturbed(seconds: float) -> Iterator[None]:
    """A second busy process, `seconds` on and `seconds` off, until the block ends."""
    over = threading.Event()

    def disturb() -> None:
        while not over.is_set():
            process = subprocess.Popen([sys.executable, "-c", BUSY])
            over.wait(seconds)
            process.kill()
            process.wait()
            over.wait(seconds)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def run(lm, heads, traces: pd.DataFrame, prompts: list, busy_seconds: float | None) -> pd.DataFrame:
    """One run: `check_predictions` of the twelve policies."""
    length = {"max_new_tokens": 40}
    fixed = evaluation.layerskip_settings(heads, (2, 6), "fixed")
    fixed += evaluation.dssd_settings(traces, heads, "entropy", (0.6, 0.8, 0.9), (8,), heads.depths[-1:])
    twelve = {"plain": evaluation.PLAIN} | {plotting.setting_label(s.parameters): s for s in fixed}
    texts = evaluation.OwnTexts.write(lm, prompts, **length)
    if busy_seconds is None:
        timed = evaluation.time_pieces(lm, heads, prompts[:3], **length)
    else:
        with disturbed(busy_seconds):
            timed = evaluation.time_pieces(lm, heads, prompts[:3], **length)
    decoders = {name: setting.decoder(lm, **length) for name, setting in twelve.items()}
    runs = evaluation.compare(decoders, prompts, reference="plain", repeats=3)
    timings = dict.fromkeys(("plain", "fixed", "DSSD"), timed)
    return evaluation.check_predictions(lm, twelve, texts, timings, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, help="with the heads and traces of notebooks 01 and 02")
    parser.add_argument("--runs", type=int, default=3, help="the last one is disturbed")
    parser.add_argument("--busy-seconds", type=float, default=4.0)
    parser.add_argument("--write", action="store_true", help="keep the runs for the docs")
    given = parser.parse_args()
    workspace = eelib.Workspace("smollm2-135m", given.workspace)
    lm, tokenizer = eelib.load_model("smollm2-135m", dtype="bfloat16")
    heads = eelib.ExitHeads.from_pretrained(workspace.heads, lm)
    traces = pd.read_parquet(workspace.traces / "calibration.parquet")
    prompts = evaluation.load_prompts(tokenizer, 4)
    runs = []
    for number in range(given.runs):
        busy = given.busy_seconds if number == given.runs - 1 else None
        table = run(lm, heads, traces, prompts, busy)
        within = int((table.error.abs() <= 0.1).sum())
        print(table.round(3).to_string(index=False))
        beside = "" if busy is None else ", a busy process beside the timing"
        print(f"run {number + 1}{beside}: {within} of {len(table)} within 10%\n", flush=True)
        runs.append(table.assign(run=number + 1, disturbed=busy is not None))
    about = eelib.timing.machine()
    if given.write:
        made = pd.concat(runs).round(4).assign(
            command='make bench-predictions ARGS="--write"', date=pd.Timestamp.now().date(),
            machine=f"{about['processor']}, {about['threads']} threads",
        )  # fmt: skip
        made.to_csv(TABLE, index=False)
    print(about)


if __name__ == "__main__":
    main()
