"""Weights read by replayed and by decoded text, and where the tokens of compared runs exit."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import N_BLOCKS, after, prompts, random_heads

import eelib
from eelib import evaluation
from eelib.decoding.output import DecodingOutput, DecodingStats
from eelib.evaluation.tuning import count_work
from eelib.evaluation.weight_reads import WeightReads, emitted_depths, exit_costs, exit_shares, inventory


def test_passes_of_the_whole_model(llama):
    heads, asked = random_heads(llama), prompts(4)
    reads = WeightReads.of(llama, heads)
    assert reads.block * 6 + reads.unembedding == pytest.approx(1) and reads.heads[1] > reads.unembedding
    texts = [llama.generate(p, do_sample=False, max_new_tokens=30, eos_token_id=None)[0] for p in asked]
    traces = eelib.record_traces(llama, heads, texts, loss_mask=after(6, texts))
    policies = {"plain": eelib.Never(), "fixed": eelib.FixedExit(3, 4)}
    plain, fixed = count_work(policies, traces[traces.position < 36], N_BLOCKS, [7] * 4).work
    assert reads.passes(plain) == pytest.approx(120)
    whole = reads.fixed_exit_round(3, N_BLOCKS, 4)
    runs = [
        eelib.generate(llama, p, heads=heads, policy=eelib.FixedExit(3, 4), max_new_tokens=30, eos_token_id=None).stats
        for p in asked
    ]
    assert reads.passes(fixed) == pytest.approx(sum(reads.passes_of_run(stats) for stats in runs))
    assert reads.passes(fixed) == pytest.approx(fixed.rounds * whole + 4, rel=0.1)  # last rounds are shorter


def test_inventory(llama):
    heads = eelib.ExitHeads.init(llama, [3], "affine")
    table = inventory(llama, heads).set_index("piece")
    config = llama.config
    assert table.parameters.sum() - 32 * 33 == sum(p.numel() for p in llama.parameters()) - 97 * 32 - 32
    assert table.flops["unembedding"] == 2 * 32 * 97 and table.flops["head at 3"] == 2 * 32 * (32 + 97)
    assert table.kv_bytes["blocks"] == 2 * N_BLOCKS * config.num_key_value_heads * 8 * 8
    assert table.bytes["head at 3"] == (32 * 33 + 32 * 97) * 8
    drafted = eelib.ExitHeads.init(llama, [3], "linear")
    assert inventory(llama, drafted).set_index("piece").bytes["head at 3"] == (97 * 32 + 32) * 8


READS = WeightReads(block=0.2, unembedding=0.2, heads={1: 0.1, 2: 0.3})


def output(depths, drafted, accepted, block_calls, asked):
    """A run of a model of four blocks, with heads at 1 and 2."""
    trace = pd.DataFrame({"depth": depths, "drafted": drafted, "accepted": accepted})
    kept = int((~trace.drafted | trace.accepted).sum())
    stats = DecodingStats(kept, 0, 0, 0, block_calls, block_calls, asked, 1.0)
    return DecodingOutput(torch.zeros(1, 3 + kept, dtype=torch.long), trace, stats)


@pytest.fixture
def runs():
    early = [
        output([4, 1], [False] * 2, [False] * 2, (2, 1, 1, 1), {1: 1, 2: 0}),
        output([4, 2, 1, 4], [False] * 4, [False] * 4, (4, 3, 2, 2), {1: 3, 2: 2}),
    ]
    plain = [output([4] * n, [False] * n, [False] * n, (n,) * 4, {}) for n in (2, 4)]
    rows = [
        {"decoder": name, "prompt": prompt, "repeat": repeat, "output": out}
        for repeat in (0, 1)
        for name, outputs in (("plain", plain), ("early", early))
        for prompt, out in enumerate(outputs)
    ]
    return pd.DataFrame(rows)


def test_costs_of_exits_by_hand(runs):
    table = exit_costs(runs, READS).set_index("decoder")
    assert table.loc["plain"].tolist() == pytest.approx([1, 1, 0])
    blocks, passes = (4 + 1 + 4 + 2 + 1 + 4) / 6 / 4, 16 * 0.2 + 4 * 0.1 + 2 * 0.3 + 3 * 0.2
    assert table.loc["early"].to_dict() == pytest.approx(
        {"generated_blocks": blocks, "passes_per_token": passes / 6, "coverage": 3 / 6}
    )


def test_shares_of_exits_by_hand(runs):
    table = exit_shares(runs, (1, 2, 3, 4)).set_index("decoder")
    assert table.columns.tolist() == ["share_1", "share_2", "share_3", "share_4"]
    assert table.loc["early"].tolist() == pytest.approx([2 / 6, 1 / 6, 0, 3 / 6])
    assert table.loc["plain"].tolist() == [0, 0, 0, 1]


def test_rejected_drafts_are_no_tokens():
    out = output([4, 2, 1, 4], [False, True, True, False], [False, True, False, False], (4, 4, 4, 4), {})
    assert emitted_depths(out).tolist() == [4, 2, 4]


def test_what_runs_say_is_what_a_plain_count_of_their_traces_says(llama):
    heads, asked = random_heads(llama), prompts(3)
    shared = {"heads": heads, "max_new_tokens": 10, "eos_token_id": None}
    decoders = {
        "plain": lambda p: eelib.generate(llama, p, policy=eelib.Never(), **shared),
        "verified": lambda p: eelib.generate(llama, p, policy=eelib.FixedExit(3, 2), **shared),
    }
    runs = evaluation.compare(decoders, asked, reference="plain")
    verified = runs[runs.decoder == "verified"].output
    depths = np.concatenate([emitted_depths(out) for out in verified])
    assert len(depths) == 30 and (depths == 3).sum() == sum(out.stats.accepted for out in verified) > 0
    table = exit_costs(runs, WeightReads.of(llama, heads)).set_index("decoder")
    assert table.passes_per_token["plain"] == pytest.approx(1) and table.coverage["verified"] == (depths == 3).mean()
