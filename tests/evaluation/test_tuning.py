"""What policies are expected to do, and which of them is chosen."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import N_BLOCKS, after, prompts, random_heads

import eelib
from eelib.errors import InvalidInputError
from eelib.evaluation import tuning
from eelib.evaluation.comparison import compare
from eelib.evaluation.latency import Timings
from eelib.evaluation.replay import ExitDecisions, replay_text
from eelib.evaluation.tuning import count_work


@pytest.fixture(scope="module")
def told(llama):
    asked = prompts(4)
    texts = [llama.generate(p, do_sample=False, max_new_tokens=30, eos_token_id=None)[0] for p in asked]
    traces = eelib.record_traces(llama, random_heads(llama), texts, loss_mask=after(6, texts))
    return traces[traces.position < 36], [7] * 4


def test_a_grid_of_policies(llama, told):
    policies = {f"{d} x {n}": eelib.FixedExit(d, n) for d in (1, 3) for n in (1, 4)} | {"plain": eelib.Never()}
    table = count_work(policies, *told[:1], N_BLOCKS, told[1]).set_index("policy")
    assert list(table.index) == list(policies) and table.emitted.eq(120).all()
    assert table.acceptance_rate["1 x 4"] == table.accepted["1 x 4"] / table.drafted["1 x 4"]
    assert table.tokens_per_round["plain"] == 1 and np.isnan(table.acceptance_rate["plain"])
    assert table.drafts_per_token["3 x 4"] == table.drafted["3 x 4"] / 120


def test_rounds_by_hand():
    right = np.array([False, True, True, False, True, True, True])  # entry 0 is what prefill emits

    def counts(right, draft_length):
        exits = ExitDecisions((2,), (2,), np.zeros(7, int), right, np.ones((7, 1), bool))
        work = replay_text(eelib.FixedExit(2, draft_length), [exits], 6, 5, torch.zeros(12, dtype=torch.long))
        return work.emitted, work.rounds, work.drafted, work.accepted

    assert counts(right, 2) == (7, 2, 4, 4)  # [1, 2] both right + the model's 3; [4, 5] both right + the model's 6
    assert counts(right, 3) == (7, 2, 6, 5)  # [1, 2, and 3 wrong]; [4, 5, 6], which ends the text
    assert counts(~right, 2) == (7, 5, 9, 1)


@pytest.fixture(scope="module")
def tuned(llama):
    """A small grid, tuned on the model's own text; prices in which a draft at depth 1 is nearly free."""
    heads, asked = random_heads(llama), prompts(3)
    texts = tuning.OwnTexts.write(llama, asked, max_new_tokens=12, eos_token_id=None)
    pieces = {("prefill", 7): 1.0, ("span", 1): 0.0, ("unembedding", 1): 0.1}
    pieces |= {("call", 1): 0.0, ("block", 1): 1.0}
    timings = Timings(pieces | {("head", depth): 0.01 for depth in heads.depths}, 0.0, 0.0)
    settings = tuning.layerskip_settings(heads, (1, 4), "LayerSkip, our heads")
    settings = [s for s in settings if s.parameters["depth"] < 5]
    traces = eelib.record_traces(llama, heads, [p[0] for p in prompts(4, 20, seed=1)])
    settings += tuning.dssd_settings(traces, heads, "max_prob", (0.2,), (2, 4), deepest=(3,))
    kinds = dict.fromkeys(("LayerSkip, our heads", "DSSD"), timings)
    length = {"max_new_tokens": 12, "eos_token_id": None}
    beside = {"never": tuning.PLAIN}
    return traces, heads, settings, tuning.tune(llama, settings, texts, kinds, decoded=2, beside=beside, **length)


def test_own_texts_are_the_models_and_their_masks_end_before_the_last(llama):
    texts = tuning.OwnTexts.write(llama, prompts(2), max_new_tokens=5, eos_token_id=None)
    own = [llama.generate(p, do_sample=False, max_new_tokens=5, eos_token_id=None)[0] for p in prompts(2)]
    assert all(map(torch.equal, texts.sequences, own)) and texts.prompt_lengths == [7, 7]
    assert texts.loss_mask[0].tolist() == [False] * 6 + [True] * 5 + [False] and len(texts.first(1).sequences) == 1


def test_tuning_predicts_every_setting_and_lets_the_clock_choose(tuned):
    _, _, settings, found = tuned
    assert len(found.grid) == len(settings) == 6 and found.grid.kind.value_counts()["DSSD"] == 2
    assert found.grid.tokens_per_second.gt(0).all() and found.grid.emitted.eq(36).all()
    assert set(found.chosen) == {"LayerSkip, our heads", "DSSD"} and found.finalists.chosen.sum() == 2
    quickest = found.finalists.speed_ratio.max()
    assert found.best in ([*found.chosen.values()] if quickest > 1 else [tuning.PLAIN])
    for kind, setting in found.chosen.items():
        best = found.finalists[found.finalists.kind == kind].set_index("chosen").speed_ratio
        assert best[True] == best.max() and setting.kind == kind
    assert set(found.runs.decoder) == {"plain", "never", *(f"finalist {i}" for i in found.finalists.index)}


