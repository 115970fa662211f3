"""Two at once in one workspace: one after the other, or refused in words; results are those of one."""

import subprocess
import sys
import threading
import time

import pytest
import torch
from chaos.project import command, run_one, tiny_project
from safetensors.torch import save_file
from tiny import PROJECT, chatty, tiny_model

import eelib
from eelib.errors import HeadsError, InvalidInputError, TrainingError
from eelib.heads import TrainConfig, make_heads
from eelib.heads.recipe import Recipe
from eelib.workspace import atomic_write, read_tensors

RECIPE = Recipe(
    eelib.CorpusConfig(documents=60, length=40, batch_size=60, prompt_length=12), {"depths": [2, 4]},
    TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3),
)  # fmt: skip


@pytest.mark.slow
def test_a_second_batch_in_a_workspace_is_refused(tmp_path):
    """While the first runs; and then it finds everything done."""
    wait = "import time\nfrom pathlib import Path\nPath(workspace, 'begun').touch()\n"
    wait += "while not Path(workspace, 'go').exists():\n    time.sleep(0.05)\n"
    project, workspace = tiny_project(tmp_path / "project", wait), tmp_path / "w"
    config = tmp_path / "config.yaml"
    config.write_text(f"workspace: {workspace}\nmodels: {{tiny: {{name: a, dtype: float32}}}}\n", encoding="utf-8")
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        first = subprocess.Popen(command(config, workspace), cwd=project, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while not (workspace / "begun").exists():
            assert first.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.1)
        second = run_one(project, config, workspace)
        assert second.returncode == 1 and "Another batch runs in" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        (workspace / "go").touch()
        first.wait(60)


def test_a_second_process_that_makes_heads_in_a_workspace_is_refused(tmp_path):
    model, workspace = tiny_model("llama", torch.float32), eelib.Workspace("tiny", tmp_path)
    workspace.checkpoints.mkdir(parents=True)
    script = f"import filelock, sys\nwith filelock.FileLock({str(workspace.checkpoints / '.lock')!r}):\n"
    script += "    print('held', flush=True)\n    sys.stdin.read()\n"
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match="Another process makes heads in"):
            make_heads(RECIPE, model, chatty(), workspace)
        assert not workspace.heads.exists()
    finally:
        holder.kill()  # the lock goes with its process
        holder.communicate()
    assert make_heads(RECIPE, model, chatty(), workspace).heads.depths == (2, 4)


def test_threads_that_save_and_load_the_same_heads_meet_only_whole_ones(tmp_path):
    """Two kernels on one workspace: whoever reads finds the heads of one or of the other, or is told to read again."""
    model = tiny_model("llama", torch.float32)
    both = [eelib.ExitHeads.init(model, [2, 4], "affine", seed=seed) for seed in (1, 2)]
    for index, heads in enumerate(both):
        for parameter in heads.parameters():
            parameter.data.fill_(index + 0.5)
    both[0].save_pretrained(tmp_path)
    end, failed, refusals = time.monotonic() + 2, [], []

    def save(heads):
        while time.monotonic() < end:
            heads.save_pretrained(tmp_path)

    threads = [threading.Thread(target=save, args=(heads,)) for heads in both]
    for thread in threads:
        thread.start()
    read, known = 0, {heads.fingerprint() for heads in both}
    while time.monotonic() < end:
        try:
            found = eelib.ExitHeads.from_pretrained(tmp_path, model)
        except HeadsError as error:
            refusals.append(str(error))
            continue
        read += 1
        if found.fingerprint() not in known:
            failed.append(found)
    for thread in threads:
        thread.join()
    assert read and not failed
    assert not [refusal for refusal in refusals if "being written" not in refusal]
    assert not list(tmp_path.glob(".eelib-*"))


def test_tensors_that_are_replaced_while_they_are_read_are_of_one_file(tmp_path):
    """Without a digest too, where a header of one file and tensors of another would go unnoticed."""
    file, end, mixed, refusals, read = tmp_path / "a.safetensors", time.monotonic() + 1, [], [], 0

    def write(number: int) -> None:
        while time.monotonic() < end:
            with atomic_write(file) as temporary:
                save_file({"a": torch.full((9,), number)}, temporary, {"about": f'{{"number": {number}}}'})

    threads = [threading.Thread(target=write, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        try:
            tensors, about = read_tensors(file)
        except InvalidInputError as error:
            refusals.append(str(error))
            continue
        read += 1
        if tensors["a"].unique().tolist() != [about["number"]]:
            mixed.append(about)
    for thread in threads:
        thread.join()
    assert read and not mixed
    assert not [said for said in refusals if "being written" not in said and "no such file" not in said]


@pytest.mark.slow
def test_two_configs_on_one_model_keep_apart(tmp_path):
    """Two users, two workspaces, one model: the same recipe gives the same heads, whoever runs beside."""
    script = "import sys, torch, eelib\nsys.path.insert(0, 'tests')\nfrom chaos import test_two_at_once as here\n"
    script += "made = here.make_heads(here.RECIPE, here.tiny_model('llama', torch.float32), here.chatty(), "
    script += "eelib.Workspace(sys.argv[1], sys.argv[2]))\nprint(made.heads.fingerprint())"

    def begin(name: str) -> subprocess.Popen:
        command = [sys.executable, "-c", script, name, str(tmp_path)]
        return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)

    alone = begin("alone").communicate()[0].split()[-1]
    both = [begin(name) for name in ("a", "b")]
    assert {process.communicate()[0].split()[-1] for process in both} == {alone}
