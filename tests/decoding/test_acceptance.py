"""Sampled text has the model's own distribution, whatever the heads propose."""

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from tiny import after, prompts, random_heads, tiny_model
from transformers import LogitsProcessor, LogitsProcessorList

import eelib
from eelib.decoding.acceptance import Draft, Sampling
from eelib.errors import InvalidInputError

DRAWS = 400
UNLIKELY = 1e-5
"""A p-value below it is no accident. What a seed draws depends on the machine (torch has other generators where there
is no MKL), and there are more machines than a thousand."""


class Favour(LogitsProcessor):
    """Depends on the history: the last token and the length of the text push others up."""

    def __call__(self, input_ids, scores):
        scores[:, (input_ids[0, -1] * 7 + input_ids.shape[1]) % scores.shape[1]] += 2
        return scores


@pytest.fixture(scope="module")
def shallow():
    return tiny_model("llama", num_hidden_layers=2, initializer_range=0.1)


def distribution(model, prompt, n_tokens, **kwargs):
    """Probability of each continuation by `n_tokens` under the model's own `generate`, from its processed scores."""
    if n_tokens == 0:
        return {(): 1.0}
    given = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 1, "do_sample": True}  # no token is padding
    step = model.generate(prompt, output_scores=True, return_dict_in_generate=True, **given, **kwargs)
    probabilities = step.scores[0][0].double().softmax(-1)
    found = {}
    for token in probabilities.nonzero().flatten().tolist():
        longer = torch.cat([prompt, torch.tensor([[token]])], dim=1)
        for rest, p in distribution(model, longer, n_tokens - 1, **kwargs).items():
            found[token, *rest] = probabilities[token].item() * p
    return found


def chi_square(counts: Counter, expected: dict) -> float:
    """p-value; outcomes expected fewer than five times are taken together."""
    n = sum(counts.values())
    assert set(counts) <= {outcome for outcome, p in expected.items() if p > 0}
    often = [outcome for outcome, p in expected.items() if n * p >= 5]
    observed, due = [counts[o] for o in often], [n * expected[o] for o in often]
    if n - sum(due) > 1:
        observed, due = [*observed, n - sum(observed)], [*due, n - sum(due)]
    due = [d * n / sum(due) for d in due]
    return stats.chisquare(observed, due).pvalue


SETTINGS = {
    "top-k": {"top_k": 4, "temperature": 1.3},
    "top-p": {"top_k": 0, "top_p": 0.25},
    "min-p": {"top_k": 0, "min_p": 0.5, "temperature": 0.8},
    "history": {"top_k": 4, "repetition_penalty": 1.3, "logits_processor": LogitsProcessorList([Favour()])},
}


@pytest.mark.parametrize(
    ("name", "draws"),
    [
        *((name, DRAWS) for name in ("top-p", "history")),
        *(pytest.param(name, 6000, marks=pytest.mark.slow) for name in SETTINGS),
    ],
)
def test_distribution_is_the_models_own(shallow, name, draws):
    """Two tokens after the first, which may be drafts, corrections or bonuses, from heads that disagree strongly."""
    kwargs, prompt, heads = SETTINGS[name], prompts(1)[0], random_heads(shallow, depths=(1,), scale=0.2)
    torch.manual_seed(0)
    counts, drafted, accepted = Counter(), 0, 0
    expected = distribution(shallow, prompt, 3, **kwargs)
    first = {outcome[0] for outcome in expected}
    for number in range(draws):
        policy = eelib.FixedExit(1, 1 + number % 3)
        out = eelib.generate(
            shallow, prompt, heads=heads, policy=policy, do_sample=True, max_new_tokens=3, eos_token_id=None, **kwargs
        )
        counts[tuple(out.sequences[0, -2:].tolist())] += 1
        drafted, accepted = drafted + out.stats.drafted, accepted + out.stats.accepted
    pairs = Counter()
    for (_, *pair), p in expected.items():
        pairs[tuple(pair)] += p
    assert 0.05 < accepted / drafted < 0.9, "drafts must be both accepted and rejected"
    assert len(first) > 1 and chi_square(counts, pairs) > UNLIKELY


@dataclass(frozen=True)
class Says(eelib.Policy):
    """Drafts these tokens, whatever the text."""

    tokens: tuple[int, ...]

    def look_up(self, state, prefix):
        return self.tokens


def test_looked_up_drafts_leave_the_distribution_alone(shallow):
    """A draft that was not drawn at all: accepted as often as the model would say it, and never instead of another."""
    kwargs, prompt = {"top_k": 3, "temperature": 1.5}, prompts(1, seed=3)[0]
    expected = distribution(shallow, prompt, 4, **kwargs)
    second = Counter()
    for (_, token, *_), p in expected.items():
        second[token] += p
    policy = Says((second.most_common(1)[0][0],) * 2)
    torch.manual_seed(2)
    kwargs |= {"do_sample": True, "eos_token_id": None}
    outs = [eelib.generate(shallow, prompt, policy=policy, max_new_tokens=4, **kwargs) for _ in range(DRAWS)]
    counts = Counter(tuple(out.sequences[0, -4:].tolist()) for out in outs)
    drafted, accepted = (sum(getattr(out.stats, name) for out in outs) for name in ("drafted", "accepted"))
    assert 0 < accepted < drafted, "drafts must be both accepted and rejected"
    assert chi_square(counts, expected) > UNLIKELY


