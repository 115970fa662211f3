"""Slurm on this machine, as root: munged, slurmctld and two nodes."""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

PLUGIN = "snakemake-executor-plugin-slurm"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "unshare")
CONFIGURED = "/etc/slurm"
"""Where Slurm looks, since the executor keeps SLURM_CONF from its jobs: another folder is mounted there meanwhile."""
MARK = "EELIB_TEST_CLUSTER"
"""Environment variable that jobs inherit: which cluster is theirs."""
NODES = ("one", "two")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
MpiDefault=none
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=5
MinJobAge=7200
ReturnToService=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000 Gres=gpu:2\n"
"""Room for two jobs of one CPU and 1,000 MB, which may ask for GPUs: files that Slurm takes for such."""
GPUS = "NodeName={name} Name=gpu File=/dev/null\nNodeName={name} Name=gpu File=/dev/zero\n"


def missing() -> str:
    """What is missing, in one sentence; empty if nothing is."""
    if os.geteuid() != 0:
        return "Slurm's daemons run jobs as their owners: run `make test-scheduler` as root."
    if absent := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"{', '.join(absent)} missing: install Slurm, on Debian by `apt-get install slurm-wlm munge`."
    if not importlib.util.find_spec(PLUGIN.replace("-", "_")):
        return f"{PLUGIN} missing: install it by `.venv/bin/pip install -c constraints.txt {PLUGIN}`."
    return ""


def asked(*command: str) -> list[str]:
    """Lines of what a command of Slurm prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def wait_for(condition, what: str, seconds: float = 120.0):
    """Wait until the condition returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.5)
    return found


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Notebook(NamedTuple):
    """A notebook that runs as a job.

    Attributes:
        job: Slurm's number of the job.
        node: where it runs.
        target: the executed notebook that it will write.
        process: what executes it.
    """

    job: str
    node: str
    target: Path
    process: psutil.Process


class Cluster:
    """A cluster of two nodes; everything that it started ends with it.

    Attributes:
        most_at_once: how many notebooks were seen to run at once.
    """

    def __init__(self, folder: Path):
        self.folder, self.daemons, self.most_at_once = folder, {}, 0
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        host = socket.gethostname()
        config, gpus = CONFIG.format(host=host, port=free_port(), folder=folder), ""
        for name in NODES:
            (folder / name).mkdir()
            config += NODE.format(name=name, host=host, port=free_port())
            gpus += GPUS.format(name=name)
        (folder / "slurm.conf").write_text(config, encoding="utf-8")
        (folder / "gres.conf").write_text(gpus, encoding="utf-8")

    def __enter__(self) -> "Cluster":
        os.environ[MARK] = str(self.folder)
        subprocess.run(["mount", "--bind", str(self.folder), CONFIGURED], check=True)
        munge = [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
        try:
            self.start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *munge)
            wait_for((self.folder / "munge.socket").exists, "munged")
            self.start("slurmctld", "-D")
            for name in NODES:
                self.start(name, "-D", "-N", name, program="slurmd")
            wait_for(lambda: set(asked("sinfo", "-h", "-N", "-o", "%t")) == {"idle"}, "nodes to be idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        kill(process for process, _ in self.processes())
        subprocess.run(["umount", "--lazy", CONFIGURED], check=True)

    def start(self, name: str, *options: str, program: str = "") -> None:
        """Start a daemon, in the foreground and logging beside its configuration."""
        with open(self.folder / f"{name}.log", "a", encoding="utf-8") as log:
            self.daemons[name] = subprocess.Popen([shutil.which(program or name), *options], stdout=log, stderr=log)

    def processes(self) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
        """Processes of this cluster's jobs, with their environment."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # gone meanwhile
                environment = process.environ()
                if environment.get(MARK) == str(self.folder) and "SLURM_JOB_ID" in environment:
                    yield process, environment

    def notebooks(self) -> list[Notebook]:
        """Notebooks of which cells are being executed."""
        found = {}
        for process, environment in self.processes():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if command[1:4] == ["-m", "workflow.batch", "run"]:
                    job, node, target = environment["SLURM_JOB_ID"], environment["SLURMD_NODENAME"], Path(command[5])
                    if target.with_suffix(".part.ipynb").exists():
                        found[job] = Notebook(job, node, target, process)
        self.most_at_once = max(self.most_at_once, len(found))
        return list(found.values())

    def cut_power(self, node: str) -> None:
        """Kill all of a node at once, and bring it back afterwards."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        kill(process for process, environment in self.processes() if environment.get("SLURMD_NODENAME") == node)
        wait_for(lambda: "down" in "".join(asked("sinfo", "-h", "-n", node, "-o", "%T")), f"node {node} to be lost")
        self.start(node, "-D", "-N", node, program="slurmd")


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes of jobs, what watches over them first."""
    processes, watchers = list(processes), {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            watchers |= {one.pid: one for one in process.parents() if one.name().startswith("slurmstepd")}
    for process in [*watchers.values(), *processes]:
        with contextlib.suppress(psutil.Error):
            process.kill()
