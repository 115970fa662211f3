"""Batch runs of the notebooks, by Snakemake and papermill.

Snakemake decides which notebooks are out of date, papermill executes them. `python -m workflow.batch paper --config
config/offline.yaml [Snakemake's options]` makes every artefact of a config, and a gallery and a report for each
model;
`python -m workflow.batch run SOURCE TARGET --parameters JSON` executes one notebook, which is what the Snakefile calls.
"""

import argparse
import hashlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from eelib.errors import BatchError, EelibError, InvalidInputError
from eelib.workspace import Workspace, expanded
from workflow import gallery

PROJECT = Path(__file__).resolve().parents[1]

DRIVER = "EELIB_BATCH_PID"
"""Environment variable, "<process id>@<host>": the driver that a notebook's run belongs to."""


def code_hash(notebook: str | Path) -> str:
    """SHA-256 of a notebook's code cells, without outputs, metadata and text.

    Raises:
        InvalidInputError: the file is missing or not a notebook.
    """
    cells = [cell.source for cell in _read(notebook).cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def run_notebook(source: str | Path, target: str | Path, parameters: Mapping[str, object]) -> None:
    """Execute a notebook with papermill and save it as `target`.

    It runs in its own folder. `target` is replaced only when every cell has run; a failed notebook is kept beside it as
    `<name>.failed.ipynb`.

    Raises:
        InvalidInputError: `source` is missing, not a notebook, or has no such parameter.
        BatchError: a cell failed, or another run is making the same target.
    """
    import papermill

    source, target = Path(source).resolve(), Path(target).resolve()
    check_parameters(source, parameters)
    target.parent.mkdir(parents=True, exist_ok=True)
    part, failed = target.with_suffix(".part.ipynb"), target.with_suffix(".failed.ipynb")
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment, not the user's own
    os.environ["SPYDER_LIKE"] = "1"  # a name that makes tqdm.auto draw bars as text, which a log can follow
    _die_with_driver()
    try:
        # Long enough for a run whose driver was killed to notice and end.
        with FileLock(target.with_suffix(".lock"), timeout=30), Follower(source.stem):
            try:
                papermill.execute_notebook(
                    source, part, dict(parameters), kernel_name="python3", cwd=source.parent,
                    progress_bar=False, log_output=True,
                )  # fmt: skip
            except papermill.PapermillExecutionError as error:
                os.replace(part, failed)
                raise BatchError(
                    f"{source.name} failed in cell {error.cell_index + 1}: {error.ename}: {error.evalue}\nThe notebook "
                    f"up to the failure is {failed}. The earlier result, if any, was kept."
                ) from error
            os.replace(part, target)
            failed.unlink(missing_ok=True)
    except Timeout as error:
        raise BatchError(f"Another run is making {target}. Wait for it to end, then run the command again.") from error


def check_parameters(source: Path, parameters: Mapping[str, object]) -> None:
    """Check parameters against the notebook's cell tagged `parameters`.

    Raises:
        InvalidInputError: one is unknown; the message lists the known ones.
    """
    import papermill

    _read(source)  # for its error: papermill's own names neither the file nor the reason
    known = set(papermill.inspect_notebook(source))
    unknown = sorted(set(parameters) - known)
    if unknown:
        offered = ", ".join(sorted(known)) or "none: it has no cell tagged `parameters`"
        raise InvalidInputError(f"{source.name} has no parameter {', '.join(unknown)}. Its parameters: {offered}.")


def _read(notebook: str | Path):
    import nbformat

    try:
        return nbformat.read(notebook, as_version=4)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError) as error:  # by JSON that is no notebook, too
        raise InvalidInputError(f"{notebook} cannot be read as a notebook: {error}") from error


class Follower(logging.Handler):
    """Print papermill's progress: each cell as it starts, then its latest output."""

    def __init__(self, title: str, seconds: float = 5.0):
        super().__init__()
        self.title, self.seconds, self.last = title, seconds, 0.0
        self.logger = logging.getLogger("papermill")

    def __enter__(self):
        self.logger.addHandler(self)
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False

    def __exit__(self, *_):
        self.logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().replace("\r", "\n").strip()
        starts = message.startswith("Executing Cell")
        if not message or message.startswith("Ending Cell") or not (starts or time.monotonic() > self.last):
            return
        self.last = 0.0 if starts else time.monotonic() + self.seconds
        print(f"[{self.title}] {message.splitlines()[-1].rstrip('-')[:100]}", flush=True)


