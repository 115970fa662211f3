"""Packed products: the same bits unless a caller does without, and the same model before and after."""

import copy
import gc
import weakref

import pytest
import tiny
import torch
from torch import nn

import eelib
from eelib.backbone import packed, packing, products, unpack

HAS_KERNELS = bool(products.equal_rows([nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)]))


@pytest.fixture(autouse=True)
def packs_what_it_can(monkeypatch):
    """Layers this small gain nothing: pack them wherever the bits allow it, together before alone."""
    monkeypatch.setattr(products, "_quickest", {})
    monkeypatch.setattr(products, "quickest", lambda layers, ways, **kwargs: [*ways][-1])
    monkeypatch.setattr(products, "CACHED", 0)


@pytest.fixture
def model():
    return tiny.tiny_model("llama", torch.bfloat16, hidden_size=64, intermediate_size=96)


@pytest.fixture
def multiplied(monkeypatch):
    """Numbers of rows that went through packed products."""
    multiply, seen = products._multiply, []

    def watched(x, *args):
        seen.append(len(x.flatten(0, -2)))
        return multiply(x, *args)

    monkeypatch.setattr(products, "_multiply", watched)
    return seen


def logits(model, length=1):
    with torch.no_grad():
        return model(input_ids=torch.arange(length)[None]).logits


def classes(model):
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "qwen2"])
def test_every_number_of_rows_has_the_models_own_bits(family, dtype):
    model = tiny.tiny_model(family, dtype)
    own = [logits(model, n) for n in (1, 2, 5, 16, 31, 32, 33, 40)]
    with packed(model):
        found = [logits(model, n) for n in (1, 2, 5, 16, 31, 32, 33, 40)]
    assert all(torch.equal(a, b) for a, b in zip(own, found, strict=True))


def test_siblings_are_found(model):
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    widths = [[len(layer.weight) for layer in group] for group in packing.siblings(model, layers)]
    assert widths == [[64, 32, 32], [64], [96, 96], [64]] * len(model.model.layers) + [[tiny.VOCAB_SIZE]]


def test_a_shape_is_timed_among_the_ways_that_keep_the_bits(monkeypatch):
    monkeypatch.undo()
    layers = [nn.Linear(64, 64, bias=False, dtype=torch.bfloat16) for _ in range(2)]
    ways = {"plain": [], "alone": [layers[:1], layers[1:]]} if HAS_KERNELS else {"plain": []}
    assert products.quickest(layers, ways) in ways


def test_bits_are_given_up_only_for_much(monkeypatch):
    monkeypatch.undo()
    layers = [nn.Linear(64, 64, bias=False)]
    assert products.quickest(layers, {"plain": [], "alone": [layers]}, gain=1e6) == "plain"


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "qwen2"])
def test_float32_may_differ_by_rounding_where_the_caller_lets_it(family, multiplied):
    model = tiny.tiny_model(family, torch.float32)
    own = [logits(model, n) for n in (1, 5, 32, 33)]
    with packed(model, exact=False):
        multiplied.clear()
        found = [logits(model, n) for n in (1, 5, 32, 33)]
        assert set(multiplied) == {1, 5, 32}
    for a, b in zip(own, found, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(own[-1], found[-1])  # more rows are a prompt's, which keeps its bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_keep_their_bits(dtype):
    model = tiny.tiny_model("llama", dtype)
    own = [logits(model, n) for n in (1, 4, 16)]
    with packed(model, exact=False):
        assert all(torch.equal(logits(model, n), bits) for n, bits in zip((1, 4, 16), own, strict=True))


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_of_two_contexts_the_exact_one_prevails(order, multiplied):
    model = tiny.tiny_model("llama", torch.float32)
    own = [logits(model, n) for n in (1, 4, 16)]
    with packed(model, exact=order[0]):
        with packed(model, exact=order[1]):
            assert all(torch.equal(logits(model, n), bits) for n, bits in zip((1, 4, 16), own, strict=True))
        multiplied.clear()
        logits(model, 4)
        assert bool(multiplied) or order[0]  # the inner one has ended


def test_what_is_packed_for_rounding_serves_exact_contexts_too():
    model = tiny.tiny_model("llama", torch.float32)
    with packed(model, exact=False):
        pass
    kept = packing._Packing.of(model).products
    with packed(model):
        assert kept and packing._Packing.of(model).products is kept  # packing takes a second for a gigabyte
    with packed(model, exact=False):
        assert packing._Packing.of(model).products is kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocasting_is_torchs_own(dtype):
    model = tiny.tiny_model("llama", dtype)
    with torch.autocast("cpu", torch.bfloat16):
        own = logits(model, 4)
        with packed(model, exact=False):
            assert torch.equal(logits(model, 4), own)


def test_small_weights_keep_their_bits(monkeypatch, multiplied):
    monkeypatch.setattr(products, "CACHED", 2**18)
    model = tiny.tiny_model("llama", torch.float32)
    own = logits(model)
    with packed(model, exact=False):
        assert torch.equal(logits(model), own)


def test_decoding_in_float32_gives_up_bits_unless_it_is_exact(multiplied):
    model = tiny.tiny_model("llama", torch.float32)
    heads = eelib.ExitHeads.init(model, (1, 3), "mlp").requires_grad_(False)
    prompt, options = torch.arange(3, 9)[None], {"policy": eelib.FixedExit(3, 2), "max_new_tokens": 12}
    own = model.generate(prompt, max_new_tokens=12, do_sample=False)
    eelib.generate(model, prompt, heads=heads, do_sample=False, **options)
    assert multiplied
    with packed(model, exact=False):
        exact = eelib.generate(model, prompt, heads=heads, do_sample=False, exact=True, **options)
    assert exact.stats.exact and torch.equal(exact.sequences, own)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before_afterwards(model, fails):
    before, attributes, state = classes(model), [set(vars(m)) for m in model.modules()], model.state_dict()
    try:
        with packed(model), packed(model):  # one within the other
            assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
            assert (classes(model) == before) != HAS_KERNELS and isinstance(model.lm_head, nn.Linear)
            assert not fails or 1 / 0
    except ZeroDivisionError:
        pass
    assert classes(model) == before and [set(vars(m)) for m in model.modules()] == attributes


def in_place(model):
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)


