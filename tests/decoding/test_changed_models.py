"""A model that changes between calls, is shared by threads, or is wrapped: its own text, or an error, never another."""

import copy
import pickle
import threading
from types import SimpleNamespace

import pytest
import torch
from tiny import prompts, random_heads, tiny_model
from torch import nn

import eelib
from eelib.backbone.segments import Backbone
from eelib.decoding.bitwise import RowExact
from eelib.errors import HeadsError, InvalidInputError, ModelError, UnsupportedError

POLICY, LENGTH = eelib.FixedExit(2, 3), {"max_new_tokens": 24, "eos_token_id": None}


def own(model, prompt, **options):
    return model.generate(prompt, do_sample=False, **{**LENGTH, **options})


def resized(model):
    model.resize_token_embeddings(120, mean_resizing=False)


def another_unembedding(model):
    torch.manual_seed(3)
    model.lm_head = nn.Linear(32, 97, bias=False, dtype=torch.float64)


def another_norm(model):
    model.model.norm = copy.deepcopy(model.model.norm)
    nn.init.uniform_(model.model.norm.weight, 0.5, 2.0)


def another_embedding(model):
    torch.manual_seed(4)
    model.model.embed_tokens = nn.Embedding(97, 32, dtype=torch.float64)


def another_rotary(model):
    model.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    model.model.rotary_emb.inv_freq.mul_(0.5)


def other_blocks(model):
    model.model.layers = nn.ModuleList(reversed(model.model.layers))


def another_decoder(model):
    model.model = tiny_model("llama", seed=9).model


def another_block(model):
    model.model.layers[1] = copy.deepcopy(tiny_model("llama", seed=9).model.layers[1])


def fewer_blocks(model):
    model.model.layers = model.model.layers[:4]
    model.config.num_hidden_layers = 4


def weights_in_place(model):
    model.lm_head.weight.data.mul_(-1)


@pytest.mark.parametrize(
    "change",
    [
        resized, another_unembedding, another_norm, another_embedding, another_rotary, other_blocks, another_decoder,
        another_block, fewer_blocks, weights_in_place,
    ],
)  # fmt: skip
def test_a_part_that_was_replaced_is_seen(change):
    model, asked = tiny_model("llama", seed=8), prompts(2)
    before = [eelib.generate(model, prompt, policy=POLICY, **LENGTH).sequences for prompt in asked]
    change(model)
    model.eval().requires_grad_(False)
    after = [own(model, prompt) for prompt in asked]
    assert not all(map(torch.equal, before, after)), "the change changes nothing"
    for prompt, text in zip(asked, after, strict=True):
        assert torch.equal(eelib.generate(model, prompt, policy=POLICY, **LENGTH).sequences, text)


def test_a_model_cut_without_its_config_is_refused_by_name():
    model = tiny_model("llama", seed=8)
    eelib.generate(model, prompts(1)[0], policy=POLICY, **LENGTH)
    del model.model.layers[4:]
    with pytest.raises(ModelError, match="6 blocks"):
        eelib.generate(model, prompts(1)[0], policy=POLICY, **LENGTH)


def test_heads_of_a_model_whose_parts_were_replaced_are_refused():
    model = tiny_model("llama", seed=8)
    heads = random_heads(model)
    another_norm(model)
    with pytest.raises(HeadsError, match="replaced since"):
        eelib.generate(model, prompts(1)[0], policy=POLICY, heads=heads, **LENGTH)


@pytest.mark.parametrize("write", [lambda w: w.mul_(1.5), lambda w: w.data.mul_(1.5)], ids=["counted", "uncounted"])
def test_thresholds_of_a_model_that_was_tuned_since_are_refused(write):
    model = tiny_model("llama", seed=8)
    heads = random_heads(model)
    calibration = eelib.calibrate(eelib.record_traces(model, heads, prompts(4, 20)), "entropy", 0.3)
    policy = eelib.Confidence.from_calibration(calibration)
    eelib.generate(model, prompts(1)[0], policy=policy, heads=heads, **LENGTH)
    write(model.model.layers[3].mlp.down_proj.weight)
    with pytest.raises(HeadsError, match="calibrate anew"):
        eelib.generate(model, prompts(1)[0], policy=policy, heads=heads, **LENGTH)


def test_exact_is_probed_anew_for_another_type_or_attention():
    model, prompt = tiny_model("llama", torch.bfloat16, seed=8), prompts(1)[0]

    def exact_text():
        try:
            return eelib.generate(model, prompt, policy=POLICY, exact=True, **LENGTH).sequences
        except UnsupportedError:  # by name, on a machine where not even single positions get the bits
            return own(model, prompt)

    assert torch.equal(exact_text(), own(model, prompt))
    probed = RowExact._known.get(Backbone.of(model), {}).copy()
    model.set_attn_implementation("eager")
    assert torch.equal(exact_text(), own(model, prompt))
    model.float()
    assert torch.equal(exact_text(), own(model, prompt))
    assert not probed or len(RowExact._known[Backbone.of(model)]) > len(probed)


