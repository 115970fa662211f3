"""A real disk that fills up: one sentence, what was there stays whole, and after room is made it goes on."""

import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from chaos.project import notebook
from tiny import letters, prompts, random_heads, tiny_model

import eelib
from eelib import plotting
from eelib.backbone.teacher import Teacher
from eelib.errors import EelibError
from eelib.heads import TrainConfig
from eelib.workspace import read_note, read_table, write_note, write_table
from workflow.batch import run_notebook

SIZE = 2**22


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Iterator[Path]:
    """A file system of 4 MB, in memory."""
    folder = tmp_path_factory.mktemp("small")
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True)
        failure = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        failure = str(error)
    if failure:
        said = f"NOT TESTED, what happens on a full disk: no small file system can be mounted here ({failure})."
        warnings.warn(f"{said} Try it with `unshare -rm`.", stacklevel=1)
        pytest.skip(said)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(small) -> Path:
    """The small file system, empty."""
    for path in small.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return small


def fill(disk: Path, free: int) -> None:
    """Leave so many bytes."""
    with (disk / "filler").open("wb") as file:
        left = shutil.disk_usage(disk).free - free
        file.write(b"\0" * max(left, 0))


def files(disk: Path) -> dict[str, bytes]:
    return {
        path.relative_to(disk).as_posix(): path.read_bytes()
        for path in disk.rglob("*")
        if path.is_file() and path.name != "filler"
    }


LLAMA = tiny_model("llama", torch.float32)
TEXTS = [prompt[0] for prompt in prompts(6, 24)]


def heads(seed):
    return random_heads(LLAMA, seed=seed, kind="mlp")


def save_corpus(folder, seed):
    texts = [torch.randint(3, 97, (20_000,), generator=torch.Generator().manual_seed(seed + i)) for i in range(3)]
    splits = dict(zip(("train", "calibration", "test"), ([text] for text in texts), strict=True))
    masks = {name: [torch.ones(len(of[0]), dtype=torch.bool)] for name, of in splits.items()}
    eelib.Corpus(**splits, loss_mask=masks, written=3).save(folder / "corpus")


def save_figure(folder, seed):
    figure, (axes,) = plotting.panels(1)
    points = pd.DataFrame(np.random.default_rng(seed).random((5000, 2)), columns=["x", "y"])
    axes.plot(points.x, points.y)
    plotting.save_figure(figure, folder, "01_name", points, f"**{seed}**")


def save_table(folder, seed):
    write_table(folder / "t.parquet", pd.DataFrame(np.random.default_rng(seed).random((20_000, 2)), columns=["a", "b"]))


WRITERS = {
    "heads": (lambda f, seed: heads(seed).save_pretrained(f), lambda f: eelib.ExitHeads.from_pretrained(f, LLAMA)),
    "text": (save_corpus, lambda f: eelib.Corpus.load(f / "corpus")),
    "traces": (save_table, lambda f: read_table(f / "t.parquet", "a", "b")),
    "figure": (save_figure, lambda f: read_note(f / "01_name.md")),
    "note": (lambda f, seed: write_note(f / "n.md", f"{seed}" * 90_000, "here"), lambda f: read_note(f / "n.md")),
}  # fmt: skip


@pytest.mark.parametrize("free", [0, 4096, 30_000])
@pytest.mark.parametrize("name", WRITERS)
def test_no_room_for_an_artefact(disk, name, free):
    write, read = WRITERS[name]
    write(disk, 1)
    before = files(disk)
    fill(disk, free)
    with pytest.raises(EelibError) as error:
        write(disk, 2)
    said = str(error.value)
    assert re.search(rf"No room in {disk}\S* for \S+: it takes [\d,]+ bytes, [\d,]+ are free, [\d,]+ are missing", said)
    assert files(disk) == before, "what was there is not whole, or something is left"
    read(disk)
    (disk / "filler").unlink()
    write(disk, 2)
    assert files(disk).keys() == before.keys() and files(disk) != before
    read(disk)


