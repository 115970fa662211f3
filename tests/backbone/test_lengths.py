"""Positions that depend on how long the text is: equal below and, where they are steady again, beyond; else refused."""

import pytest
import torch
from tiny import prompts, random_heads, tiny_model

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
    assert Backbone.of(model).lengths is None
