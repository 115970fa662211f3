"""Positions that depend on how long the text is: equal below and, where they are steady again, beyond; else refused."""

import pytest
import torch
from tiny import prompts, random_heads, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import eelib
from eelib.backbone.segments import Backbone
from eelib.errors import UnsupportedError

POLICIES = (eelib.Never(), eelib.FixedExit(3, 3))


def longrope(limit=16):
    tables = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": limit, **tables}
    return tiny_model("llama", rope_parameters=rope, max_position_embeddings=64, original_max_position_embeddings=limit)


def dynamic(limit=16):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    return tiny_model("llama", rope_parameters=rope, max_position_embeddings=limit)


@pytest.mark.parametrize("make, beyond", [(longrope, True), (dynamic, False)], ids=["longrope", "dynamic"])
def test_texts_up_to_the_crossing_and_beyond(make, beyond):
    model = make()
    heads, lengths = random_heads(model), Backbone.of(model).lengths
    assert (lengths.same_up_to, lengths.same_beyond) == (16, beyond)

    def compare(length, new):
        (prompt,) = prompts(1, length)
        own = model.generate(prompt, do_sample=False, max_new_tokens=new, eos_token_id=None)
        for policy in POLICIES:
            options = {"heads": heads, "max_new_tokens": new, "eos_token_id": None}
            assert torch.equal(eelib.generate(model, prompt, policy=policy, **options).sequences, own)

    compare(9, 8)  # the last token is not read, so 16 positions are
    with pytest.raises(UnsupportedError, match="beyond 16"):
        compare(9, 9)
    if beyond:
        compare(17, 20)
    else:
        with pytest.raises(UnsupportedError, match="depend on the length"):
            compare(17, 2)
    compare(9, 8)  # what a longer text left behind in the model


@pytest.mark.parametrize("make", [longrope, dynamic])
def test_traces_do_not_depend_on_what_is_beside_them(make):
    model = make()
    heads, (short,), (long,) = random_heads(model), prompts(1, 12), prompts(1, 20, seed=1)
    alone = eelib.record_traces(model, heads, [short])
    with pytest.raises(UnsupportedError, match="batch_size=1"):
        eelib.record_traces(model, heads, [short[0], long[0]])
    beside = eelib.record_traces(model, heads, [short[0], long[0]], batch_size=1)
    assert beside[beside.sequence == 0].head_token.tolist() == alone.head_token.tolist()


def test_most_models_have_no_crossing(model):
    assert Backbone.of(model).lengths is None and Backbone.of(model).unmasked_window is None


def test_windows_that_the_masks_do_not_know():
    """Fuyu's cache forgets what left the window of its config, and its masks know of no window: beyond it, positions
    that share a call would see more than those alone do."""
    config = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    config |= {"vocab_size": 97, "initializer_range": 0.3, "max_position_embeddings": 256, "sliding_window": 6}
    torch.manual_seed(0)
    text = {"model_type": "persimmon", "num_key_value_heads": 4, **config}
    config = AutoConfig.for_model("fuyu", text_config=text, hidden_size=32, vocab_size=97, image_size=30, patch_size=10)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).double().eval().requires_grad_(False)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    (prompt,) = prompts(1, 3)
    own = model.generate(prompt, max_new_tokens=20, **options)
    assert torch.equal(eelib.generate(model, prompt, policy=eelib.Never(), max_new_tokens=20, **options).sequences, own)
    short = eelib.generate(model, prompt, policy=eelib.FixedExit(2, 3), max_new_tokens=4, **options).sequences
    assert torch.equal(short, own[:, :7])
    with pytest.raises(UnsupportedError, match="a window of 6"):
        eelib.generate(model, prompt, policy=eelib.FixedExit(2, 3), max_new_tokens=5, **options)


SIZES = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "head_dim": 8, "initializer_range": 0.3, "max_position_embeddings": 256,
}  # fmt: skip
EYES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
EYES |= {"image_size": 28, "patch_size": 14}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
TOKENS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
LARGE = {"depth": 4, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24}
SEEING = {
    "gemma3": {"text_config": SIZES, "vision_config": EYES, "mm_tokens_per_image": 4, "image_token_index": 90},
    "llava": {
        "text_config": {"model_type": "llama", **SIZES}, "vision_config": {"model_type": "clip_vision_model", **EYES},
        "image_token_index": 90,
    },
    "internvl": {
        "text_config": {"model_type": "qwen2", **SIZES}, "image_token_id": 90,
        "vision_config": EYES | {"image_size": [28, 28], "patch_size": [14, 14]},
    },
    "smolvlm": {"text_config": {"model_type": "llama", **SIZES}, "vision_config": EYES, "image_token_id": 90},
    "mistral3": {
        "text_config": {"model_type": "mistral", **SIZES}, "vision_config": {"model_type": "pixtral", **EYES},
        "image_token_index": 90,
    },
    "qwen2_5_vl": {
        "text_config": SIZES | {"rope_parameters": ROPE}, "vision_config": LARGE | {"fullatt_block_indexes": [1]},
        **TOKENS,
    },
    "qwen3_vl": {
        "text_config": SIZES | {"rope_parameters": ROPE}, **TOKENS,
        "vision_config": LARGE | {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
    },
}  # fmt: skip


@pytest.mark.parametrize("family", SEEING)
def test_models_that_see_decode_text(family):
    """With as many blocks for images as for text, and with arguments that transformers adds and nobody gave."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SEEING[family])
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float64).double().eval().requires_grad_(False)
    (prompt,) = prompts(1, 9)
    prompt = prompt.clamp(max=80)
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    own, heads = model.generate(prompt, **options), random_heads(model, (2,))
    for policy in (eelib.FixedExit(2, 3), eelib.Never()):
        assert torch.equal(eelib.generate(model, prompt, policy=policy, heads=heads, **options).sequences, own)
    by_callable = model.generate(prompt, custom_generate=eelib.custom_generate, policy=eelib.FixedExit(3, 3), **options)
    assert torch.equal(by_callable, own) and len(eelib.record_traces(model, heads, [prompt])) == 9