def _die_with_driver(interval: float = 1.0) -> None:
    """Exit, kernel included, once the driver named in the environment is gone."""
    import psutil

    pid, _, host = os.environ.get(DRIVER, "").partition("@")
    if host != socket.gethostname():
        return  # run by hand, or by a scheduler on another machine

    def gone(driver: psutil.Process | None) -> bool:
        try:
            return driver is None or not driver.is_running() or driver.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def watch() -> None:
        driver = psutil.Process(int(pid)) if psutil.pid_exists(int(pid)) else None
        while not gone(driver):
            time.sleep(interval)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)  # the main thread waits inside papermill and would not hear of it

    threading.Thread(target=watch, daemon=True).start()


def paper(config: str | Path, options: list[str]) -> int:
    """Bring all artefacts of a config up to date.

    Args:
        options: passed on to Snakemake.

    Returns:
        Snakemake's exit status.

    Raises:
        InvalidInputError: the config is missing or not what the Snakefile reads.
        BatchError: another batch runs in the same workspace.
    """
    import yaml
    from snakemake.cli import main as snakemake

    config = Path(config).resolve()
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InvalidInputError(f"The config {config} cannot be read: {error}") from error
    if not isinstance(settings, dict) or not settings.get("models"):
        raise InvalidInputError(f"The config {config} names no models. See config/offline.yaml for what it must hold.")

    os.chdir(PROJECT)
    os.environ[DRIVER] = f"{os.getpid()}@{socket.gethostname()}"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` in the Snakefile
    workspace = expanded(settings.get("workspace", "."))
    lock = workspace / "data" / ".batch.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        # This lock goes when its process does, so Snakemake's, which outlives a killed run, is not needed.
        with FileLock(lock, timeout=0):
            try:
                snakemake([
                    "--snakefile", str(PROJECT / "workflow" / "Snakefile"), "--configfile", str(config),
                    "--resources", "machine=1", "--quiet", "rules", "--cores", "all", "--nolock",
                    "--rerun-incomplete", "--keep-going", *options,
                ])  # fmt: skip
            finally:  # it ends by SystemExit; where a notebook failed, the others' figures are there
                folders = [Workspace(model, workspace).figures for model in settings["models"]]
                for folder in filter(Path.is_dir, folders):
                    gallery.assemble(folder)
                unwritten = write_reports(filter(Path.is_dir, folders))
    except Timeout as error:
        raise BatchError(f"Another batch runs in {lock.parent}. Wait for it to end, or stop it.") from error
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else 1) or unwritten
    return unwritten


def write_reports(folders: Iterable[Path]) -> int:
    """Write reports older than their tables; return 1 if one failed.

    A failure is reported and costs nothing else: figures, tables and the other models' reports stay.
    """
    failed = 0
    for folder in folders:
        newest = max((table.stat().st_mtime for table in folder.glob("[0-9][0-9]_*.csv")), default=0)
        written = folder / "report.html"
        if not newest or (written.is_file() and written.stat().st_mtime >= newest):
            continue
        try:
            from eelib.reporting.report import write_report

            write_report(folder)
        except (EelibError, OSError) as error:
            failed = 1
            print(f"error: no report in {folder}: {error}", file=sys.stderr, flush=True)
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status. Errors print without traceback."""
    parser = argparse.ArgumentParser(prog="python -m workflow.batch", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("paper", help="make everything of a config; other options go to Snakemake")
    whole.add_argument("--config", default=PROJECT / "config" / "offline.yaml", type=Path)
    single = commands.add_parser("run", help="execute one notebook")
    single.add_argument("source", type=Path)
    single.add_argument("target", type=Path)
    single.add_argument("--parameters", default={}, type=json.loads, help="a JSON object")
    given, options = parser.parse_known_args(arguments)
    if given.command == "run" and options:
        parser.error(f"unknown arguments: {' '.join(options)}")

    start = time.perf_counter()
    try:
        if given.command == "run":
            run_notebook(given.source, given.target, given.parameters)
            status = 0
        else:
            status = paper(given.config, options)
    except EelibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    what = given.source.stem if given.command == "run" else given.command
    print(f"{what}: {'done' if status == 0 else 'failed'} after {minutes} min {seconds} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