@pytest.mark.parametrize("family", ["granite", *(pytest.param(f, marks=pytest.mark.slow) for f in ("llama", "gemma2"))])
def test_threads_share_a_model(family):
    model = tiny_model(family, seed=8)
    heads, asked, found, errors = random_heads(model), prompts(4), {}, []
    texts = [own(model, prompt) for prompt in asked]

    def decode(turn):
        try:
            for number, prompt in enumerate(asked):
                out = eelib.generate(model, prompt, policy=eelib.FixedExit(3, 3), heads=heads, **LENGTH)
                found[turn, number] = out.sequences
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=decode, args=(turn,)) for turn in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(found) == 20
    assert all(torch.equal(text, texts[number]) for (_, number), text in found.items())


def test_threads_probe_a_model_once():
    model, found = tiny_model("llama", seed=10), []
    threads = [threading.Thread(target=lambda: found.append(Backbone.of(model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(map(id, found))) == 1


def test_a_compiled_model_is_the_one_inside_and_stays_as_it_was():
    model, prompt = tiny_model("llama", seed=8), prompts(1)[0]
    text, modules = own(model, prompt), dict(model.named_modules())
    compiled = torch.compile(model, backend="eager")
    assert Backbone.of(compiled) is Backbone.of(model)
    heads = random_heads(compiled)
    assert torch.equal(eelib.generate(compiled, prompt, policy=POLICY, **LENGTH).sequences, text)
    assert torch.equal(
        eelib.generate(model, prompt, policy=eelib.FixedExit(3, 3), heads=heads, **LENGTH).sequences, text
    )
    assert dict(model.named_modules()) == modules and torch.equal(own(model, prompt), text)
    model.compile(backend="eager")  # in place
    assert torch.equal(eelib.generate(model, prompt, policy=POLICY, **LENGTH).sequences, text)


def test_wrappers_are_seen_through_and_other_things_refused():
    model = tiny_model("llama", seed=8)
    peft = SimpleNamespace(get_base_model=lambda: model)  # what PeftModel has; it is no dependency
    assert Backbone.of(peft) is Backbone.of(nn.DataParallel(model)) is Backbone.of(model)
    for other in (None, nn.Linear(2, 2), "smollm2-135m"):
        with pytest.raises(ModelError, match="expected a causal language model"):
            eelib.generate(other, [1, 2], policy=POLICY)


def test_an_adapter_that_is_switched_off_changes_the_fingerprint():
    """By what PEFT's layers say of themselves."""
    model = tiny_model("llama", seed=8)
    plain = Backbone.of(model).fingerprint()
    layer = model.model.layers[0].mlp
    layer.active_adapters, layer.disable_adapters = ["default"], False
    switched_on = Backbone.of(model).fingerprint()
    layer.disable_adapters = True
    assert switched_on != plain == Backbone.of(model).fingerprint()


def test_heads_are_copied_without_their_model(tmp_path):
    model = tiny_model("llama", seed=8)
    heads = random_heads(model)
    copied = copy.deepcopy(heads)
    assert copied.backbone is heads.backbone and copied.fingerprint() == heads.fingerprint()
    next(copied.maps["1"].parameters()).add_(1)
    assert copied.fingerprint() != heads.fingerprint()
    out = eelib.generate(model, prompts(1)[0], policy=eelib.FixedExit(3, 3), heads=copied, **LENGTH)
    assert torch.equal(out.sequences, own(model, prompts(1)[0]))
    for write in (pickle.dumps, lambda it: torch.save(it, tmp_path / "heads.pt")):
        with pytest.raises(HeadsError, match="save_pretrained"):
            write(heads)


def test_heads_know_their_checkpoint_in_float16(tmp_path):
    """Values round twice on the way from float32 by float16 to bfloat16; another checkpoint is still refused."""
    model = tiny_model("llama", torch.float32, seed=8)
    heads = random_heads(copy.deepcopy(model).bfloat16())
    heads.save_pretrained(tmp_path / "heads")
    half = copy.deepcopy(model).half()
    loaded = eelib.ExitHeads.from_pretrained(tmp_path / "heads", half)
    assert loaded.fingerprint() == heads.fingerprint() and loaded.backbone.fingerprint() == heads.backbone.fingerprint()
    assert eelib.ExitHeads.from_pretrained(tmp_path / "heads", model).fingerprint() == heads.fingerprint()
    with pytest.raises(HeadsError, match="another backbone"):
        eelib.ExitHeads.from_pretrained(tmp_path / "heads", tiny_model("llama", torch.float16, seed=9))


def test_dropout_is_told_to_be_switched_off():
    model = tiny_model("gpt2", seed=8)
    model.train()
    with pytest.raises(InvalidInputError, match=r"model\.eval\(\)"):
        eelib.generate(model, prompts(1)[0], policy=POLICY, **LENGTH)
    with pytest.raises(InvalidInputError, match=r"model\.eval\(\)"):
        eelib.record_traces(model, random_heads(model), prompts(1))
    for family in ("llama", "gpt_neox"):  # without dropout, but in a classifier, there is nothing to switch off
        still = tiny_model(family, seed=8).train()
        out = eelib.generate(still, prompts(1)[0], policy=POLICY, **LENGTH)
        assert torch.equal(out.sequences, own(still, prompts(1)[0]))
