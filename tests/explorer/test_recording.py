"""What does not belong together is refused before anything is drawn; what does is plain JSON."""

import base64
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import Pattern, drawn, letters, prompts, random_heads

import eelib
from eelib.errors import HeadsError, InvalidInputError
from eelib.evaluation import Timings
from eelib.explorer import Recording, ThresholdLadder, trace_text
from eelib.explorer.recording import selection_table

LADDER = {"epsilons": (0.5, 0.7, 0.9), "metrics": ("max_prob", "entropy")}


def calibration_traces(decoded) -> pd.DataFrame:
    model, _, heads, *_ = decoded
    return eelib.record_traces(model, heads, [prompt[0] for prompt in prompts(12, 30, seed=4)])


def test_traces_of_another_text(decoded, recording):
    model, _, heads, policy, output = decoded
    other = eelib.generate(model, prompts(2)[1], heads=heads, policy=policy, max_new_tokens=40, eos_token_id=None)
    with pytest.raises(InvalidInputError, match="traces are of another text"):
        Recording(other, recording.traces, policy)
    shorter = replace(output, stats=replace(output.stats, emitted=10))
    with pytest.raises(InvalidInputError, match="traces are of another text"):
        Recording(shorter, recording.traces, policy)


def test_heads_of_other_depths(decoded, recording):
    model, tokenizer, _, policy, output = decoded
    with pytest.raises(HeadsError, match=r"tokens of depth \[1.*heads at \[2\]"):
        Recording(output, trace_text(model, tokenizer, output, random_heads(model, (2,))))
    with pytest.raises(HeadsError, match="thresholds for"):
        Recording(output, recording.traces, replace(policy, thresholds=(0.5,)))
    with pytest.raises(HeadsError, match=r"ladder of thresholds is for heads at \[2, 4\]"):
        Recording(output, recording.traces, policy, ThresholdLadder.of(drawn(9), **LADDER))
    with pytest.raises(HeadsError, match=r"timings are of heads at \[1\]"):
        Recording(output, recording.traces, policy, timings=Timings({("head", 1): 1.0}, 0.0, 0.0))


def test_thresholds_of_other_heads(decoded, recording):
    model, _, _, policy, output = decoded
    others = random_heads(model, seed=7)
    traces = eelib.record_traces(model, others, [prompt[0] for prompt in prompts(4, 20)])
    with pytest.raises(HeadsError, match="other heads of the same depths"):
        Recording(output, recording.traces, policy, ThresholdLadder.of(traces, **LADDER))


def test_an_empty_output(decoded, recording):
    model, tokenizer, _, _, output = decoded
    nothing = eelib.DecodingOutput(
        output.sequences[:, :7], output.trace[:0], replace(output.stats, emitted=0, rounds=0)
    )
    with pytest.raises(InvalidInputError, match="no new token"):
        trace_text(model, tokenizer, nothing)
    with pytest.raises(InvalidInputError, match="no new token"):
        Recording(nothing, recording.traces)
    with pytest.raises(InvalidInputError, match="output of type str"):
        Recording("text", recording.traces)


def test_a_metric_that_was_not_traced(decoded, recording):
    *_, policy, output = decoded
    scores = {"entropy": recording.traces.scores["entropy"]}
    with pytest.raises(InvalidInputError, match="metric 'max_prob' is not in the traces, which have entropy"):
        Recording(output, replace(recording.traces, scores=scores), policy)


def test_another_policy_than_the_outputs(decoded, recording):
    *_, policy, output = decoded
    for other in (replace(policy, max_draft=1), eelib.FixedExit(3, 5), eelib.Never()):
        with pytest.raises(InvalidInputError, match=r"A round of the output has .* pass the policy that made it"):
            Recording(output, recording.traces, other)
    model, tokenizer, heads, *_ = decoded
    looked_up = eelib.generate(model, prompts(1)[0], policy=eelib.Lookup(4, 0.1, (1,)), max_new_tokens=40)
    assert looked_up.stats.drafted
    traces = trace_text(model, tokenizer, looked_up, heads)
    with pytest.raises(InvalidInputError, match=r"drafts of depth \[0\]"):
        Recording(looked_up, traces, policy)


def test_nan_scores(recording):
    scores = {metric: of.copy() for metric, of in recording.traces.scores.items()}
    scores["margin"][0, 3, 1] = float("nan")
    with pytest.raises(InvalidInputError, match=r"margin of new token 3 at depth 3 is not a number"):
        replace(recording.traces, scores=scores)


