"""Heads of a model whose blocks are spread over processes (FSDP), over gloo on a CPU."""

import os
import subprocess
import sys

import pytest
import torch
from tiny import PROJECT, tiny_model

import eelib

TRAIN = """
import sys, torch, torch.distributed as dist
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
sys.path[:0] = ["tests", "."]
import eelib
from heads.test_sharded import CONFIG, heads_of, texts
from tiny import tiny_model

state = PartialState(cpu=True)
assert state.num_processes == 2
model = tiny_model("llama", torch.float64)
mesh = init_device_mesh("cpu", (state.num_processes,))
for block in model.model.layers:
    fully_shard(block, mesh=mesh, reshard_after_forward=True)
weight = model.model.layers[0].mlp.up_proj.weight
assert weight.to_local().numel() < weight.numel(), "nothing is spread"
heads = heads_of(model)
eelib.train_heads(model, heads, texts(), CONFIG)
whole = fully_shard(tiny_model("llama", torch.float64), mesh=mesh)
try:
    heads_of(whole)
except eelib.errors.InvalidInputError as refusal:
    assert "on each of its blocks" in str(refusal)
else:
    raise AssertionError("a model that is spread as a whole was not refused")
if state.is_main_process:
    torch.save(heads.state_dict(), sys.argv[1])
dist.destroy_process_group()
"""
CONFIG = eelib.TrainConfig(epochs=1, batch_size=4, shuffle_buffer=4, log_every=1)
"""The last step has one text, so one process has none."""


def texts() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(5, 90, (length,), generator=draw) for length in (24, 30, 12, 18, 24, 9, 31, 20, 15)]


def heads_of(model) -> eelib.ExitHeads:
    return eelib.ExitHeads.init(model, [2, 4], "affine")


@pytest.mark.slow
def test_heads_of_a_sharded_model_are_those_of_a_whole_one(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [*command, str(tmp_path / "train.py"), str(tmp_path / "heads.pt")],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    whole = tiny_model("llama", torch.float64)
    expected = heads_of(whole)
    eelib.train_heads(whole, expected, texts(), CONFIG)
    found = torch.load(tmp_path / "heads.pt", weights_only=True)
    assert found.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
