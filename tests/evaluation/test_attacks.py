from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny import chatty, prompts, random_heads, tiny_model, traces_of

import eelib
from eelib import evaluation
from eelib.calibration.cascade import HeadScores
from eelib.corpus.chat import answers, as_prompt
from eelib.errors import InvalidInputError
from eelib.evaluation.attacks import GOALS, MODES, search_prompts

QUESTIONS = ["how many", "what is", "tell me"]


@pytest.fixture(scope="module")
def asked():
    model, tokenizer = tiny_model("llama"), chatty()
    heads = random_heads(model, scale=0.02)
    sequences, spoken = answers(model, tokenizer, QUESTIONS, 12)
    traces = eelib.record_traces(model, heads, sequences, loss_mask=spoken)
    found = eelib.calibrate(traces, "entropy", 0.5, target="output_agreement")
    # Thresholds are scores; a little below them, whatever shares a pass rounds no score to the other side.
    return model, tokenizer, heads, replace(found, thresholds=tuple(t and t - 1e-4 for t in found.thresholds))


@pytest.mark.parametrize("goal", GOALS)
def test_a_search_finds_worse_than_it_began_with_and_tells_the_truth_about_it(asked, goal):
    model, tokenizer, heads, calibration = asked
    found = search_prompts(model, heads, tokenizer, calibration, QUESTIONS, goal, suffix=4, rounds=3, max_new_tokens=12)
    began = found[found["round"] == 0]
    assert set(began.text) == set(QUESTIONS)
    best, reached = found.iloc[0], found.wrong if goal == "wrong exits" else -found.coverage
    assert reached[0] == reached.max() > reached[began.index].mean() and len(found) > 3 * len(began)
    sequences, spoken = answers(model, tokenizer, [best.text], 12)
    tokens = HeadScores.of(eelib.record_traces(model, heads, sequences, loss_mask=spoken), "entropy")
    exits = tokens.exits(calibration.thresholds)
    assert best.coverage == pytest.approx(exits.any(axis=1).mean())
    assert best.wrong == pytest.approx((exits & ~tokens.agrees).any(axis=1).mean())


def test_a_search_for_nothing(asked):
    model, tokenizer, heads, calibration = asked
    for questions, goal in ((QUESTIONS, "harm"), ([], GOALS[0])):
        with pytest.raises(InvalidInputError, match="wrong exits or no exits"):
            search_prompts(model, heads, tokenizer, calibration, questions, goal)


def test_answers_are_what_the_model_says_to_each_alone(asked):
    model, tokenizer, *_ = asked
    sequences, spoken = answers(model, tokenizer, QUESTIONS, 12, batch_size=2)
    for text, sequence, counts in zip(QUESTIONS, sequences, spoken, strict=True):
        prompt = as_prompt(text, tokenizer)
        alone = model.generate(prompt, do_sample=False, max_new_tokens=12, pad_token_id=0, attention_mask=prompt >= 0)[
            0
        ]
        assert sequence.tolist() == alone.tolist()
        assert counts.tolist() == [prompt.shape[1] - 1 <= i < len(sequence) - 1 for i in range(len(sequence))]


def test_forged_thresholds_let_all_out_or_none(asked):
    _, _, heads, honest = asked
    traces = traces_of([(0, (-0.5, -np.inf, 0.1), (True,) * 3), (1, (-2.0, 0.3, 0.7), (False,) * 3)], heads.depths)
    forged = evaluation.forge_thresholds(honest, traces)
    assert {name: one.thresholds for name, one in forged.items()} == {
        "all exit at once": (-2.0,) * 3, "only the deepest head, always": (None, None, -2.0), "none exits": (0.7,) * 3,
    }  # fmt: skip
    assert all(replace(one, thresholds=honest.thresholds).digest == honest.digest for one in forged.values())