def test_json_holds_all_that_was_recorded(recording):
    held = json.loads(json.dumps(recording.to_json(), allow_nan=False))
    traces, trace = recording.traces, recording.output.trace
    scores = np.frombuffer(base64.b64decode(held["drafts"][0]["scores"]["entropy"]), "<f4").reshape(-1, 4)
    np.testing.assert_array_equal(scores, traces.scores["entropy"][0])
    assert sum(len(one["drafts"]) for one in held["rounds"]) == recording.output.stats.drafted
    assert [d[:2] for one in held["rounds"] for d in one["drafts"]] == trace.loc[
        trace.drafted, ["token_id", "depth"]
    ].values.tolist()
    assert "".join(held["pieces"]) == letters().decode(recording.output.sequences[0])


def test_the_sliders_say_the_policy_that_was_recorded(decoded, recording):
    *_, heads, policy, output = decoded
    said = recording.policy_of(recording.settings)
    assert said == replace(policy, depths=heads.depths, heads_fingerprint=heads.fingerprint())
    model, tokenizer, *_ = decoded
    for policy in (
        eelib.Never(), eelib.FixedExit(3, 2), eelib.Lookup(4, 0.3, (3, 2)),
        eelib.Confidence("entropy", (-2.5, None, float("-inf")), 3, lookup=eelib.Lookup(5)),
    ):  # fmt: skip
        output = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=12)
        made = Recording(output, trace_text(model, tokenizer, output, heads), policy)
        said = made.policy_of(made.settings)
        again = eelib.generate(model, prompts(1)[0], heads=heads, policy=said, max_new_tokens=12)
        pd.testing.assert_frame_equal(again.trace, output.trace)


def test_a_policy_of_your_own_is_shown_and_not_replayed(decoded):
    model, tokenizer, heads, *_ = decoded
    policy = Pattern((1, 3))
    output = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=12)
    held = Recording(output, trace_text(model, tokenizer, output, heads), policy).to_json()
    assert not held["replayed"] and held["policy"].startswith("Pattern(") and held["settings"]["kind"] == "confidence"


def test_sampled_text_has_no_what_if(decoded):
    model, tokenizer, heads, policy, _ = decoded
    torch.manual_seed(0)
    output = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=40, do_sample=True)
    made = Recording(output, trace_text(model, tokenizer, output, heads), policy)
    assert "of this text is what the full model says first" in made.to_json()["what_if"]


def test_the_ladder_is_what_calibrate_says_and_the_sliders_start_on_its_step(decoded, recording):
    traces = calibration_traces(decoded)
    ladder = ThresholdLadder.of(traces, methods=("empirical", "cascade", "risk"), delta=0.3, **LADDER)
    for method, metric, step in (("empirical", "entropy", 0), ("cascade", "max_prob", 2), ("risk", "entropy", 1)):
        delta = 0.3 if method == "risk" else None
        calibration = eelib.calibrate(traces, metric, ladder.epsilons[step], method, delta)
        assert ladder.thresholds[method][metric][step] == calibration.thresholds
    model, tokenizer, heads, *_ = decoded
    for deepest in (None, 3):
        calibration = eelib.calibrate(traces, "entropy", 0.5)
        policy = eelib.Confidence.from_calibration(calibration, 3, deepest=deepest)
        output = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=12)
        made = Recording(output, trace_text(model, tokenizer, output, heads), policy, ladder)
        settings = made.settings
        found = {name: settings[name] for name in ("method", "epsilon", "metric")}
        assert found == {"method": "empirical", "epsilon": 0.5, "metric": "entropy"}
        assert made.policy_of(settings) == replace(policy, heads_fingerprint=heads.fingerprint())


def test_what_is_wrong_with_a_ladder_is_said():
    for wrong in ({"epsilons": (1.5,)}, {"metrics": ("unknown",)}, {"methods": ("unknown",)}, {"epsilons": ()}):
        with pytest.raises(InvalidInputError):
            ThresholdLadder.of(drawn(4), **LADDER | wrong)


def test_selection_has_a_row_for_every_exit(recording):
    table = selection_table(recording, [0, 5])
    traces = recording.traces
    assert table.depth.tolist() == [1, 3, 5, 6] * 2 and table.position.tolist() == [7] * 4 + [12] * 4
    full = table[table.depth == 6]
    assert full.head_token.tolist() == full.token_id.tolist() == traces.teacher[[0, 5]].tolist()
    assert (full.kl == 0).all() and full.agrees.all()
    np.testing.assert_allclose(full.probability, traces.scores["max_prob"][0, [0, 5], -1], rtol=1e-5)
    assert selection_table(recording, []).columns.tolist() == table.columns.tolist()