def test_no_room_for_teacher_outputs(disk):
    teacher = Teacher(LLAMA, [2, 4], disk / "teacher")
    teacher.cache(TEXTS[:1])
    before = files(disk)
    fill(disk, 1000)
    with pytest.raises(EelibError, match=rf"{disk}.*GB are free"):
        teacher.cache(TEXTS)  # seen beforehand
    with pytest.raises(EelibError, match=rf"No room in {disk}.*are missing"):
        teacher.outputs(TEXTS)  # seen while they are written
    assert files(disk) == before
    (disk / "filler").unlink()
    teacher.cache(TEXTS)
    assert len(files(disk)) == len(TEXTS)


def test_no_room_for_a_checkpoint(disk, monkeypatch):
    """Training stops, and carries on from the last checkpoint to the same heads."""
    config = TrainConfig(epochs=2, batch_size=1, checkpoint_every=2, shuffle_buffer=1)

    def trained(checkpoint):
        some = eelib.ExitHeads.init(LLAMA, [2, 4], seed=3)
        eelib.train_heads(LLAMA, some, TEXTS, config, checkpoint=checkpoint)
        return some.fingerprint()

    save, expected = eelib.heads.training._Run.save, trained(None)

    def filling(run):
        if run.step == 6:
            fill(disk, 2000)
        save(run)

    monkeypatch.setattr(eelib.heads.training._Run, "save", filling)
    with pytest.raises(EelibError, match=rf"checkpoint of step 6 .*No room in {disk}.*are missing.*free disk space"):
        trained(disk / "c.safetensors")
    assert [*files(disk)] == ["c.safetensors"]
    (disk / "filler").unlink()
    monkeypatch.undo()
    assert trained(disk / "c.safetensors") == expected and not files(disk)


def test_no_room_for_generated_text(disk):
    config = eelib.CorpusConfig(documents=400, length=64, batch_size=100, temperatures=[1.0], prompt_length=16)
    fill(disk, 120_000)  # for one batch of four
    with pytest.raises(EelibError, match=rf"No room in {disk}.*are missing"):
        eelib.load_corpus(config, LLAMA, letters(), scratch=disk / "scratch")
    kept = files(disk)
    assert len(kept) in (1, 2, 3)
    (disk / "filler").unlink()
    found = eelib.load_corpus(config, LLAMA, letters(), scratch=disk / "scratch")
    assert files(disk).items() > kept.items() and found.written == 400


def test_no_room_for_an_executed_notebook(disk, tmp_path):
    source = notebook(tmp_path / "a.ipynb", "print('x' * seed)", parameters="seed = 0")
    run_notebook(source, disk / "runs" / "a.ipynb", {"seed": 10})
    before = files(disk)
    fill(disk, 100_000)
    with pytest.raises(EelibError, match=rf"No room in {disk}/runs for a\.ipynb"):
        run_notebook(source, disk / "runs" / "a.ipynb", {"seed": 500_000})
    assert files(disk) == before
    (disk / "filler").unlink()
    run_notebook(source, disk / "runs" / "a.ipynb", {"seed": 500_000})
    assert len(files(disk)["runs/a.ipynb"]) > 500_000


def test_what_killed_processes_left_goes_with_the_next_write(tmp_path):
    from eelib.workspace import writing

    writing._clear_abandoned.cache_clear()
    left = tmp_path / f".eelib-{writing._host()}-999999999-00000000.json"
    elsewhere = tmp_path / ".eelib-00000000-999999999-00000000.json"  # another machine's, which may be alive
    (tmp_path / f".eelib-{writing._host()}-999999999-11111111").mkdir()
    for file in (left, elsewhere):
        file.write_text("half")
    write_note(tmp_path / "n.md", "a", "b")
    assert {path.name for path in tmp_path.iterdir()} == {"n.md", elsewhere.name}
