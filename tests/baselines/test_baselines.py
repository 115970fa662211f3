"""Baselines: each does what its paper says, on this engine, and none leaves the model changed."""

import importlib
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import N_BLOCKS, PROJECT, VOCAB_SIZE, Pattern, letters, own_text, prompts, random_heads, tiny_model

import eelib
from eelib.baselines import calm
from eelib.baselines import transformers_generate as hf
from eelib.baselines.calm import CALM, CALMSession
from eelib.baselines.del_ import DEL, DELSession
from eelib.baselines.draft_verify import DraftVerify
from eelib.baselines.ee_llm import EELLMSession
from eelib.baselines.sled import FLOOR, SLED, SLEDSession, evolve_logits, sled_model
from eelib.decoding import Outcome
from eelib.errors import CorpusError, InvalidInputError, MissingExtraError
from eelib.evaluation.comparison import working
from eelib.evaluation.weight_reads import WeightReads

LENGTH = {"max_new_tokens": 20, "eos_token_id": None}


@pytest.fixture(scope="module")
def heads(llama):
    return random_heads(llama, scale=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: hf.greedy(m, **LENGTH),
        lambda m: hf.assistant_early_exit(m, 3, 2, **LENGTH),
        lambda m: hf.prompt_lookup(m, 4, **LENGTH),
    ],
)
def test_transformers_own_ways_give_its_greedy_text(llama, make):
    before = llama.generation_config.to_dict()
    for prompt in prompts(3):
        assert torch.equal(make(llama)(prompt), own_text(llama, prompt, **LENGTH))
    assert llama.generation_config.to_dict() == before


def test_a_peer_that_fails_leaves_its_reason_and_the_model_as_it_was():
    model = tiny_model("gpt_neox")
    decoders = {"greedy": hf.greedy(model, **LENGTH), "exit": hf.assistant_early_exit(model, 2, 2, **LENGTH)}
    fine, failed = working(decoders, prompts(1)[0])
    assert list(fine) == ["greedy"] and failed.decoder.tolist() == ["exit"]
    assert failed.error[0].startswith("IndexError") and model.config.num_hidden_layers == N_BLOCKS
    assert model.generation_config.num_assistant_tokens != 2
    with pytest.raises(InvalidInputError, match="expected 1 to 5"):
        hf.assistant_early_exit(model, 6, 2)


def test_refeeding_gives_the_text_of_exact_filling_for_more_work(llama, heads):
    policy = Pattern((1, 3, None, 5, 1))
    for prompt in prompts(3):
        ours = eelib.generate(llama, prompt, heads=heads, policy=policy, verify=False, **LENGTH)
        theirs = eelib.generate(llama, prompt, heads=heads, policy=policy, verify=False, session=EELLMSession, **LENGTH)
        assert torch.equal(ours.sequences, theirs.sequences)
        assert theirs.stats.block_positions[0] > ours.stats.block_positions[0]
        assert theirs.stats.block_positions[-1] == ours.stats.block_positions[-1]


def test_refeeding_calls_the_full_model_before_too_many_wait(llama, heads):
    class Few(EELLMSession):
        max_waiting = 3

    out = eelib.generate(llama, prompts(1)[0], heads=heads, policy=Pattern((1,)), verify=False, session=Few, **LENGTH)
    assert out.trace.depth.tolist() == [N_BLOCKS, *([1, 1, 1, N_BLOCKS] * 5)[:19]]


def test_propagation_copies_the_state_of_the_exit_upward(llama, heads):
    """The keys that a block above gets are those it makes of the exit's state."""
    prompt = prompts(1)[0]
    whole = eelib.generate(
        llama, prompt, heads=heads, policy=eelib.Never(), session=CALMSession, verify=False, **LENGTH
    )
    assert torch.equal(whole.sequences, own_text(llama, prompt, **LENGTH))
    kept = []

    class Kept(CALMSession):
        def __init__(self, *given):
            super().__init__(*given)
            kept.append(self.frontier)

    policy = Pattern((1, None))
    out = eelib.generate(llama, prompt, heads=heads, policy=policy, verify=False, session=Kept, **LENGTH)
    exact = eelib.generate(llama, prompt, heads=heads, policy=policy, verify=False, **LENGTH)
    assert not torch.equal(out.sequences, exact.sequences)
    left = (out.trace.depth == 1).sum()
    assert out.stats.block_positions[-1] == kept[0].length - left and kept[0].completed == kept[0].length
    backbone, position = eelib.Backbone.of(llama), prompt.shape[1] + out.trace.depth.tolist()[1:].index(1)
    states = backbone.states(out.sequences[:, : position + 1], [1])[1]  # below the exit nothing was copied
    block, keys = llama.model.layers[4], kept[0].cache.layers[4].keys
    mine = block.self_attn.k_proj(block.input_layernorm(states[0, position])).view(2, -1)
    found = keys[0, :, position]
    assert found.norm(dim=-1).allclose(mine.norm(dim=-1))  # rotated, and so of the same length


