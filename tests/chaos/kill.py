"""The main job killed anywhere, again and again: in the end its results are those of an undisturbed run.

    python tests/chaos/kill.py [--kills 30] [--model smollm2-135m] [--seed 0]

Runs every notebook small, on a random GPT-NeoX or the offline model, once undisturbed and once with the whole process
group killed (SIGKILL) at random moments. Compares all tables but for what was timed, and the digests of text, heads and
traces; looks for what must not be left behind; and writes a row into docs/results/kills.csv.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT)]

import pandas as pd  # noqa: E402
import psutil  # noqa: E402
import yaml  # noqa: E402

ARTEFACTS = ("corpora/*/*.parquet", "heads/*/model.safetensors", "fused/*/model.safetensors")
"""What must be equal to the last bit, below data/."""
TIMED = ("second", "speed", "predicted", "measured", "error", "scale", "bytes", "front")
"""What names of columns contain that depend on the clock."""
CHOSEN = ("05_speed", "05_curve", "09_")
"""Beginnings of the names of tables whose settings the clock chose."""
SETTLED = ("decoder", "equal", "lossless", "parameters", "n_blocks")
"""Columns of such tables that are equal whatever was chosen."""
LEFT = ("**/.eelib-*", "**/*.part.ipynb", "**/*.failed.ipynb")
"""What must not be left behind."""


def settings_of_tests():
    """The small parameters, and the GPT-NeoX, of the notebooks' tests."""
    file = PROJECT / "tests" / "workflow" / "test_notebooks.py"
    spec = importlib.util.spec_from_file_location("small_notebooks", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configured(workspace: Path, model: str) -> list[str]:
    """The command of a batch in this workspace."""
    of_tests = settings_of_tests()
    parameters, described = dict(of_tests.SMALL), {"name": model, "dtype": "bfloat16"}
    workspace.mkdir(parents=True)
    if model == "gpt-neox":
        shared = workspace.parent / "shared"
        if not shared.exists():
            shared.mkdir()
            of_tests.pythia_like(shared)
        described = {"name": str(shared / "model"), "dtype": "float32"}
        text = {"source": str(shared / "text"), "documents": None, "length": 48}
        changes = {"corpus": text, "heads": {"draft_vocab_size": None}}
        parameters |= {name: parameters[name] | {"changes": changes} for name in ("01_train_heads", "06_heads")}
    config = {"workspace": str(workspace), "models": {"small": described}, "parameters": parameters}
    (workspace / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return [sys.executable, "-m", "workflow.batch", "paper", "--config", str(workspace / "config.yaml"), "full"]


def run(command: list[str], workspace: Path, limit: float | None = None) -> tuple[bool, float]:
    """Run a batch, killed after `limit` seconds; returns whether it ended by itself, and how long it took."""
    started = time.monotonic()
    with open(workspace.parent / f"{workspace.name}.log", "a", encoding="utf-8") as log:
        driver = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True)
        try:
            status = driver.wait(limit)
        except subprocess.TimeoutExpired:
            children = psutil.Process(driver.pid).children(recursive=True)
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            _, alive = psutil.wait_procs(children, timeout=30)  # kernels lead groups of their own, and notice
            assert not alive, f"processes that outlive their driver by 30 seconds: {alive}"
            return False, time.monotonic() - started
    assert status == 0, f"the batch failed: see {log.name}"
    return True, time.monotonic() - started


def results(workspace: Path) -> Iterator[tuple[str, str]]:
    """Digest of everything that must be equal, by name."""
    for pattern in ARTEFACTS:
        for file in sorted((workspace / "data").glob(pattern)):
            yield file.relative_to(workspace).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted((workspace / "figures").glob("*/*.csv")):
        table = pd.read_csv(file)
        if file.name.startswith(CHOSEN):
            table = table[[name for name in table if name in SETTLED]]
        untimed = table[[name for name in table if not any(part in name for part in TIMED)]]
        yield file.name, hashlib.sha256(untimed.to_csv().encode()).hexdigest()


def main() -> int:
    """Kill, carry on, compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--model", default="gpt-neox", help="gpt-neox (tiny and random), or a packaged model")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        calm, killed = Path(folder) / "calm", Path(folder) / "killed"
        _, whole = run(configured(calm, given.model), calm)
        command, kills, done, within = configured(killed, given.model), 0, False, Counter()
        while kills < given.kills and not done:
            # So soon that the kills are spread over the whole run, though what was begun in vain is begun again.
            done, _ = run(command, killed, draw.uniform(1, 3 * whole / given.kills))
            kills += not done
            if not done:
                within.update(path.name.partition(".")[0] for path in killed.glob("data/runs/*/*.part.ipynb"))
        if not done:
            run(command, killed)
        expected, found = dict(results(calm)), dict(results(killed))
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        left = [str(path) for pattern in LEFT for path in killed.glob(pattern)]
    row = {
        "model": given.model, "kills": kills, "within": ", ".join(f"{name} {within[name]}" for name in sorted(within)),
        "compared": len(expected), "differing": len(differing), "left_behind": len(left),
    }  # fmt: skip
    print("differing:", differing, "left behind:", left)
    print(json.dumps(row, indent=1))
    file = PROJECT / "docs" / "results" / "kills.csv"
    rows = pd.read_csv(file).to_dict("records") if file.is_file() else []
    pd.DataFrame([*(one for one in rows if one["model"] != given.model), row]).to_csv(file, index=False)
    return 1 if differing or left or not expected else 0


if __name__ == "__main__":
    sys.exit(main())
