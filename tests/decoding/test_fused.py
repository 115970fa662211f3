"""Heads that also read what the unembedding read one position back: lossless, and given what they should be given."""

import pytest
import torch
from tiny import own_text, prompts, random_heads

import eelib
from eelib.backbone.segments import Backbone
from eelib.errors import HeadsError, UnsupportedError

POLICIES = [
    eelib.Never(),
    eelib.FixedExit(1, 1),
    eelib.FixedExit(3, 4),
    eelib.Confidence("max_prob", (0.1, 0.1, 0.1), max_draft=5, back_off=False),
    eelib.Confidence("max_prob", (0.1, None, 0.05), max_draft=4, lookup=eelib.Lookup(6, record=0.3)),
]


@pytest.fixture(scope="module")
def fused(model):
    return random_heads(model, scale=0.05, kind="fused")


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_output_is_the_models_own(model, fused, policy):
    for prompt in prompts(3):
        for kwargs in ({}, {"repetition_penalty": 1.4}):
            out = eelib.generate(model, prompt, heads=fused, policy=policy, max_new_tokens=40, **kwargs)
            assert torch.equal(out.sequences, own_text(model, prompt, max_new_tokens=40, **kwargs))
            assert out.stats.drafted > 0 or policy == eelib.Never()


def test_the_first_draft_reads_the_models_state_the_next_ones_the_heads_guess(model, fused, monkeypatch):
    given, final_of = [], eelib.ExitHeads.final

    def final(heads, depth, hidden, previous=None):
        guess = final_of(heads, depth, hidden, previous)
        given.append((hidden, previous, guess))
        return guess

    monkeypatch.setattr(eelib.ExitHeads, "final", final)
    out = eelib.generate(model, prompts(1)[0], heads=fused, policy=eelib.FixedExit(3, 3), max_new_tokens=30)
    backbone, trace = Backbone.of(model), out.trace[out.trace.drafted]
    whole = backbone.normalise(backbone.states(out.sequences, [6])[6])[0]
    assert len(given) == len(trace) and trace.accepted.any()
    guess, seen = None, 0
    for (_, previous, made), row in zip(given, trace.itertuples(), strict=True):
        first = trace[trace["round"] == row.round].position.min()
        if row.position == first:
            torch.testing.assert_close(previous[0], whole[row.position - 2], rtol=0, atol=1e-4)
            seen += 1
        else:
            assert torch.equal(previous, guess)
        guess = made
    assert 1 < seen < len(trace)


def test_masked_prompts(model, fused):
    prompt = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompts(1)[0]], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 7])
    for policy in POLICIES[2:]:
        out = eelib.generate(model, prompt, heads=fused, policy=policy, attention_mask=mask, max_new_tokens=20)
        assert torch.equal(out.sequences, own_text(model, prompt, attention_mask=mask, max_new_tokens=20))


def test_without_the_models_state_they_are_refused_by_name(model, fused):
    with pytest.raises(UnsupportedError, match="verify=False with heads of kind 'fused'"):
        eelib.generate(model, prompts(1)[0], heads=fused, policy=POLICIES[1], verify=False)
    with pytest.raises(HeadsError, match="one position back"):
        fused.logits(1, torch.zeros(1, 32, dtype=model.dtype))


def test_exact_in_bfloat16():
    from tiny import tiny_model

    model = tiny_model("llama", torch.bfloat16)
    heads = random_heads(model, scale=0.05, kind="fused")
    for prompt in prompts(2):
        own = own_text(model, prompt, max_new_tokens=30)
        for policy in POLICIES[1:]:
            out = eelib.generate(model, prompt, heads=heads, policy=policy, exact=True, max_new_tokens=30)
            assert torch.equal(out.sequences, own)