def test_chosen_settings_come_back_from_a_table(tuned):
    traces, heads, _, found = tuned
    table = pd.concat([pd.DataFrame([{"decoder": "plain"}]), tuning.settings_table(found.chosen)])
    again = tuning.chosen_settings(table, traces, heads, "max_prob")
    assert {kind: setting.policy for kind, setting in again.items()} == {
        kind: setting.policy for kind, setting in found.chosen.items()
    }
    curve = tuning.curve_settings(found.chosen, traces, heads, "max_prob", (0.2, 0.3), (1, 4), "LayerSkip, our heads")
    assert sum(setting.kind == "DSSD" for setting in curve.values()) == 1 and "DSSD, ε = 0.3" in curve
    assert len(curve) == 2, "neighbours only, not what is chosen"


def test_settings_that_look_drafts_up_come_back_from_a_table(tuned):
    traces, heads, _, _ = tuned
    given = traces, heads, "max_prob", (0.2,), (2,), (3,)
    (both,) = tuning.dssd_settings(*given, lookup=eelib.Lookup(4), kind="fused + lookup")
    (alone,) = tuning.lookup_settings([6])
    table = tuning.settings_table({"fused + lookup": both, "lookup": alone, **tuned[3].chosen})
    assert "fused + lookup" not in tuning.chosen_settings(table, traces, heads, "max_prob")
    again = tuning.chosen_settings(table, traces, heads, "max_prob", fused=(traces, heads))
    assert again["fused + lookup"].policy == both.policy and again["fused + lookup"].kind == "fused + lookup"
    assert again["lookup"].policy == alone.policy and again["lookup"].heads is None
    assert again["DSSD"].policy.lookup is None


def test_plans_of_several_kinds_are_predicted_on_what_plain_decoding_wrote(llama):
    """Heads with lookup and lookup alone: each kind by its own heads and timings, on the texts of the runs."""
    heads, asked = random_heads(llama), prompts(2)
    pieces = {("prefill", 7): 1.0, ("span", 1): 0.0, ("unembedding", 1): 0.1, ("call", 1): 0.0, ("block", 1): 1 / 6}
    timings = Timings(pieces | {("head", depth): 0.1 for depth in heads.depths}, 0.0, 0.0)
    settings = {"plain": tuning.PLAIN, "lookup": tuning.lookup_settings([4])[0]}
    settings["fixed"] = tuning.Setting("fixed", eelib.FixedExit(3, 2), heads)
    length = {"max_new_tokens": 24, "eos_token_id": None}
    decoders = {name: setting.decoder(llama, **length) for name, setting in settings.items()}
    runs = compare(decoders, asked, reference="plain")
    texts = tuning.OwnTexts.of_runs(asked, runs)
    assert all(len(text) == 31 for text in texts.sequences) and all(mask.sum() == 24 for mask in texts.loss_mask)
    table = tuning.check_predictions(llama, settings, texts, dict.fromkeys(settings, timings), runs).set_index("policy")
    counted = runs[runs.decoder != "plain"].groupby("decoder").drafted.sum()
    assert table.drafted["fixed"] == counted["fixed"] == table.drafted_measured["fixed"]
    assert table.drafted["lookup"] == counted["lookup"] and table.predicted.gt(0).all()


def test_tuning_refuses_what_cannot_be(llama, tuned):
    texts = tuning.OwnTexts.write(llama, prompts(1), max_new_tokens=4)
    for settings, options in (([], {}), (tuned[2], {"decoded": 2}), (tuned[2], {"decoded": 1, "finalists": 0})):
        with pytest.raises(InvalidInputError, match="expected settings"):
            tuning.tune(llama, settings, texts, {}, **options)


def test_predictions_are_scaled_by_what_plain_decoding_takes(llama):
    """Twice as slow a minute halves what is predicted, and the table says so."""
    texts = tuning.OwnTexts.write(llama, prompts(2), max_new_tokens=8, eos_token_id=None)
    heads = random_heads(llama)
    pieces = {("prefill", 7): 1.0, ("span", 1): 0.0, ("unembedding", 1): 0.1, ("head", 1): 0.1}
    pieces |= {("call", 1): 0.04, ("block", 1): 0.16}
    timings = Timings(pieces, 0.0, 0.0)
    policies = {"plain": tuning.PLAIN, "1 x 1": tuning.Setting("fixed", eelib.FixedExit(1, 1), heads)}
    tables, by_kind = {}, {"plain": timings, "fixed": timings}
    for slowness in (1, 2):
        runs = pd.DataFrame({
            "decoder": ["plain", "1 x 1"] * 2, "prompt": [0, 0, 1, 1], "repeat": 0, "emitted": 8, "drafted": 3,
            "seconds": slowness * 8.7,
        })  # fmt: skip
        runs["tokens_per_second"] = runs.emitted / runs.seconds
        tables[slowness] = tuning.check_predictions(llama, policies, texts, by_kind, runs).set_index("policy")
    once, twice = tables.values()
    assert once.scale.eq(1).all() and twice.scale.to_numpy() == pytest.approx(2)
    assert twice.predicted.to_numpy() == pytest.approx(once.predicted.to_numpy() / 2)
    assert once.predicted["plain"] == pytest.approx(8 / (1 + 7 * 1.1)) == once.measured["plain"]
    assert once.error.to_numpy() == pytest.approx((once.predicted / once.measured - 1).to_numpy())
    assert once.error["plain"] == pytest.approx(0) and abs(once.error["1 x 1"]) > 0.1
