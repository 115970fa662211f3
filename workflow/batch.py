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
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from eelib.errors import BatchError, EelibError, InvalidInputError
from eelib.workspace import Workspace, expanded, read_json, read_yaml, write_whole
from eelib.workspace.ledger import RUN, peak_resident
from eelib.workspace.writing import is_full, no_room
from workflow import gallery
from workflow.supply import sbom

PROJECT = Path(__file__).resolve().parents[1]

PATIENCE = 30
"""Seconds to wait for another run: long enough for one whose driver was killed to notice and end."""
SLUG = re.compile(r"\w[\w.-]*")
"""What a model may be called in a config."""
UNUSABLE = re.compile(r"[{}\"'\x00-\x1f\x7f]")
"""What the path of a workspace may not hold."""

DRIVER = "EELIB_BATCH_PID"
"""Environment variable, "<process id>@<place>": the driver that a notebook's run belongs to."""
SCHEDULED = "SLURM_JOB_ID"
"""Environment variable that Slurm sets in its jobs."""
BATCH = "EELIB_BATCH_CONFIG"
"""Environment variable, as JSON: file and SHA-256 of the config that a notebook's run belongs to."""


def code_hash(notebook: str | Path) -> str:
    """SHA-256 of a notebook's code cells.

    Neither outputs, metadata and text count, nor parameters that papermill put in.

    Raises:
        InvalidInputError: the file is missing or not a notebook.
    """
    cells = [cell.source for cell in _read(notebook).cells if cell.cell_type == "code" and not _is_injected(cell)]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def _is_injected(cell) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def run_notebook(source: str | Path, target: str | Path, parameters: Mapping[str, object]) -> None:
    """Execute a notebook with papermill and save it as `target`.

    It runs in its own folder. `target` is replaced only when every cell has run; a failed notebook is kept beside it as
    `<name>.failed.ipynb`. A scheduler's job that finds one of a killed driver at work waits
    for it, and takes its result.

    Raises:
        InvalidInputError: `source` is missing, not a notebook, or has no such parameter.
        BatchError: a cell failed, or another run is making the same target.
        DiskFullError: there is no room for the executed notebook.
    """
    import papermill

    source, target = Path(source).resolve(), Path(target).resolve()
    check_parameters(source, parameters)
    target.parent.mkdir(parents=True, exist_ok=True)
    part, failed = target.with_suffix(".part.ipynb"), target.with_suffix(".failed.ipynb")
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment, not the user's own
    os.environ["SPYDER_LIKE"] = "1"  # a name that makes tqdm.auto draw bars as text, which a log can follow
    run = {"notebook": source.name, "code": code_hash(source), "parameters": dict(parameters)}
    run["config"] = json.loads(os.environ.get(BATCH, "null"))
    os.environ[RUN] = json.dumps(run, default=str)
    _die_with_driver()
    waiting, before = -1 if SCHEDULED in os.environ else PATIENCE, _written(target)
    try:
        with FileLock(target.with_suffix(".lock"), timeout=waiting), Follower(source.stem):
            if _written(target) != before and _is_of(target, run):
                print(f"[{source.stem}] made by another job meanwhile", flush=True)
                return
            try:
                with temporary_files(target.with_suffix(".tmp")):
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
            write_whole(target.with_suffix(".cdx.json"), sbom())
            os.replace(part, target)
            failed.unlink(missing_ok=True)
    except Timeout as error:  # an OSError too
        raise BatchError(f"Another run is making {target}. Wait for it to end, then run the command again.") from error
    except OSError as error:
        if not is_full(error):
            raise
        part.unlink(missing_ok=True)
        raise no_room(target) from error


