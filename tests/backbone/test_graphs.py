"""Block graphs: the same bits, without the block's Python, and never beyond what a replay can know."""

import gc
import weakref

import pytest
import tiny
import torch
from transformers import LogitsProcessor
from transformers.models.llama import modeling_llama

import eelib
from eelib.backbone import Backbone, graphs, packing, products

DRAFTS = tiny.Pattern((5, 1, 3, None, 1, 5, 3))


@pytest.fixture(autouse=True)
def recorded_at_once(monkeypatch):
    monkeypatch.setattr(graphs, "RECORD_AFTER", 0)


@pytest.fixture
def model():
    return tiny.tiny_model("llama")


def decoded(model, policy=DRAFTS, new=40, **options):
    prompt = tiny.prompts(1, length=9)[0]
    heads = None if policy == eelib.Never() else tiny.random_heads(model)
    return eelib.generate(model, prompt, heads=heads, policy=policy, max_new_tokens=new, **options).sequences


def own(model, new=40):
    return tiny.own_text(model, tiny.prompts(1, length=9)[0], max_new_tokens=new)


def replayed(model) -> set[int]:
    """Numbers of rows that every block replays."""
    blocks = graphs.Graphs._known[Backbone.of(model).blocks]._blocks
    return set.intersection(*[{n for (n, *_), graph in b._graphs.items() if graph is not None} for b in blocks])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_text_is_the_models_own(family, dtype):
    model = tiny.tiny_model(family, dtype)
    assert torch.equal(decoded(model, eelib.Never()), own(model))
    if dtype == torch.float64:
        assert torch.equal(decoded(model), own(model))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen2"])
def test_a_recorded_block_runs_no_python_of_its_own(family, monkeypatch):
    model, calls = tiny.tiny_model(family), []
    text = decoded(model, eelib.Never())
    block = type(Backbone.of(model).blocks[0])
    usual = block.forward

    def counting(self, hidden_states, *args, **kwargs):
        calls.append(hidden_states.shape[1])
        return usual(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(block, "forward", counting)
    assert torch.equal(decoded(model, eelib.Never()), text)
    assert set(calls) == {9}, "more than the prompt went through the blocks"


def test_packed_products_are_replayed_as_packed(monkeypatch):
    monkeypatch.setattr(products, "_quickest", {})
    monkeypatch.setattr(products, "quickest", lambda layers, ways: [*ways][-1])
    model = tiny.tiny_model("llama", torch.bfloat16, hidden_size=64, intermediate_size=96)
    text = decoded(model, eelib.Never())
    assert torch.equal(text, own(model))
    assert replayed(model) == {1}
    packing.unpack(model)
    assert torch.equal(decoded(model, eelib.Never()), text)


def test_changed_weights_are_noticed_before_the_next_token(model):
    class Meddling(LogitsProcessor):
        """Writes into a norm in the middle of a text."""

        def __call__(self, input_ids, scores):
            if input_ids.shape[1] == 25:
                with torch.no_grad():
                    model.model.layers[1].input_layernorm.weight.mul_(-3)
            return scores

    decoded(model)
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight.mul_(-2)
    assert torch.equal(decoded(model), own(model))
    before = own(model)
    meddled = decoded(model, eelib.Never(), logits_processor=[Meddling()])
    assert torch.equal(meddled[:, :25], before[:, :25])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["model.layers.1.input_layernorm.weight"] /= -3
    model.load_state_dict(state, assign=True)
    assert torch.equal(decoded(model), before)
    decoded(model.to(torch.float32))
    assert torch.equal(decoded(model.to(torch.float64)), own(model))


def test_hooks_settings_and_replaced_parts_are_noticed(model):
    text, seen = decoded(model), []
    hook = model.model.layers[3].mlp.register_forward_hook(lambda module, args, output: seen.append(1))
    assert torch.equal(decoded(model), text)
    assert len(seen) > 10
    hook.remove()
    model.model.layers[3].self_attn.scaling *= 4
    assert torch.equal(decoded(model), own(model))
    model.set_attn_implementation("eager")
    assert torch.equal(decoded(model), own(model))
    model.model.layers[2] = tiny.tiny_model("llama", seed=5).model.layers[2]
    assert torch.equal(decoded(model), own(model))


def signed(x):
    """Decides by values, position by position."""
    return torch.stack([row if row.sum() > 0 else -row for row in x.flatten(0, 1)]).view_as(x)


def test_code_of_others_runs_as_it_is(model):
    class Capped(modeling_llama.LlamaMLP):
        """Counts its calls."""

        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return signed(super().forward(x))

    model.model.layers[1].mlp.__class__ = Capped
    decoded(model)
    calls = Capped.calls
    assert torch.equal(decoded(model), own(model))
    assert Capped.calls > calls + 10


def test_a_block_that_decides_by_values_is_not_recorded(model, monkeypatch):
    usual = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: signed(usual(self, x)))
    assert torch.equal(decoded(model), own(model))
    assert replayed(model) == set()


def test_a_block_that_decides_by_length_is_compared_again(model, monkeypatch):
    """Beyond 32 positions its output changes sign, which no trace shows."""
    usual = modeling_llama.LlamaAttention.forward

    def forward(self, hidden_states, *args, past_key_values=None, **kwargs):
        kept = {}

        class Tapped:
            def update(self, keys, values, index, *rest):
                kept["seen"] = past_key_values.update(keys, values, index, *rest)
                return kept["seen"]

        found = usual(self, hidden_states, *args, past_key_values=past_key_values and Tapped(), **kwargs)
        length = kept["seen"][0].shape[2] if kept else hidden_states.shape[1]
        return (found[0] if length <= 32 else -found[0]), found[1]

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", forward)
    assert torch.equal(decoded(model), own(model))


def test_graphs_die_with_their_model():
    """Nothing of them is left; `torch.jit.trace` would keep each for ever, in a unit of all the process's functions."""
    model, kept = tiny.tiny_model("llama"), torch.jit._state._python_cu.get_functions
    before = len(kept())
    decoded(model)
    assert replayed(model) and len(kept()) == before
    gone = weakref.ref(model.model.layers[0])
    del model
    gc.collect()
    assert gone() is None
