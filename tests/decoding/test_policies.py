"""Policies by themselves, and one that a user wrote."""

import random
from dataclasses import dataclass

import pytest
import torch
from tiny import N_BLOCKS, own_text, prompts, random_heads

import eelib
from eelib.decoding import Outcome, keep_policy, kept_policy
from eelib.errors import HeadsError, InvalidInputError


@pytest.mark.parametrize("arguments", [(0, 2), (2, 0), (True, 2), (1.5, 2)])
def test_fixed_exit_checks_its_numbers(arguments):
    with pytest.raises(InvalidInputError, match="positive whole number"):
        eelib.FixedExit(*arguments)


def test_schedule_falls_along_the_text():
    policy = eelib.baselines.SkipDecode(max_depth=6, min_depth=2, length=8)
    assert [policy.depth_of(t) for t in range(11)] == [6, 6, 5, 4, 4, 4, 3, 2, 2, 2, 2]  # halves go to the even side
    assert policy.exit_depths((1, 3)) == (2, 3, 4, 5, 6)
    with pytest.raises(InvalidInputError, match="more than max_depth"):
        eelib.baselines.SkipDecode(2, 4, 8)
    with pytest.raises(InvalidInputError, match="length=0"):
        eelib.baselines.SkipDecode(4, 2, 0)


def test_schedule_without_verification_leaves_each_token_at_its_depth(model):
    """At a depth without a head, the model's own norm and unembedding read the state."""
    policy, prompt = eelib.baselines.SkipDecode(N_BLOCKS, 2, 12), prompts(1)[0]
    for heads in (None, random_heads(model, depths=(3,))):
        out = eelib.generate(
            model, prompt, heads=heads, policy=policy, verify=False, max_new_tokens=16, eos_token_id=None
        )
        assert out.trace.depth.tolist()[1:] == [policy.depth_of(t) for t in range(1, 16)]
        asked = {d: out.trace.depth.tolist()[1:].count(d) for d in policy.exit_depths(()) if d < N_BLOCKS}
        assert out.stats.head_positions == asked, "no other head is run"
    lens = eelib.generate(model, prompt, policy=eelib.FixedExit(2, 1), verify=False, max_new_tokens=3)
    assert lens.stats.head_positions == {2: 2}


def test_a_schedule_deeper_than_the_model_is_refused(model):
    with pytest.raises(InvalidInputError, match="depths="):
        eelib.generate(model, prompts(1)[0], policy=eelib.baselines.SkipDecode(N_BLOCKS + 1, 2, 9), max_new_tokens=3)


def rounds(policy, verdicts):
    """(limit before each round) while `verdicts` gives how many of the drafts are accepted when drafting is allowed."""
    state, limits = policy.start(prompts(1)[0], (1,)), []
    for accepted in verdicts:
        limits.append(policy.draft_limit(state))
        drafted = limits[-1]
        policy.observe(state, Outcome(drafted, min(accepted, drafted)))
    return limits


def test_confidence_backs_off_and_comes_back():
    policy = eelib.Confidence("entropy", (-1.0,), max_draft=6)
    assert rounds(policy, [9] * 5) == [1, 2, 4, 6, 6]
    assert rounds(policy, [0] * 14) == [1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert rounds(policy, [9, 9, 3, 9, 0, 9, 9]) == [1, 2, 4, 3, 6, 1, 2]
    assert rounds(eelib.Confidence("entropy", (-1.0,), 6, back_off=False), [0, 9, 0]) == [6, 6, 6]


@pytest.mark.parametrize("depth", [0.05, 0.8])  # of the exits, as a share of the model
@pytest.mark.parametrize("price", [0, 0.07, 0.2, 1.5])
def test_drafting_in_vain_keeps_to_its_budget(price, depth):
    """30% of a pass, 2% of each round, and what the last round spends: whatever heads do, right or wrong."""
    policy, most = eelib.Confidence("entropy", (-1.0,), max_draft=4, price=price), 0.0
    for seed in range(40):
        draw = random.Random(seed)
        state, spent, sure, right = policy.start(prompts(1)[0], (1,)), 0.0, draw.random(), draw.random()
        for number in range(1, 120):
            limit = policy.draft_limit(state)
            drafted = next((n for n in range(limit) if draw.random() > sure), limit)
            accepted = next((n for n in range(drafted) if draw.random() > right), drafted)
            policy.observe(state, Outcome(drafted, accepted, depth * drafted, min(drafted + 1, limit)))
            spent += depth * drafted + price * min(drafted + 1, limit) - accepted
            assert spent <= 0.3 + 0.02 * number + 4 * (price + depth) + 0.005 * number  # rounded to hundredths
        most = max(most, spent)
    assert most > 0.3 or price + depth < 0.1, "some heads spend it all"


@pytest.mark.parametrize(("depth", "share"), [(0.1, 0.7), (0.6, 0.5), (0.9, 0.3)])
def test_right_drafts_are_worth_what_they_save(depth, share):
    """From an exit so deep that asking costs more than it saves, hardly any token is drafted, though each is right."""
    policy = eelib.Confidence("entropy", (-1.0,), max_draft=4, price=0.2)
    state, drafted, done = policy.start(prompts(1)[0], (1,)), 0, 0
    while done < 300:
        limit = policy.draft_limit(state)
        policy.observe(state, Outcome(limit, limit, depth * limit, limit))
        drafted, done = drafted + limit, done + limit + 1
    assert (drafted > share * done) if depth < 0.8 else (drafted < share * done), (drafted, done)


def test_heads_that_are_always_sure_and_always_wrong_cost_little(model):
    """Nearly every round of a text of 100 tokens is one pass of the full model over one position."""
    heads = random_heads(model, depths=(2,), scale=3.0)
    policy = eelib.Confidence("max_logit", (-1e9,))
    out = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=100, eos_token_id=None)
    assert torch.equal(out.sequences, own_text(model, prompts(1)[0], max_new_tokens=100, eos_token_id=None))
    assert out.stats.drafted - out.stats.accepted <= 10