def test_tampered_files_are_refused_unless_their_digest_fits(asked):
    model, tokenizer, heads, honest = asked
    forged = replace(honest, thresholds=(-9.0,) * 3)
    table = evaluation.load_tampered(model, heads, honest, forged, as_prompt("how", tokenizer)).set_index("file")
    used = table.index[table.outcome == "used"].tolist()
    assert used == [
        "as it was written", "forged, with a digest that fits", "as it was written, where the caller expects its digest"
    ]  # fmt: skip
    reasons = {
        "thresholds edited": "its digest does not match",
        "forged, where the caller expects a digest": "another calibration than expected",
        "a threshold too few": "2 thresholds for heads",
        "NaN": "expected finite numbers",
        "out of the metric's range": "entropy",
        "of other heads": "calibrated for the heads 000000000000",
    }
    assert set(table.index) == {*used, *reasons}
    for name, words in reasons.items():
        assert table.outcome[name].startswith("refused: ") and words in table.outcome[name]
    assert not table.outcome.str.contains("/tmp").any(), "no path of the moment in a result"


def test_modes_beside_plain_decoding(asked):
    model, _, heads, honest = asked
    everything = replace(honest, thresholds=(-1e3,) * 3)
    nothing = replace(honest, thresholds=(None,) * 3)
    texts = prompts(3)
    table = evaluation.compare_modes(model, heads, {"all": everything, "none": nothing}, texts, max_new_tokens=8)
    assert table["mode"].tolist() == list(MODES) * 2 and table.file.tolist() == ["all"] * 3 + ["none"] * 3
    drawn = ["mode", "file", "equal", "acceptance_rate", "speed_ratio", "speed_ratio_low", "speed_ratio_high"]
    assert table.columns.tolist() == [*drawn, "speed_ratio_deviation", "agreement", "coverage"]
    by_mode = table.set_index(["file", "mode"])
    lossless = by_mode.drop(index="early exit", level="mode")
    assert lossless.equal.eq(1).all() and lossless.agreement.eq(1).all()
    assert by_mode.coverage["none"].eq(0).all() and by_mode.equal["none", "early exit"] == 1
    coverage, agreed = [], []
    for prompt in texts:
        policy = eelib.Confidence.from_calibration(everything)
        out = eelib.generate(model, prompt, heads=heads, policy=policy, verify=False, max_new_tokens=8)
        own = model(out.sequences).logits[0, 6:-1].argmax(-1)
        coverage.append((out.trace.depth < 6).mean())
        agreed.append((own == out.sequences[0, 7:]).float().mean().item())
    early = by_mode.loc["all", "early exit"]
    assert early.coverage == pytest.approx(np.mean(coverage)) and early.agreement == pytest.approx(np.mean(agreed))
    assert early.equal < 1 and early.coverage > 0.8


@pytest.fixture
def alarms():
    """Text whose tokens at one head all agree, text where none does, and the thresholds of all that exits."""
    texts = {
        name: traces_of([(sequence, (1.0,), (agrees,)) for sequence in range(4) for _ in range(3)], depths=(2,))
        for name, agrees in (("own", True), ("worse", False))
    }
    calibration = eelib.calibrate(texts["own"], "entropy", 0.9)
    return evaluation.alarm_runs(texts, calibration, 0.9, false_alarm=0.05, runs=20, sequences=60)


def test_alarms_where_the_promise_is_broken_and_nowhere_else(alarms):
    assert alarms.columns.tolist() == ["text", "mean_loss", "run", "sequences_to_alarm"] and len(alarms) == 40
    delays = evaluation.alarm_delays(alarms)
    assert delays.index.tolist() == ["own", "worse"]
    assert delays.loc["own"].tolist() == [0, 0, np.inf, np.inf]
    loss, share, median, most = delays.loc["worse"]
    assert (loss, share) == (1, 1) and 1 < median <= most < 20


def test_shares_and_delays_of_alarms_by_hand():
    times = [2, np.inf, 3, 3]
    alarms = pd.DataFrame({"text": "prose", "mean_loss": 0.3, "run": range(4), "sequences_to_alarm": times})
    curve = evaluation.alarm_shares(alarms, sequences=4)
    assert curve.sequences.tolist() == [0, 1, 2, 3, 4] and (curve.text == "prose").all()
    assert curve.share_of_runs.tolist() == [0, 0, 0.25, 0.75, 0.75]
    assert evaluation.alarm_delays(alarms).loc["prose"].tolist() == [0.3, 0.75, 3, np.inf]
