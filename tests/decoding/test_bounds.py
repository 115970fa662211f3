"""Denial of service: work and memory of a request are bounded by its length, whatever the heads are made to do."""

from copy import copy

import pytest
import torch
from tiny import N_BLOCKS, own_text, prompts, random_heads, tiny_model

import eelib
from eelib.decoding import Outcome
from eelib.decoding.frontier import Frontier

THRESHOLDS = (0.0, 0.0, 0.0)  # of max_prob: every head always exits, which is an attacker's best
MAX_DRAFTS = (1, 2, 3, 4, 8, 16)


def most_rejected(policy: eelib.Confidence, emitted: int) -> int:
    """The most drafts that are rejected while so many tokens are emitted, over all ways that rounds may go.

    The policy's own state is driven through every reachable one: an attacker decides how many drafts are accepted.
    """
    begin = policy.start(torch.zeros(1), (1, 3, 5))
    best = {repr(begin): (begin, 0)}
    by_tokens = [best] + [{} for _ in range(emitted)]
    for done in range(emitted):
        for state, rejected in by_tokens[done].values():
            drafted = min(policy.draft_limit(state), emitted - done - 1)  # the last token needs no draft
            for accepted in range(drafted + 1):
                after = copy(state)
                policy.observe(after, Outcome(drafted, accepted))
                reached = by_tokens[done + accepted + 1]
                total = rejected + drafted - accepted
                if repr(after) not in reached or reached[repr(after)][1] < total:
                    reached[repr(after)] = after, total
    return max(rejected for tokens in by_tokens for _, rejected in tokens.values())


@pytest.mark.parametrize("max_draft", MAX_DRAFTS)
def test_back_off_rejects_fewer_drafts_than_it_emits_tokens(max_draft):
    policy = eelib.Confidence("max_prob", THRESHOLDS, max_draft, price=0)  # a budget that is never spent
    for emitted in (1, 5, 17, 40):
        assert most_rejected(policy, emitted) < emitted
    eager = eelib.Confidence("max_prob", THRESHOLDS, max_draft, back_off=False)
    assert most_rejected(eager, 17) <= max_draft * 17


@pytest.mark.parametrize("length", [1, 7, 40])
@pytest.mark.parametrize("new", [1, 24, 60])
@pytest.mark.parametrize("max_draft", [1, 16])
def test_work_and_memory_are_bounded_by_the_length(monkeypatch, length, new, max_draft):
    """Blocks: prompt and twice the new tokens. Keys and values: prompt, new tokens and one round."""
    model, made, init = tiny_model("llama"), [], Frontier.__init__

    def remembered(self, *given, **kwargs):
        init(self, *given, **kwargs)
        made.append(self)

    monkeypatch.setattr(Frontier, "__init__", remembered)
    heads, (prompt,) = random_heads(model, scale=3.0), prompts(1, length)  # sure, and nearly always wrong
    policy = eelib.Confidence("max_prob", THRESHOLDS, max_draft)
    given = {"max_new_tokens": new, "eos_token_id": None}
    out = eelib.generate(model, prompt, heads=heads, policy=policy, do_sample=False, exact=False, **given)
    assert out.sequences.tolist() == own_text(model, prompt, **given).tolist()
    stats = out.stats
    assert stats.emitted == new and stats.drafted - stats.accepted < new
    assert len(stats.block_positions) == N_BLOCKS
    assert max(stats.block_positions) < length + 2 * new
    assert all(asked < 2 * new for asked in stats.head_positions.values())
    (kept,) = made
    for layer in kept.cache.layers:
        assert not layer.is_initialized or layer.keys.shape[2] <= length + new + max_draft