def test_calm_thresholds_fall_along_the_text():
    policy = CALM("softmax", 0.5, decay=4, length=10)
    assert policy.threshold_at(0) == pytest.approx(0.9 * 0.5 + 0.1)
    assert policy.threshold_at(5) == pytest.approx(0.45 + 0.1 * math.exp(-2))
    assert CALM("softmax", math.inf).threshold_at(3) == math.inf
    with pytest.raises(InvalidInputError, match="saturation"):
        CALM("certainty", 0.5)
    with pytest.raises(InvalidInputError, match="train_classifiers"):
        CALM("classifier", 0.5)


def test_calm_scores_while_decoding_are_those_of_its_traces(llama, heads):
    texts = [own_text(llama, p, max_new_tokens=30, eos_token_id=None)[0] for p in prompts(6)]
    classifiers = calm.train_classifiers(llama, heads, texts)
    traces = calm.confidence_traces(llama, heads, texts, classifiers=classifiers)
    for name in calm.CONFIDENCES:
        policy = CALM(name, 2.0, classifiers=classifiers)  # never reached
        asked = {}

        class Noting(CALM):
            def exits(self, state, depth, logits, hidden, position, asked=asked):
                left, score = super().exits(state, depth, logits, hidden, position)
                asked[position, depth] = score
                return left and False, score

        policy = Noting(name, 0.5, classifiers=classifiers)
        out = eelib.generate(
            llama, texts[0][None, :7], heads=heads, policy=policy, verify=False, max_new_tokens=20, eos_token_id=None
        )
        assert torch.equal(out.sequences[0], texts[0][:27])
        table = traces[traces.sequence == 0].set_index(["position", "depth"])[name]
        assert len(asked) == 19 * 3
        for key, score in asked.items():
            assert table[key] == pytest.approx(score, abs=1e-5)  # traces and the states of CALM are float32


def test_learn_then_test_promises_less_for_more_exits():
    draw = np.random.default_rng(0)
    rows = []
    for sequence in range(200):
        for position in range(10):
            for depth in (1, 3):
                score = draw.uniform()
                rows.append((sequence, position, depth, score, draw.uniform() < 0.4 + 0.6 * score))
    traces = pd.DataFrame(rows, columns=["sequence", "position", "depth", "softmax", "agrees"])
    found = [calm.learn_then_test(traces, "softmax", epsilon, 0.1) for epsilon in (0.95, 0.9, 0.8)]
    assert found[0] > found[1] > found[2] > 0
    exited = traces[traces.softmax >= found[2]].drop_duplicates(["sequence", "position"])
    assert (~exited.agrees).sum() / 2000 <= 0.2
    assert calm.learn_then_test(traces.assign(softmax=1.0, agrees=False), "softmax", 0.9, 0.1) == math.inf


def test_a_classifier_needs_both_kinds_of_tokens(llama):
    lens = eelib.ExitHeads.init(llama, [5], "none")
    states = [own_text(llama, prompts(1)[0], max_new_tokens=1)[0][:1]]
    with pytest.raises(CorpusError, match="depth 5"):
        calm.train_classifiers(llama, lens, states)


def test_draft_and_verify_moves_its_threshold_towards_the_target(llama, heads):
    policy = DraftVerify(3, 4, target=0.9, start_at=0.5, step=0.1, smoothing=0.0)
    state = policy.start(prompts(1)[0], (1, 3, 5))
    policy.observe(state, Outcome(4, 0))
    assert state["threshold"] == pytest.approx(0.6) and state["acceptance"] == pytest.approx(0.45)
    for _ in range(6):
        policy.observe(state, Outcome(4, 4))
    assert state["threshold"] < 0.6 and state["acceptance"] > 0.9
    low = state["threshold"]
    policy.observe(state, Outcome(0, 0))
    assert state["threshold"] == pytest.approx(max(low - 0.1, 0))
    with pytest.raises(InvalidInputError, match=r"target=1\.5"):
        DraftVerify(3, 4, target=1.5)
    for prompt in prompts(3):
        out = eelib.generate(llama, prompt, heads=heads, policy=policy, **LENGTH)
        assert torch.equal(out.sequences, own_text(llama, prompt, **LENGTH))


