"""Drafts from the text itself: found by hand, refused by hand, and lossless."""

import pytest
import torch
from tiny import own_text, prompts, random_heads

import eelib
from eelib.decoding import Outcome
from eelib.decoding.ngrams import NGrams
from eelib.errors import InvalidInputError


def test_the_longest_run_is_believed_and_goes_round_at_the_end_of_the_text():
    ngrams = NGrams((3, 2))
    ngrams.extend([1, 2, 3, 9, 5, 2, 3, 7, 1, 2, 3])
    assert ngrams.continuation(4) == (3, [9, 5, 2, 3])  # 1 2 3 stood at the beginning; 2 3 alone went on with 7
    ngrams.extend([9, 5])
    assert ngrams.continuation(2) == (3, [2, 3])
    looping = NGrams((2,))
    looping.extend([4, 5, 6, 4, 5])
    assert looping.continuation(7) == (2, [6, 4, 5, 6, 4, 5, 6])
    fresh = NGrams()
    fresh.extend([1, 2, 3, 4])
    assert fresh.continuation(3) == (0, [])


def test_records_are_kept_for_each_length_by_what_came_next():
    ngrams = NGrams((3, 2))
    ngrams.extend([1, 2, 3, 1, 2], judged=False)
    assert ngrams.records == {3: 0.5, 2: 0.5}
    ngrams.extend([3])  # 1 2 was there: right
    assert ngrams.records == {3: 0.5, 2: pytest.approx(0.5 + 0.15 * 0.5)}
    before = ngrams.records[3]
    ngrams.extend([8])  # 1 2 3 was there, followed by 1: wrong
    assert ngrams.records[3] == pytest.approx(before * 0.85)


def test_rounds_lengthen_while_all_is_accepted_and_a_poor_record_ends_them():
    policy, text = eelib.Lookup(8, record=0.4, sizes=(2,)), [4, 5, 6] * 4
    state = policy.start(torch.tensor([text]), ())
    lengths = []
    for accepted in (2, 4, 8, 3):
        looked_up = policy.look_up(state, torch.tensor([text]))
        lengths.append(len(looked_up))
        policy.observe(state, Outcome(len(looked_up), accepted))
        text += looked_up[:accepted]
    assert lengths == [2, 4, 8, 8] and len(policy.look_up(state, torch.tensor([text]))) == 3
    for token in range(10, 20):
        text += [token, 4, 5]
    assert policy.look_up(state, torch.tensor([text])) == (), "4 5 was followed by something else, time and again"
    for token in [1, 2] * 20:
        text.append(token)
    assert policy.look_up(state, torch.tensor([text])), "the record has recovered without a draft"


@pytest.mark.parametrize("wrong", [{"max_draft": 0}, {"record": 1.5}, {"sizes": ()}, {"sizes": (2, 0)}])
def test_bad_settings(wrong):
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        eelib.Lookup(**wrong)


@pytest.fixture(scope="module")
def looping(model):
    """A prompt that its own answer is much of: the model's text falls into repeats behind it."""
    prompt = prompts(1)[0]
    answer = own_text(model, prompt, max_new_tokens=40, eos_token_id=None)
    return torch.cat([answer, prompt], dim=1)


@pytest.mark.parametrize("draft", [eelib.Lookup(1), eelib.Lookup(8), eelib.Lookup(5, record=0.0, sizes=(3, 1))])
def test_output_is_the_models_own(model, looping, draft):
    heads = random_heads(model, scale=0.02)
    with_heads = eelib.Confidence("max_prob", (0.2, None, 0.2), max_draft=3, lookup=draft)
    for policy, given in ((draft, None), (with_heads, heads)):
        for kwargs in (
            {"max_new_tokens": 40},
            {"max_new_tokens": 7},
            {"max_new_tokens": 30, "repetition_penalty": 1.3},
        ):
            out = eelib.generate(model, looping, heads=given, policy=policy, **kwargs)
            assert torch.equal(out.sequences, own_text(model, looping, **kwargs))
            trace = out.trace
            assert out.stats.drafted == trace.drafted.sum() and set(trace.depth[trace.drafted]) <= {0, 1, 5}
    out = eelib.generate(model, looping, policy=draft, max_new_tokens=40, eos_token_id=None)
    assert (out.trace.depth == 0).any()
    assert out.stats.rounds == 39 - out.stats.accepted, "every round emits what it accepted and one of the model's own"
    passed = {looping.shape[1] + 39 + out.stats.drafted - out.stats.accepted}
    assert set(out.stats.block_positions) == passed, "no token passes a block twice"


def test_looked_up_tokens_are_not_drafted_without_verification(llama):
    out = eelib.generate(
        llama, prompts(1)[0], policy=eelib.Lookup(record=0.0, sizes=(1,)), verify=False, max_new_tokens=9
    )
    assert not (out.trace.depth == 0).any()
