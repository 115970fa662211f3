"""Interrupted in a kernel, as JupyterLab's stop button does: it stays usable, the model is as before, work is kept."""

import time
from collections.abc import Iterator

import pytest
from tiny import PROJECT

pytestmark = pytest.mark.slow

BEGIN = """
import pathlib, torch, eelib
torch.set_num_threads(2)
model, tokenizer = eelib.load_model({name!r}, dtype="float32")
heads = eelib.ExitHeads.init(model, [6, 18], "affine")
prompt = tokenizer("Once upon a time", return_tensors="pt").input_ids
of_corpus = eelib.CorpusConfig(documents=60, length=64, batch_size=6, prompt_length=8)
of_training = eelib.TrainConfig(epochs=1, batch_size=2, shuffle_buffer=2, checkpoint_every=1)
texts = [torch.randint(5, 900, (48,), generator=torch.Generator().manual_seed(n)) for n in range(80)]

def writing(folder):
    corpus = eelib.load_corpus(of_corpus, model, tokenizer, scratch=folder)
    return torch.cat([*corpus.train, *corpus.calibration, *corpus.test]).tolist()

def training(folder):
    made = eelib.ExitHeads.init(model, [6], "affine")
    folder.mkdir(exist_ok=True)
    eelib.train_heads(model, made, texts, of_training, checkpoint=folder / "training.safetensors")
    return made.fingerprint()

def generation(folder, tokens=160):
    return eelib.generate(
        model, prompt, heads=heads, policy=eelib.Confidence("max_prob", (0.9, 0.3)), max_new_tokens=tokens
    ).sequences.tolist()

def state():
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    grads = sum(p.requires_grad for p in model.parameters())
    return generation(None, 16), hooks, grads, model.training, [p.double().sum().item() for p in model.parameters()]

before = state()
"""


class Kernel:
    """A kernel of JupyterLab's own kind, spoken to as it does."""

    def __init__(self, folder):
        from jupyter_client.manager import KernelManager

        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str, interrupt_after: float | None = None) -> str:
        """What a cell ends with: its last line's text, or the name of its error."""
        asked, said = self.client.execute(code), ""
        if interrupt_after is not None:
            while self.client.get_iopub_msg(timeout=60)["content"].get("execution_state") != "busy":
                pass
            time.sleep(interrupt_after)
            self.manager.interrupt_kernel()
        while True:
            message = self.client.get_iopub_msg(timeout=600)
            if message["parent_header"].get("msg_id") != asked:
                continue
            if message["msg_type"] == "execute_result":
                said = message["content"]["data"]["text/plain"]
            if message["msg_type"] == "error":
                said = message["content"]["ename"] + " " + message["content"]["evalue"]
            if message["content"].get("execution_state") == "idle":
                return said

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Iterator[Kernel]:
    found = Kernel(tmp_path_factory.mktemp("kernel"))
    try:
        path = f"import sys; sys.path.insert(0, {str(PROJECT)!r})"
        assert found.run(path) == ""
        assert found.run(BEGIN.format(name=str(PROJECT / "data" / "models" / "smollm2-135m"))) == ""
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("work", ["writing", "training", "generation"])
def test_an_interrupted_cell_leaves_the_kernel_usable_and_its_work_kept(kernel, tmp_path, work):
    calm, stopped = f"pathlib.Path({str(tmp_path / 'calm')!r})", f"pathlib.Path({str(tmp_path / 'stopped')!r})"
    started = time.monotonic()
    assert kernel.run(f"expected = {work}({calm})") == ""
    whole = time.monotonic() - started
    interrupts, said = 0, ""
    for share in (0.4, 0.3, 0.3):
        said = kernel.run(f"found = {work}({stopped}); 'ended'", interrupt_after=share * whole)
        assert kernel.run("state() == before") == "True", "the model is not as before"
        if said == "'ended'":  # what was resumed had less to do
            break
        assert said.startswith("KeyboardInterrupt"), said
        assert work == "generation" or list((tmp_path / "stopped").iterdir()), "no work was kept"
        interrupts += 1
    assert interrupts
    assert said == "'ended'" or kernel.run(f"found = {work}({stopped}); 'ended'") == "'ended'"
    assert kernel.run("found == expected") == "True"
    assert not list(tmp_path.rglob(".eelib-*"))