@dataclass(frozen=True)
class Saturation(eelib.Policy):
    """CALM's hidden-state criterion: a token leaves once its state hardly turns any more from exit to exit."""

    threshold: float
    max_draft: int = 4

    def exit_depths(self, head_depths):
        return tuple(head_depths)

    def start(self, prompt, head_depths):
        return {"first": head_depths[0], "state": None}

    def draft_limit(self, state):
        return self.max_draft

    def exits(self, state, depth, logits, hidden, position):
        before, state["state"] = state["state"], hidden
        if depth == state["first"]:
            return False, float("nan")
        similarity = torch.cosine_similarity(hidden, before, dim=-1).item()
        return similarity >= self.threshold, similarity


def test_a_users_own_policy(model):
    heads = random_heads(model)
    for threshold in (-1.0, 0.5, 2.0):
        policy = Saturation(threshold)
        out = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=30)
        assert torch.equal(out.sequences, own_text(model, prompts(1)[0], max_new_tokens=30))
        assert (out.stats.drafted == 0) == (threshold > 1) and set(out.trace.depth) <= {3, 5, N_BLOCKS}


def test_thresholds_are_checked():
    for thresholds in ((float("nan"),), (True,)):
        with pytest.raises(InvalidInputError, match="thresholds="):
            eelib.Confidence("entropy", thresholds)
    with pytest.raises(InvalidInputError, match="max_draft"):
        eelib.Confidence("entropy", (0.5,), max_draft=0)
    with pytest.raises(HeadsError, match="Calibrated for depths"):
        eelib.Confidence("entropy", (0.5,), depths=(2,)).exit_depths((3,))


@pytest.mark.parametrize(
    "policy",
    [
        eelib.Never(),
        eelib.FixedExit(3, 2),
        eelib.Lookup(5, record=0.3, sizes=(3, 2)),
        eelib.Confidence("margin", (0.2, None, 0.3), 4, (1, 3, 5), back_off=False, lookup=eelib.Lookup(6)),
    ],
)
def test_a_policy_is_saved_with_its_heads_and_bound_to_them(model, tmp_path, policy):
    heads = random_heads(model)
    with pytest.raises(HeadsError, match="without a policy"):
        kept_policy(heads)
    keep_policy(heads, policy, speed_ratio=1.3)
    heads.save_pretrained(tmp_path)
    loaded = eelib.ExitHeads.from_pretrained(tmp_path, model)
    assert kept_policy(loaded) == policy and loaded.policy_record["measured"] == {"speed_ratio": 1.3}
    assert "Tuned policy" in (tmp_path / "README.md").read_text(encoding="utf-8")
    next(loaded.parameters()).data.add_(1)
    next(loaded.parameters()).add_(0)
    with pytest.raises(HeadsError, match="have changed"):
        kept_policy(loaded)


def test_a_policy_of_ones_own_is_not_saved(model):
    with pytest.raises(InvalidInputError, match="SkipDecode cannot be saved"):
        keep_policy(random_heads(model), eelib.baselines.SkipDecode(6, 2, 8))