def test_del_drafts_where_it_pays_and_stays_lossless(llama, heads):
    reads = WeightReads.of(llama, heads)
    policy = DEL(reads, N_BLOCKS)
    state = policy.start(prompts(1)[0], heads.depths)
    for _ in range(20):
        policy.shadow(state, 1, 10, 10)
        policy.shadow(state, 3, 0, 10)
        policy.shadow(state, 5, 0, 10)
    assert policy.draft_limit(state) > 0 and state["depth"] == 1
    for _ in range(200):
        policy.shadow(state, 1, 0, 10)
    assert policy.draft_limit(state) == 0 and state["depth"] is None
    seen = []

    class Watched(DEL):
        def shadow(self, state, depth, right, seen_):
            seen.append((depth, right, seen_))
            super().shadow(state, depth, right, seen_)

    for prompt in prompts(4):
        seen.clear()
        out = eelib.generate(llama, prompt, heads=heads, policy=Watched(reads, N_BLOCKS), session=DELSession, **LENGTH)
        assert torch.equal(out.sequences, own_text(llama, prompt, **LENGTH))
        # Each emitted token but the first comes from one verified state, and every exit was asked about each.
        traces = eelib.record_traces(llama, heads, [out.sequences[0]])
        traces = traces[(traces.position >= prompt.shape[1]) & (traces.position < out.sequences.shape[1] - 1)]
        for depth, table in traces.groupby("depth"):
            assert sum(r for d, r, _ in seen if d == depth) == table.agrees.sum()
            assert sum(s for d, _, s in seen if d == depth) == len(table)


def by_hand(final, early, rate, k, steps):
    top = final.argsort(descending=True)[:k].tolist()
    votes = []
    for z in early:
        p, row = z.softmax(-1), []
        for i in top:
            e = torch.zeros_like(p)
            e[i] = 1
            row.append(max(0.0, torch.cosine_similarity(p - e, z - final, dim=0).item()) ** 2)
        votes.append(row)
    total = sum(map(sum, votes))
    latent = [
        sum(sum(row) / total * row[j] / sum(row) for row in votes if sum(row)) if total else None for j in range(k)
    ]
    z = final.clone()
    for t in range(steps):
        p = z.softmax(-1)
        for j, i in enumerate(top):
            z[i] -= rate * (1 - t / steps) * (p[i].item() - latent[j])
    out = torch.full_like(final, FLOOR)
    out[top] = z[top]
    return out


@pytest.mark.parametrize("steps", [1, 4])
def test_sled_against_its_formula(steps):
    torch.manual_seed(0)
    final, early = torch.randn(12), [torch.randn(12) for _ in range(3)]
    found = evolve_logits(final, early, rate=1.5, k=4, steps=steps)
    hand = by_hand(final.double(), [z.double() for z in early], 1.5, 4, steps)
    assert found.double().allclose(hand, rtol=0, atol=1e-5)  # the logits, up to 3, are evolved in float32
    batch = evolve_logits(final.expand(2, 12), [z.expand(2, 12) for z in early], rate=1.5, k=4, steps=steps)
    assert batch[1].allclose(found)
    same = evolve_logits(final, [final], k=4)
    assert same.argmax() == final.argmax(), "layers that say the same change nothing"
    with pytest.raises(InvalidInputError, match="earlier layer"):
        evolve_logits(final, [])


def test_sled_decodes(llama):
    for prompt in prompts(2):
        still = eelib.generate(llama, prompt, policy=SLED(rate=0.0), verify=False, session=SLEDSession, **LENGTH)
        assert torch.equal(still.sequences, own_text(llama, prompt, **LENGTH))
        moved = eelib.generate(
            llama, prompt, policy=SLED((1, 3), rate=60.0), verify=False, session=SLEDSession, **LENGTH
        )
        assert not torch.equal(moved.sequences, still.sequences)
        assert moved.stats.head_positions == {1: 20, 3: 20}


def test_sled_in_the_harness(llama):
    from lm_eval.models.huggingface import HFLM

    tokenizer, text = letters(), prompts(1, length=9)[0]
    exits = eelib.ExitHeads.init(llama, [2, 4], "none")
    given = {"batch_size": 1, "max_length": 64}
    lm, plain = sled_model(llama, tokenizer, exits, steps=2, **given), HFLM(llama, tokenizer=tokenizer, **given)
    found, own = lm._model_call(text), plain._model_call(text).float()
    assert torch.equal(found.topk(10).indices.sort().values, own.topk(10).indices.sort().values)
    assert (found == FLOOR).sum(-1).eq(VOCAB_SIZE - 10).all() and not found.max().allclose(own.max())
    states = exits.backbone.states(text, [2, 4])
    assert found.allclose(evolve_logits(own, [exits.full_logits(d, states[d]) for d in (2, 4)], steps=2))


def test_decoding_by_a_baseline_needs_no_extra(monkeypatch):
    """All modules, imported anew as on a machine where lm-evaluation-harness is missing."""
    names = [f"eelib.baselines.{file.stem}" for file in (PROJECT / "eelib" / "baselines").glob("[!_]*.py")]
    for name in (*names, "eelib.evaluation.harness_model"):
        if name in sys.modules:
            room, module = name.rsplit(".", 1)
            monkeypatch.setattr(importlib.import_module(room), module, sys.modules[name])  # to be put back afterwards
            monkeypatch.delitem(sys.modules, name)
    for name in ["lm_eval", *(name for name in sys.modules if name.startswith("lm_eval."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError):
        importlib.import_module("eelib.evaluation.harness_model")
    assert len(names) > 5 and all(importlib.import_module(name) for name in names)
