"""What policies are expected to do, and what it costs."""

import numpy as np
import pytest
from tiny import N_BLOCKS, after, prompts, random_heads

import eelib
from eelib.evaluation.replay import ExitDecisions, replay_text
from eelib.evaluation.tuning import expected
from eelib.evaluation.weight_reads import WeightReads, inventory


@pytest.fixture(scope="module")
def told(llama):
    asked = prompts(4)
    texts = [llama.generate(p, do_sample=False, max_new_tokens=30, eos_token_id=None)[0] for p in asked]
    traces = eelib.record_traces(llama, random_heads(llama), texts, loss_mask=after(6, texts))
    return traces[traces.position < 36], [7] * 4


def test_a_grid_of_policies(llama, told):
    policies = {f"{d} x {n}": eelib.FixedExit(d, n) for d in (1, 3) for n in (1, 4)} | {"plain": eelib.Never()}
    table = expected(policies, *told[:1], N_BLOCKS, told[1]).set_index("policy")
    assert list(table.index) == list(policies) and table.emitted.eq(120).all()
    assert table.acceptance_rate["1 x 4"] == table.accepted["1 x 4"] / table.drafted["1 x 4"]
    assert table.tokens_per_round["plain"] == 1 and np.isnan(table.acceptance_rate["plain"])
    assert table.drafts_per_token["3 x 4"] == table.drafted["3 x 4"] / 120


def test_rounds_by_hand():
    right = np.array([False, True, True, False, True, True, True])  # entry 0 is what prefill emits

    def counts(right, draft_length):
        exits = ExitDecisions((2,), (2,), np.zeros(7, int), right, np.ones((7, 1), bool))
        work = replay_text(eelib.FixedExit(2, draft_length), exits, 6, 5)
        return work.emitted, work.rounds, work.drafted, work.accepted

    assert counts(right, 2) == (7, 2, 4, 4)  # [1, 2] both right + the model's 3; [4, 5] both right + the model's 6
    assert counts(right, 3) == (7, 2, 6, 5)  # [1, 2, and 3 wrong]; [4, 5, 6], which ends the text
    assert counts(~right, 2) == (7, 5, 9, 1)


def test_passes_of_the_whole_model(llama, told):
    heads = random_heads(llama)
    reads = WeightReads.of(llama, heads)
    assert reads.block * 6 + reads.unembedding == pytest.approx(1) and reads.heads[1] > reads.unembedding
    table = expected({"plain": eelib.Never(), "fixed": eelib.FixedExit(3, 4)}, told[0], N_BLOCKS, told[1])
    plain, fixed = table.work
    assert reads.passes(plain) == pytest.approx(120)
    whole = reads.fixed_exit_round(3, N_BLOCKS, 4)
    runs = [
        eelib.generate(llama, p, heads=heads, policy=eelib.FixedExit(3, 4), max_new_tokens=30, eos_token_id=None).stats
        for p in prompts(4)
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
