"""What is counted off traces is what the engine does."""

from collections import Counter

import numpy as np
import pytest
import torch
from tiny import N_BLOCKS, Pattern, after, letters, own_text, prompts, random_heads

import eelib
from eelib.errors import HeadsError, InvalidInputError
from eelib.evaluation.replay import ExitDecisions, Work, replay_policy, replay_text
from eelib.evaluation.tuning import OwnTexts

NEW = 24


@pytest.fixture(scope="module", params=["whole vocabulary", "drafted part"])
def told(request, llama):
    """Heads, prompts, and traces of the model's own text after them."""
    asked = prompts(3)
    texts = [llama.generate(p, do_sample=False, max_new_tokens=NEW, eos_token_id=None)[0] for p in asked]
    if request.param == "whole vocabulary":
        heads = random_heads(llama, scale=0.02)
    else:
        heads = eelib.ExitHeads.init(llama, (1, 3, 5), "mlp", 40, sequences=texts, tokenizer=letters())
        eelib.train_heads(llama, heads, texts, eelib.TrainConfig(epochs=6, batch_size=1, learning_rate=1e-2))
    loss_mask = after(6, texts)
    for mask in loss_mask:
        mask[-1] = False  # what follows the text is not in it
    return heads, asked, eelib.record_traces(llama, heads, texts, loss_mask=loss_mask)


def decoded(model, heads, policy, asked) -> dict:
    """The engine's books, as sums over the prompts."""
    books = {"blocks": [], "calls": [], "heads": Counter(), "emitted": 0, "rounds": 0, "drafted": 0, "accepted": 0}
    for prompt in asked:
        stats = eelib.generate(model, prompt, heads=heads, policy=policy, max_new_tokens=NEW, eos_token_id=None).stats
        for name in ("emitted", "rounds", "drafted", "accepted"):
            books[name] += getattr(stats, name)
        books["blocks"].append(stats.block_positions)
        books["calls"].append(stats.block_calls)
        books["heads"] += Counter(stats.head_positions)
    return books


def loss_mask(work: Work) -> dict:
    prompt = {n: times for (piece, *_, n), times in work.calls.items() if piece == "prefill"}
    positions = [sum(n * t for n, t in prompt.items())] * N_BLOCKS
    calls = [sum(prompt.values())] * N_BLOCKS
    for (piece, *of), times in work.calls.items():
        if piece == "blocks":
            for block in range(of[0], of[1]):
                positions[block] += of[2] * times
                calls[block] += times
    heads = Counter({of[0]: times for (piece, *of), times in work.calls.items() if piece == "head"})
    return {"positions": positions, "calls": calls, "heads": heads}


POLICIES = [
    eelib.Never(),
    eelib.FixedExit(5, 1),
    eelib.Confidence("max_prob", (0.3, None, 0.2), max_draft=1),
    eelib.Confidence("entropy", (-3.0, -2.0, -2.5), max_draft=1, back_off=False),
]


LONG = [eelib.FixedExit(1, 2), eelib.FixedExit(3, 6)]  # exact where heads never decline


@pytest.mark.parametrize(
    "told, policy",
    [(part, policy) for part in ("whole vocabulary", "drafted part") for policy in POLICIES]
    + [("whole vocabulary", policy) for policy in LONG],
    indirect=["told"],
    ids=str,
)
def test_counts_are_the_engines(llama, told, policy):
    heads, asked, traces = told
    work = replay_policy(policy, traces, N_BLOCKS, [p.shape[1] for p in asked])
    books, mine = decoded(llama, heads, policy, asked), loss_mask(work)
    assert {name: getattr(work, name) for name in ("emitted", "rounds", "drafted", "accepted")} == {
        name: books[name] for name in ("emitted", "rounds", "drafted", "accepted")
    }
    assert mine["positions"] == [sum(column) for column in zip(*books["blocks"], strict=True)]
    assert mine["calls"] == [sum(column) for column in zip(*books["calls"], strict=True)]
    assert mine["heads"] == books["heads"]
    assert sum(t for (piece, *_), t in work.calls.items() if piece == "unembedding") == work.rounds


@pytest.mark.parametrize(
    "policy", [*LONG, eelib.Confidence("max_prob", (0.3, 0.25, 0.2), max_draft=5, back_off=False)], ids=str
)
def test_long_drafts_are_exact_up_to_the_first_wrong_one(llama, told, policy):
    heads, asked, traces = told
    work = replay_policy(policy, traces, N_BLOCKS, [p.shape[1] for p in asked])
    books = decoded(llama, heads, policy, asked)
    assert (work.rounds, work.accepted, work.emitted) == (books["rounds"], books["accepted"], books["emitted"])
    assert work.drafted >= work.accepted and work.drafted == pytest.approx(books["drafted"], rel=0.3)


def test_a_fixed_exit_drafts_on_behind_a_wrong_draft():
    """As its heads mostly do; on the text itself this one declines at two tokens, where rounds begin without drafts."""
    at, right = np.array([0, 0, -1, -1, 0, 0]), np.array([False, False, False, False, True, True])
    exits = ExitDecisions((2,), (2,), at, right, np.ones((6, 1), bool))
    work = replay_text(eelib.FixedExit(2, 3), [exits], N_BLOCKS, 5, torch.zeros(11, dtype=torch.long))
    assert (work.rounds, work.drafted, work.accepted) == (4, 3 + 0 + 0 + 2, 2)


def test_lookup_and_several_drafts_of_fused_heads(llama):
    """Behind the first draft of a round, fused heads read their own guesses: traces tell which draft they are of."""
    asked = prompts(2)
    asked += [torch.cat([own_text(llama, p, max_new_tokens=20), p], dim=1) for p in asked]
    texts = OwnTexts.write(llama, asked, max_new_tokens=NEW, eos_token_id=None)
    heads = eelib.ExitHeads.init(llama, (2,), "fused")
    training = eelib.TrainConfig(epochs=8, batch_size=1, learning_rate=1e-2)
    eelib.train_heads(llama, heads, texts.sequences, training)
    traces, lookup = texts.traces(llama, heads), eelib.Lookup(6, record=0.2, sizes=(2, 1))
    assert traces.groupby("draft").agrees.mean().nunique() > 1
    for policy in (
        eelib.FixedExit(2, 1), eelib.FixedExit(2, 3), lookup,
        eelib.Confidence("max_prob", (0.05,), max_draft=3, lookup=lookup, back_off=False),
    ):  # fmt: skip
        work = replay_policy(policy, traces, N_BLOCKS, texts.prompt_lengths, texts.sequences)
        books = decoded(llama, heads, policy, asked)
        assert (work.rounds, work.accepted, work.emitted) == (books["rounds"], books["accepted"], books["emitted"])
        assert work.accepted > 0 or policy == eelib.FixedExit(2, 1)
    with pytest.raises(InvalidInputError, match="give replay_policy the sequences"):
        replay_policy(lookup, traces, N_BLOCKS, texts.prompt_lengths)


def test_what_cannot_be_replayed_is_refused(told):
    _, asked, traces = told
    lengths = [p.shape[1] for p in asked]
    with pytest.raises(InvalidInputError, match="cannot be replayed"):
        replay_policy(Pattern((1, 3)), traces, N_BLOCKS, lengths)
    with pytest.raises(HeadsError):
        replay_policy(eelib.FixedExit(2, 2), traces, N_BLOCKS, lengths)


def test_work_adds_up():
    one = Work(3, 2, 2, 1, Counter({("head", 1): 2}))
    assert one + one == Work(6, 4, 4, 2, Counter({("head", 1): 4}))