@contextmanager
def temporary_files(folder: Path) -> Iterator[None]:
    """Keep temporary files of this process and its children in one folder.

    It goes afterwards. Killed processes leave theirs, a kernel's connection file with its key among them; the next run
    deletes them. Only one process at a time may use the folder.

    Raises:
        DiskFullError: there is no room for it.
        BatchError: it cannot be made.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
    except OSError as error:
        if is_full(error):
            raise no_room(folder) from error
        raise BatchError(f"{folder} cannot be made: {error.strerror}. Move away what stands there.") from error
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), None  # None: to be read anew
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        tempfile.tempdir = None
        shutil.rmtree(folder, ignore_errors=True)


def _written(target: Path) -> int | None:
    return target.stat().st_mtime_ns if target.exists() else None


def _is_of(executed: Path, run: Mapping[str, object]) -> bool:
    """Whether a notebook was executed with this code and these parameters."""
    with_parameters = _read(executed).metadata.get("papermill", {}).get("parameters")
    return with_parameters == run["parameters"] and code_hash(executed) == run["code"]


def check_parameters(source: Path, parameters: Mapping[str, object]) -> None:
    """Check parameters against the notebook's cell tagged `parameters`.

    Raises:
        InvalidInputError: one is unknown; the message lists the known ones.
    """
    import papermill

    _read(source)  # for its error: papermill's own names neither the file nor the reason
    try:
        known = set(papermill.inspect_notebook(source))
    except Exception as error:  # papermill promises no narrower class for cells that it does not expect
        raise InvalidInputError(f"{source} cannot be read as a notebook: {error!r}") from error
    unknown = sorted(set(parameters) - known)
    if unknown:
        offered = ", ".join(sorted(known)) or "none: it has no cell tagged `parameters`"
        raise InvalidInputError(f"{source.name} has no parameter {', '.join(unknown)}. Its parameters: {offered}.")


def _read(notebook: str | Path):
    import nbformat

    try:
        found = nbformat.reads(json.dumps(read_json(notebook, digest=False)), as_version=4)
        nbformat.validate(found)
    except Exception as error:  # nbformat promises no narrower class for JSON that is no notebook
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidInputError(f"{notebook} cannot be read as a notebook: {said[0][:300]}") from error
    return found


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


def _place() -> str:
    """This process's machine and, if there is one, scheduler's job."""
    return f"{socket.gethostname()}/{os.environ.get(SCHEDULED, '')}"


def _die_with_driver(interval: float = 1.0) -> None:
    """Exit, kernel included, once the driver named in the environment is gone."""
    import psutil

    pid, _, place = os.environ.get(DRIVER, "").partition("@")
    if place != _place():
        return  # run by hand, or by a scheduler, which ends its jobs itself

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
    from snakemake.cli import main as snakemake

    config = Path(config).resolve()
    settings = read_config(config)
    os.chdir(PROJECT)
    digest = hashlib.sha256(config.read_bytes()).hexdigest()
    os.environ[BATCH] = json.dumps({"file": os.path.relpath(config), "sha256": digest})
    os.environ[DRIVER] = f"{os.getpid()}@{_place()}"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` in the Snakefile
    workspace = expanded(settings["workspace"])
    lock = workspace / "data" / ".batch.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        # This lock goes when its process does, so Snakemake's, which outlives a killed run, is not needed.
        with FileLock(lock, timeout=0), temporary_files(lock.with_suffix(".tmp")):
            try:
                snakemake([
                    "--snakefile", str(PROJECT / "workflow" / "Snakefile"), "--configfile", str(config),
                    "--resources", "machine=1", "--quiet", "rules", "--cores", "all", "--nolock",
                    "--rerun-incomplete", "--keep-going", *options,
                ])  # fmt: skip
            finally:  # it ends by SystemExit; where a notebook failed, the others' figures are there
                only = {option.removeprefix("only=") for option in options if option.startswith("only=")}
                models = [model for model in settings["models"] if not only or model in only]
                folders = [Workspace(model, workspace).figures for model in models]
                for folder in filter(Path.is_dir, folders):
                    gallery.assemble(folder)
                unwritten = write_reports(filter(Path.is_dir, folders))
    except Timeout as error:
        raise BatchError(f"Another batch runs in {lock.parent}. Wait for it to end, or stop it.") from error
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else 1) or unwritten
    return unwritten


def read_config(config: Path) -> dict:
    """Settings of a batch, with each model's name and dtype.

    Model slugs become names of folders and of Snakemake's wildcards, and the workspace part of its patterns.

    Raises:
        InvalidInputError: the config is missing, or not what the Snakefile reads.
    """
    settings = {"workspace": "."} | read_yaml(config, "config")
    models, given = settings.get("models"), settings.get("parameters")
    if not isinstance(models, dict) or not models:
        raise InvalidInputError(f"The config {config} names no models. See config/offline.yaml for what it must hold.")
    for slug, model in models.items():
        if not isinstance(slug, str) or not SLUG.fullmatch(slug):
            raise InvalidInputError(
                f"The config {config} calls a model {slug!r}: expected letters, digits, dots, dashes and underscores, "
                "since its folders are named so."
            )
        if not isinstance(model, dict) or not all(isinstance(model.get(name), str) for name in ("name", "dtype")):
            raise InvalidInputError(f"The config {config}, model {slug}: expected a name and a dtype.")
    for parameters in (given, *(model.get("parameters") for model in models.values())):
        by_notebook = parameters if isinstance(parameters, dict) else {}
        if not all(isinstance(of, dict | None) for of in (parameters, *by_notebook.values())):
            raise InvalidInputError(f"The config {config}: expected parameters by notebook, each by its name.")
    workspace = settings["workspace"]
    if not isinstance(workspace, str) or not workspace or UNUSABLE.search(workspace):
        raise InvalidInputError(
            f"The config {config} has the workspace {workspace!r}: expected a folder, without braces, quotes or line "
            "ends in its name, which Snakemake's patterns cannot hold."
        )
    return settings


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
    print(f"{what}: {'done' if status == 0 else 'failed'} after {minutes} min {seconds} s{_memory()}", flush=True)
    return status


def _memory() -> str:
    """Peak memory of the largest process that ran, in words; else empty."""
    peak = peak_resident(children=True)
    return f", at most {peak / 2**30:.1f} GiB in one process" if peak else ""


if __name__ == "__main__":
    sys.exit(main())