def by_load_state_dict(model):
    model.load_state_dict({name: -value for name, value in model.state_dict().items()})


def behind_torchs_back(model):
    model.lm_head.weight.data += 1  # how adapters are merged


def by_another_parameter(model):
    model.lm_head.weight = nn.Parameter(-model.lm_head.weight.detach())


def by_another_layer(model):
    model.lm_head = nn.Linear(64, tiny.VOCAB_SIZE, bias=False, dtype=torch.bfloat16)


def by_type(model):
    model.to(torch.float64)


CHANGES = [in_place, by_load_state_dict, behind_torchs_back, by_another_parameter, by_another_layer, by_type]


@pytest.mark.parametrize("change", CHANGES)
def test_a_weight_that_changes_between_contexts_is_noticed(model, change):
    with packed(model):
        logits(model)
    change(model)
    own = logits(model)
    with packed(model):
        assert torch.equal(logits(model), own)


@pytest.mark.parametrize("change", [in_place, by_load_state_dict, by_another_parameter])
def test_a_weight_that_changes_within_a_context_is_noticed(model, change):
    with packed(model):
        logits(model)
        change(model)
        found = logits(model)
    assert torch.equal(found, logits(model))


def test_a_bias_that_changes_is_noticed():
    model = tiny.tiny_model("qwen2", torch.bfloat16)
    with packed(model):
        logits(model)
        with torch.no_grad():
            model.model.layers[0].self_attn.k_proj.bias.add_(1)
        found = logits(model)
    assert torch.equal(found, logits(model))


def test_chance_is_left_alone(model):
    torch.manual_seed(0)
    with packed(model.train()):
        found = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(found, torch.rand(3))


def test_a_model_that_is_dropped_is_freed():
    model = tiny.tiny_model("llama", torch.bfloat16)
    with packed(model):
        pass
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_copy_of_a_layer_reads_its_own_weight(model):
    with packed(model):
        other = copy.copy(model.lm_head)
        other._parameters = {**other._parameters, "weight": nn.Parameter(-model.lm_head.weight)}
        x = torch.ones(1, 64, dtype=torch.bfloat16)
        with torch.no_grad():
            assert torch.equal(other(x), -model.lm_head(x))


def test_gradients_pass(model):
    model.requires_grad_(True)
    with packed(model):
        model(input_ids=torch.arange(3)[None]).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_hooks_are_called(model):
    seen = []
    with packed(model):
        pass  # the look for siblings is over
    handle = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with packed(model):
        logits(model)
    handle.remove()
    assert len(seen) == 1


def test_decoding_packs_model_and_heads_and_leaves_both_as_they_were(model, monkeypatch):
    heads = eelib.ExitHeads.init(model, (1, 3), "mlp").to(torch.bfloat16).requires_grad_(False)
    before, prompt, during = classes(model) + classes(heads), torch.arange(3, 9)[None], []

    class Watching(eelib.FixedExit):
        def observe(self, state, outcome):
            during.append(classes(model) + classes(heads))

    def decode():
        return eelib.generate(model, prompt, heads=heads, policy=Watching(3, 2), max_new_tokens=12)

    packed_text = decode().sequences
    assert (during[0] != before) == HAS_KERNELS and classes(model) + classes(heads) == before
    monkeypatch.setattr(packing, "_available", lambda: False)
    assert torch.equal(packed_text, decode().sequences) and during[-1] == before


def test_too_little_memory_is_said_and_nothing_is_packed(model, monkeypatch, caplog):
    monkeypatch.setattr(packing.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1}))
    with packed(model):
        assert "PackedLinear" not in [c.__name__ for c in classes(model)]
    assert "too little memory" in caplog.text


def test_unpack_frees_what_was_kept(model):
    with packed(model):
        pass
    unpack(model)
    assert model not in packing._Packing.known
