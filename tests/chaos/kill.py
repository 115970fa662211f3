"""The main job killed anywhere, again and again: in the end its results are those of an undisturbed run.

    python tests/chaos/kill.py [--kills 30] [--model smollm2-135m] [--seed 0]

Runs every notebook small, on a random GPT-NeoX or the offline model, once undisturbed and once with the whole process
group killed (SIGKILL) at random moments; after every fifth kill stopped as by Ctrl-C (SIGINT to the group) or by an
operator (SIGTERM to the driver), in turn. Compares all tables but for what was timed, and digests of text, heads and
traces; looks for what must not be left behind; and writes a row into docs/results/kills.csv.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT)]

import pandas as pd  # noqa: E402
import psutil  # noqa: E402
from chaos.main_job import LEFT, configured, differing  # noqa: E402

STOPS = (*[signal.SIGKILL] * 5, signal.SIGINT, *[signal.SIGKILL] * 5, signal.SIGTERM)


def run(command: list[str], workspace: Path, limit: float | None = None, by: int = 0) -> tuple[bool, float]:
    """Run a batch, sent signal `by` after `limit` seconds; returns whether it ended by itself, and how long it took."""
    started = time.monotonic()
    with open(workspace.parent / f"{workspace.name}.log", "a", encoding="utf-8") as log:
        driver = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True)
        try:
            status = driver.wait(limit)
        except subprocess.TimeoutExpired:
            children = psutil.Process(driver.pid).children(recursive=True)
            stop(driver, by)
            _, alive = psutil.wait_procs(children, timeout=30)  # kernels lead groups of their own, and notice
            assert not alive, f"processes that outlive their driver, stopped by {by}: {alive}"
            return False, time.monotonic() - started
    assert status == 0, f"the batch failed: see {log.name}"
    return True, time.monotonic() - started


def stop(driver: subprocess.Popen, by: int) -> None:
    """Send a signal, and what somebody would send who waits in vain for a minute: the same again, five times."""
    for _ in range(6):
        driver.send_signal(by) if by == signal.SIGTERM else os.killpg(driver.pid, by)
        try:
            driver.wait(60)  # SIGTERM lets the notebook end that runs
            return
        except subprocess.TimeoutExpired:
            print(f"a minute after {signal.Signals(by).name} the batch still runs", flush=True)
    raise AssertionError(f"a batch that {signal.Signals(by).name} does not end")


def main() -> int:
    """Kill, carry on, compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--model", default="gpt-neox", help="gpt-neox (tiny and random), or a packaged model")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets its background jobs ignore
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        calm, killed = Path(folder) / "calm", Path(folder) / "killed"
        models = {"small": given.model}
        _, whole = run([*configured(calm, models), "full"], calm)
        command, done, within, sent = [*configured(killed, models), "full"], False, Counter(), Counter()
        while sent[signal.SIGKILL] < given.kills and not done:
            # So soon that the kills are spread over the whole run, though what was begun in vain is begun again.
            by = STOPS[sent.total() % len(STOPS)]
            done, _ = run(command, killed, draw.uniform(1, 3 * whole / given.kills), by)
            if not done:
                sent[by] += 1
                within.update(path.name.partition(".")[0] for path in killed.glob("data/runs/*/*.part.ipynb"))
        if not done:
            run(command, killed)
        parted, compared = differing(calm, killed)
        left = [str(path) for pattern in LEFT for path in killed.glob(pattern)]
    row = {
        "model": given.model, "kills": sent[signal.SIGKILL], "interrupts": sent[signal.SIGINT],
        "terminations": sent[signal.SIGTERM], "within": ", ".join(f"{name} {within[name]}" for name in sorted(within)),
        "compared": compared, "differing": len(parted), "left_behind": len(left),
    }  # fmt: skip
    print("differing:", parted, "left behind:", left)
    print(json.dumps(row, indent=1))
    file = PROJECT / "docs" / "results" / "kills.csv"
    rows = pd.read_csv(file).to_dict("records") if file.is_file() else []
    pd.DataFrame([*(one for one in rows if one["model"] != given.model), row]).to_csv(file, index=False)
    return 1 if parted or left or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
