"""The batch: what runs again and what does not, and that a failure or a kill loses nothing."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from chaos.main_job import LEFT
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from tiny import PROJECT

from eelib.errors import BatchError, DiskFullError, InvalidInputError
from workflow import batch

NOTEBOOKS = (
    "00_quickstart", "01_train_heads", "02_confidence", "03_calibration", "04_speed_accuracy", "05_acceptance",
    "12_explorer",
)  # fmt: skip
FULL = ("06_heads", "07_robustness", "08_layerskip_training", "09_baselines", "10_popular_claims", "13_batches")
TRAINING = [  # what the Snakefile expects of 01
    "data/corpora/tiny/corpus.json",
    *(f"data/corpora/tiny/{split}.parquet" for split in ("train", "calibration", "test")),
    *(f"data/heads/tiny/{file}" for file in ("model.safetensors", "config.json", "README.md")),
    "data/results/tiny/training.parquet",
    *(f"figures/tiny/01_training.{kind}" for kind in ("md", "pdf", "png", "csv")),
]
MADE = "made\n\n<sub>here</sub>\n"  # what the tiny notebooks write: a note, so that there is a gallery
PARAMETERS = "model = ''\nslug = ''\ndtype = ''\nworkspace = ''\nseed = 0"


def write(path: Path, code: str, parameters: str = "seed = 0") -> Path:
    cells = [new_markdown_cell("# A title"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    notebook = new_notebook(cells=[*cells, new_code_cell(code)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


def save_with_output(path: Path) -> None:
    """What opening, running and saving a notebook changes, and a word of text too."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += ", reworded"
    notebook.cells[1].execution_count = 3
    notebook.cells[1].outputs = [new_output("stream", text="seen")]
    notebook.metadata["widgets"] = {}
    nbformat.write(notebook, path)


def test_code_hash_is_about_code_only(tmp_path):
    path = write(tmp_path / "a.ipynb", "1 + 1")
    before = batch.code_hash(path)
    save_with_output(path)
    assert batch.code_hash(path) == before
    assert batch.code_hash(write(path, "1 + 2")) != before


def test_unknown_parameter_lists_the_known(tmp_path):
    source = write(tmp_path / "a.ipynb", "", parameters="seed = 0\nepsilon = 0.9")
    with pytest.raises(InvalidInputError, match=r"a\.ipynb has no parameter epsilom\. Its parameters: epsilon, seed\."):
        batch.run_notebook(source, tmp_path / "out.ipynb", {"epsilom": 0.8, "seed": 1})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("content", [None, "no notebook", "[]", "{}"])
def test_file_that_is_no_notebook(tmp_path, content):
    source = tmp_path / "a.ipynb"
    if content is not None:
        source.write_text(content)
    with pytest.raises(InvalidInputError, match=r"a\.ipynb cannot be read as a notebook"):
        batch.run_notebook(source, tmp_path / "out.ipynb", {})


def test_failing_notebook_keeps_the_earlier_result(tmp_path, capsys):
    source = write(tmp_path / "a.ipynb", "print('seed is', seed)\nassert seed < 2, 'too large'")
    target = tmp_path / "runs" / "a.ipynb"
    batch.run_notebook(source, target, {"seed": 1})
    earlier = target.read_text()
    assert "seed is 1" in earlier and "[a] seed is 1" in capsys.readouterr().out

    with pytest.raises(
        BatchError, match=r"a\.ipynb failed in cell 4: AssertionError: too large(.|\n)*a\.failed\.ipynb"
    ):
        batch.run_notebook(source, target, {"seed": 2})
    assert target.read_text() == earlier
    assert "too large" in (target.parent / "a.failed.ipynb").read_text()
    assert not (target.parent / "a.part.ipynb").exists()


