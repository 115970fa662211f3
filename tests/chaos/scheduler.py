"""The main job through a real Slurm, whatever is killed meanwhile.

    python tests/chaos/scheduler.py [local] [one] [disturbed] [--times 1] [--folder FOLDER] [--seed 0]

Starts Slurm on this machine, as root, and runs the notebooks small on random GPT-NeoX through config/slurm: one model;
then two side by side while jobs are cancelled and killed, a node loses its power, and the driver is killed and started
again. In the end the results are those of a local run. Jobs are polled by squeue, so that no accounting is needed.
Writes a row for each disturbance into docs/results/scheduler.csv.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT)]

import pandas as pd  # noqa: E402
from chaos.main_job import LEFT, configured, differing  # noqa: E402
from chaos.slurm import MARK, Cluster, asked, missing, wait_for  # noqa: E402

MODELS = {"a": "gpt-neox 0", "b": "gpt-neox 1"}
RUNS = ("local", "one", "disturbed")
DISTURBANCES = ("job cancelled", "process killed", "node lost", "driver killed")
AS_ON_A_CLUSTER = (
    "--profile", "config/slurm", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3",
    "--slurm-keep-successful-logs",
)  # fmt: skip


class Driver:
    """A batch that submits its notebooks as jobs."""

    def __init__(self, command: list[str], logs: Path):
        self.command, self.logs = [*command, *AS_ON_A_CLUSTER, "--slurm-logdir", str(logs)], logs
        logs.mkdir()
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        with open(self.logs / "driver", "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """Kill it with all that it started itself, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ended(self) -> bool:
        """Whether it has ended; it must have ended well."""
        assert not self.process.poll(), f"the batch failed: see {self.logs}"
        return self.process.poll() == 0


def disturb(cluster: Cluster, driver: Driver, times: int, draw: random.Random) -> None:
    """Disturb one notebook after another: each may fail once."""
    kinds, disturbed = list(DISTURBANCES) * times, set()
    draw.shuffle(kinds)
    while kinds:
        assert not driver.ended(), f"the batch ended before {kinds}"
        time.sleep(draw.uniform(0.5, 3))
        running = [one for one in cluster.notebooks() if one.target not in disturbed]
        if not running:
            continue
        chosen, kind = draw.choice(running), kinds.pop()
        print(f"{kind}: job {chosen.job}, {chosen.target.stem} of {chosen.target.parent.name}", flush=True)
        disturbed.add(chosen.target)
        if kind == "job cancelled":
            asked("scancel", chosen.job)
        elif kind == "process killed":
            chosen.process.kill()
        elif kind == "node lost":
            cluster.cut_power(chosen.node)
        else:
            driver.kill()
            time.sleep(3)
            asked("scancel", "--state=PENDING", "--user=root")  # as docs/scale.md says
            (state,) = asked("squeue", "-h", "--states=all", "-j", chosen.job, "-o", "%T")
            assert state in ("RUNNING", "COMPLETED", "COMPLETING"), f"job {chosen.job} is {state} without its driver"
            driver.start()


def through_slurm(run: str, folder: Path, times: int, draw: random.Random) -> list[dict[str, object]]:
    """A run through Slurm beside the local one, a row a disturbance."""
    workspace, logs, disturbed = folder / run, folder / f"{run}-logs", run == "disturbed"
    models = MODELS if disturbed else {"a": MODELS["a"]}
    for earlier in (workspace, logs):
        shutil.rmtree(earlier, ignore_errors=True)
    command = configured(workspace, models, gpu=1, mem_mb=1000)
    with tempfile.TemporaryDirectory(prefix="slurm-") as daemons, Cluster(Path(daemons)) as cluster:
        driver = Driver(command, logs)
        try:
            if disturbed:
                disturb(cluster, driver, times, draw)
            wait_for(lambda: cluster.notebooks() is None or driver.ended(), "the batch", seconds=3600)
        finally:
            driver.kill()
        jobs = len(asked("squeue", "-h", "--states=all", "-o", "%A"))
    taken = sum("made by another job meanwhile" in log.read_text(encoding="utf-8") for log in logs.rglob("*.log"))
    parted, compared = differing(folder / "local", workspace, "*" if disturbed else "a")
    left = [str(path.relative_to(workspace)) for pattern in LEFT for path in workspace.glob(pattern)]
    print(f"{run}: {jobs} jobs, up to {cluster.most_at_once} at once, {taken} took what another made", flush=True)
    print(f"{compared} tables and artefacts compared; differing: {parted}; left behind: {left}", flush=True)
    return [
        {
            "disturbance": kind, "times": times if disturbed else 0, "models": len(models), "jobs": jobs,
            "at once": cluster.most_at_once, "compared": compared, "differing": len(parted), "left behind": len(left),
        }
        for kind in (DISTURBANCES if disturbed else ["none"])
    ]  # fmt: skip


def main() -> int:
    """Run here, run there, compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help=f"some of {', '.join(RUNS)}; all if none is named")
    parser.add_argument("--times", type=int, default=1, help="how often each disturbance")
    parser.add_argument("--folder", type=Path, help="where the runs are kept, so that the next call carries on")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if unknown := set(given.runs) - set(RUNS):
        parser.error(f"no run {', '.join(unknown)}; there are {', '.join(RUNS)}")
    if lacking := missing():
        print(f"error: {lacking}", file=sys.stderr)
        return 2
    if MARK not in os.environ:  # again, where no other process sees what is mounted
        os.environ[MARK] = ""
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that daemons end, too
    os.environ["OMP_NUM_THREADS"] = "1"  # one CPU a job, and the same bits on any machine
    with tempfile.TemporaryDirectory(prefix="eelib-") as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        subprocess.run(configured(folder / "local", MODELS), cwd=PROJECT, check=True)
        rows = []
        for run in given.runs or RUNS:
            if run != "local":
                rows += through_slurm(run, folder, given.times, random.Random(given.seed))
    file = PROJECT / "docs" / "results" / "scheduler.csv"
    now = {row["disturbance"] for row in rows}
    before = pd.read_csv(file).to_dict("records") if file.is_file() else []
    if rows:
        pd.DataFrame([*(one for one in before if one["disturbance"] not in now), *rows]).to_csv(file, index=False)
    return 1 if any(row["differing"] or row["left behind"] or not row["compared"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