def test_confidence_samples_the_models_own_distribution(shallow):
    """Whether to draft depends on the head's certainty, never on the token drawn."""
    kwargs, prompt = {"top_k": 3, "temperature": 1.5}, prompts(1, seed=3)[0]
    heads = random_heads(shallow, depths=(1,), scale=0.2)
    torch.manual_seed(1)
    kwargs |= {"do_sample": True, "eos_token_id": None}
    texts = [shallow.generate(prompt, max_new_tokens=4, **kwargs)[0] for _ in range(20)]
    sure = eelib.record_traces(shallow, heads, texts, loss_mask=after(7, texts)).max_prob.median()
    policy = eelib.Confidence("max_prob", (sure,), back_off=False)  # about half of the tokens are drafted
    outs = [
        eelib.generate(shallow, prompt, heads=heads, policy=policy, max_new_tokens=4, **kwargs) for _ in range(DRAWS)
    ]
    assert 0 < sum(out.stats.drafted for out in outs) < sum(out.stats.head_positions[1] for out in outs)
    counts = Counter(tuple(out.sequences[0, -4:].tolist()) for out in outs)
    assert chi_square(counts, distribution(shallow, prompt, 4, top_k=3, temperature=1.5)) > UNLIKELY


@pytest.mark.parametrize("draws", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_rows_sample_the_models_own_distribution_independently(draws):
    """Each row by itself, and both together: the same prompt twice is two independent draws."""
    model, prompt = tiny_model("llama", num_hidden_layers=2, initializer_range=0.1), prompts(1)[0]
    heads, kwargs = random_heads(model, depths=(1,), scale=0.2), {"top_k": 3, "temperature": 1.3}
    torch.manual_seed(0)
    expected = distribution(model, prompt, 2, **kwargs)
    rows: list[list[tuple]] = [[], []]
    for _ in range(draws // 3):
        out = eelib.generate(
            model, [prompt[0].tolist()] * 6, heads=heads, policy=eelib.FixedExit(1, 2), do_sample=True,
            max_new_tokens=2, eos_token_id=None, **kwargs,
        )  # fmt: skip
        for i in range(0, 6, 2):
            for texts, row in zip(rows, out.rows[i : i + 2], strict=True):
                texts.append(tuple(row.sequences[0, -2:].tolist()))

    for texts in rows:
        assert chi_square(Counter(texts), expected) > UNLIKELY
    pairs = Counter((a[0], b[0]) for a, b in zip(*rows, strict=True))
    first = Counter()
    for (token, _), p in expected.items():
        first[token] += p
    assert chi_square(pairs, {(a, b): p * q for a, p in first.items() for b, q in first.items()}) > UNLIKELY


def test_hand_written_verdicts():
    """A draft is kept with probability min(1, p/q); what stands then follows p exactly."""
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.1, 0.6, 0.1, 0.2])
    torch.manual_seed(0)
    stands, kept, n = Counter(), Counter(), 4000
    for _ in range(n):
        token, probabilities = Sampling().draw(q.log()[None])
        token_there = Sampling().judge(Draft(token, 1, 0.0, probabilities), p.log()[None])
        stands[token_there] += 1
        kept[token] += token_there == token
    assert stats.chisquare([stands[i] for i in range(3)], (n * p[:3]).tolist()).pvalue > UNLIKELY
    assert stands[3] == kept[3] == 0
    for token, rate in ((0, 0.1), (1, 0.3)):
        assert stats.binomtest(kept[token], n, rate).pvalue > UNLIKELY


def test_a_seed_gives_the_same_text(llama):
    heads, texts = random_heads(llama), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        out = eelib.generate(
            llama, prompts(1)[0], heads=heads, policy=eelib.FixedExit(3, 3), do_sample=True, max_new_tokens=20
        )
        texts.append(out.sequences[0].tolist())
    assert texts[0] == texts[1] != texts[2]


def test_sampling_with_early_exit_speaks_the_heads_mind(llama):
    torch.manual_seed(0)
    out = eelib.generate(
        llama, prompts(1)[0], heads=random_heads(llama), policy=eelib.FixedExit(3, 1), verify=False, do_sample=True,
        max_new_tokens=20,
    )  # fmt: skip
    assert set(out.trace.depth[1:]) == {3}


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_no_distribution_are_refused(score):
    with pytest.raises(InvalidInputError, match="Nothing to sample from"):
        Sampling().draw(torch.tensor([[0.0, score]]))