def test_config_that_is_none(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be read"):
        batch.paper(tmp_path / "missing.yaml", [])
    (tmp_path / "empty.yaml").write_text("seed: 0")
    with pytest.raises(InvalidInputError, match="names no models"):
        batch.paper(tmp_path / "empty.yaml", [])
    model = {"name": "a", "dtype": "float32"}
    for parameters in ("text", ["01_train_heads"], 3, {"01_train_heads": "text"}):
        for config in (
            {"models": {"a": model}, "parameters": parameters}, {"models": {"a": model | {"parameters": parameters}}}
        ):  # fmt: skip
            (tmp_path / "odd.yaml").write_text(yaml.safe_dump(config))
            with pytest.raises(InvalidInputError, match="expected parameters by notebook"):
                batch.paper(tmp_path / "odd.yaml", [])


@pytest.fixture
def project(tmp_path):
    """The project's batch with tiny notebooks; 01 writes what it must, and does what a file named DO says."""
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(PROJECT / "workflow", tmp_path / "workflow")
    for name in NOTEBOOKS + FULL:
        code = f"""\
from pathlib import Path
for file in map(Path, {[str(tmp_path / file) for file in TRAINING]}):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text({MADE!r})
if Path({str(tmp_path / "DO")!r}).exists():
    exec(Path({str(tmp_path / "DO")!r}).read_text())
"""
        write(tmp_path / "notebooks" / f"{name}.ipynb", code, PARAMETERS)
    (tmp_path / "config.yaml").write_text("models: {tiny: {name: tiny, dtype: float32}}")
    return tmp_path


COMMAND = [sys.executable, "-m", "workflow.batch", "paper", "--config", "config.yaml"]
ONE = "data/runs/tiny/01_train_heads.ipynb"


def run(project: Path, *options: str, **environment: str) -> tuple[int, str]:
    environment = os.environ | environment
    done = subprocess.run([*COMMAND, *options], cwd=project, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_round_trip(project):
    status, said = run(project, "--dry-run")
    assert status == 0 and all(f"notebook_{name} " in said for name in NOTEBOOKS)
    assert not any(name in said for name in FULL)
    status, said = run(project, "full", "--dry-run")
    assert status == 0 and all(f"notebook_{name} " in said for name in (*NOTEBOOKS, *FULL, "05_acceptance_full"))

    status, said = run(project, ONE)
    assert status == 0 and re.search(r"paper: done after 0 min \d+ s, at most 0\.\d GiB in one process", said), said
    gallery = (project / "figures" / "tiny" / "README.md").read_text()
    assert "## [01_train_heads](../../notebooks/01_train_heads.ipynb): A title" in gallery and "\nmade\n" in gallery
    save_with_output(project / "notebooks" / "01_train_heads.ipynb")
    status, said = run(project, ONE)
    assert status == 0 and "Nothing to be done" in said

    (project / "DO").write_text("file.write_text('half'); raise RuntimeError('asked to')")
    notebook = project / "notebooks" / "01_train_heads.ipynb"
    write(notebook, nbformat.read(notebook, 4).cells[2].source + "# edited", PARAMETERS)
    status, said = run(project, ONE)
    assert status == 1 and "RuntimeError: asked to" in said
    assert all((project / file).read_text() == MADE for file in TRAINING)  # earlier results are kept,
    (project / "DO").unlink()
    assert "01_train_heads: done" in run(project, ONE)[1]  # but do not count as done


@pytest.mark.parametrize(
    "group", [pytest.param(False, id="driver", marks=pytest.mark.slow), pytest.param(True, id="process group")]
)
def test_killed_run_leaves_nothing_and_the_next_carries_on(project, group, tmp_path_factory):
    (project / "DO").write_text("import time; print('sleeping', flush=True); time.sleep(60)")
    of_system = {"TMPDIR": str(tmp_path_factory.mktemp("of system"))}
    with open(project / "log", "w", encoding="utf-8") as log:
        driver = subprocess.Popen(
            [*COMMAND, ONE], cwd=project, stdout=log, stderr=log, start_new_session=True, env=os.environ | of_system
        )
    try:
        wait_for(lambda: "sleeping" in (project / "log").read_text())
        assert list((project / ONE).with_suffix(".tmp").glob("*.json")), "the kernel's connection file"
        workers = psutil.Process(driver.pid).children(recursive=True)
    finally:
        (os.killpg if group else os.kill)(driver.pid, signal.SIGKILL)
        driver.wait()
    wait_for(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers))
    (project / "DO").unlink()
    status, said = run(project, ONE, **of_system)
    assert status == 0 and "01_train_heads: done" in said
    assert not [left for pattern in LEFT for left in project.glob(pattern)]
    assert not os.listdir(of_system["TMPDIR"])


def test_temporary_files_go_and_what_stands_in_their_place_stays(tmp_path, monkeypatch):
    before, folder, kept = tempfile.gettempdir(), tmp_path / "a.tmp", tmp_path / "kept"
    folder.mkdir()
    (folder / "of a killed run").touch()
    with batch.temporary_files(folder):
        assert tempfile.gettempdir() == str(folder) and not os.listdir(folder)
        Path(tempfile.mkstemp()[1]).write_text("more")
    assert tempfile.gettempdir() == before and not folder.exists()
    kept.mkdir()
    (kept / "file").touch()
    folder.symlink_to(kept)
    with pytest.raises(BatchError, match="Move away what stands there"), batch.temporary_files(folder):
        pass
    assert (kept / "file").exists() and folder.is_symlink()
    folder.unlink()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DiskFullError), batch.temporary_files(folder):
        pass


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def planned(folder: Path, config: dict, *options: str) -> subprocess.CompletedProcess:
    """What a batch would run: a dry run that prints commands."""
    (folder / "config.yaml").write_text(yaml.safe_dump({"workspace": str(folder), **config}), encoding="utf-8")
    command = [sys.executable, "-m", "workflow.batch", "paper", "--config", str(folder / "config.yaml")]
    return subprocess.run(
        [*command, "--dry-run", "--printshellcmds", "--quiet", "progress", *options],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )


TWO = {
    "models": {
        "a": {"name": "a", "dtype": "float32"},
        "b": {"name": "b", "dtype": "float32", "parameters": {"01_train_heads": {"changes": {"heads": {"depths": 2}}}}},
    },
    "parameters": {"01_train_heads": {"changes": {"heads": {"depths": 3}}, "recipe": "../config/reference_heads.yaml"}},
}


def test_parameters_of_one_model_go_before_those_of_all(tmp_path):
    for model, depths in (("a", 3), ("b", 2)):
        done = planned(tmp_path, TWO, "-C", f"only={model}")
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        (given,) = {line for line in said.splitlines() if "workflow.batch run notebooks/01_train_heads.ipynb" in line}
        assert f'"depths": {depths}' in given and "reference_heads.yaml" in given
        assert f"runs/{'b' if model == 'a' else 'a'}/" not in said


def test_a_batch_of_one_model_leaves_the_others_galleries_alone(tmp_path):
    for model in "ab":
        (tmp_path / "figures" / model).mkdir(parents=True)
        (tmp_path / "figures" / model / "01_training.md").write_text(MADE, encoding="utf-8")
    assert planned(tmp_path, TWO, "-C", "only=a").returncode == 0
    assert [(tmp_path / "figures" / model / "README.md").exists() for model in "ab"] == [True, False]


def test_a_notebook_that_runs_in_the_short_batch_too(tmp_path):
    done = planned(tmp_path, TWO | {"also": ["10_popular_claims"]})
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "run notebooks/10_popular_claims.ipynb" in said, said
    assert "run notebooks/06_heads.ipynb" not in said


def test_configs_that_cannot_be_meant(tmp_path):
    for changes, options, message in [
        ({}, ["-C", "only=c"], "no model c; there are a, b"),
        ({"parameters": {"01_train": {}}}, [], "unknown notebooks ['01_train']"),
        ({"also": ["10_claims"]}, [], "expected a list of 06_heads"),
        ({"also": "10_popular_claims"}, [], "expected a list of 06_heads"),
        (
            {"models": TWO["models"] | {"a": TWO["models"]["a"] | {
                "parameters": {"01_train_heads": {"recipe": "../config/heads.yaml"}}
            }}}, [], "expected all or none",
        ),
    ]:  # fmt: skip
        done = planned(tmp_path, TWO | changes, *options)
        assert done.returncode != 0 and message in done.stdout + done.stderr


def test_a_target_that_another_run_is_making(tmp_path, monkeypatch):
    """Is refused in words, though a timeout is an OSError as a full disk is."""
    source, target = write(tmp_path / "a.ipynb", ""), tmp_path / "runs" / "a.ipynb"
    target.parent.mkdir()
    monkeypatch.setattr(batch, "PATIENCE", 0.1)
    with FileLock(target.with_suffix(".lock")), pytest.raises(BatchError, match="Another run is making"):
        batch.run_notebook(source, target, {})


def test_a_scheduled_job_takes_what_an_earlier_one_makes_meanwhile(tmp_path, monkeypatch, capsys):
    """Both run where a driver was killed and started again: its jobs are Slurm's, and go on."""
    monkeypatch.setenv(batch.SCHEDULED, "7")
    monkeypatch.setattr(batch, "PATIENCE", 0.1)
    source, earlier, target = write(tmp_path / "a.ipynb", ""), tmp_path / "b" / "a.ipynb", tmp_path / "runs" / "a.ipynb"
    batch.run_notebook(source, earlier, {"seed": 1})
    target.parent.mkdir()
    with FileLock(target.with_suffix(".lock")):
        later = threading.Thread(target=batch.run_notebook, args=(source, target, {"seed": 1}))
        later.start()
        later.join(1)
        assert later.is_alive(), "waits for longer than others"
        made = earlier.rename(target).read_text()
    later.join()
    assert "[a] made by another job meanwhile" in capsys.readouterr().out and target.read_text() == made
    assert not batch._is_of(target, {"parameters": {"seed": 2}, "code": batch.code_hash(source)})
    assert not batch._is_of(target, {"parameters": {"seed": 1}, "code": "another"})


def test_only_jobs_of_a_driver_s_own_machine_end_with_it(monkeypatch):
    for job, watches in (("", 1), ("7", 0)):
        monkeypatch.setenv(batch.DRIVER, f"{os.getpid()}@{batch._place()}")
        monkeypatch.setenv(batch.SCHEDULED, job)
        before = threading.active_count()
        batch._die_with_driver()
        assert threading.active_count() - before == watches


def test_the_profile_of_slurm_asks_for_what_the_config_says(tmp_path):
    """Options in `slurm_extra` that the executor sets itself, such as --gres, make it refuse every job."""
    profile = yaml.safe_load((PROJECT / "config" / "slurm" / "config.yaml").read_text(encoding="utf-8"))
    assert profile.pop("executor") == "slurm"  # not installed with the rest
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    done = planned(tmp_path, TWO | {"gpu": 1, "mem_mb": 32000, "runtime": 720}, "--profile", str(tmp_path / "profile"))
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "slurm_extra" not in said, said
    asked = [line for line in said.splitlines() if "resources:" in line and "machine=" in line]
    for needed in ("gpu=1", "mem_mb=32000", "runtime=720", "machine=0"):
        assert len(asked) == 2 * len(NOTEBOOKS) and all(needed in line for line in asked), needed
