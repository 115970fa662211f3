import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import prompts, tiny_model

import eelib
from eelib.calibration.thresholds import achieved, achieved_agreement
from eelib.errors import CorpusError, HeadsError, InvalidInputError


def traces_of(scores, agrees, depth=2, sequence=0):
    n = len(scores)
    table = {"sequence": sequence, "position": range(n), "head": 0, "depth": depth, "agrees": agrees}
    return pd.DataFrame({**table, **{m: np.asarray(scores, float) for m in eelib.METRICS}})


def test_by_hand():
    traces = traces_of([0.9, 0.8, 0.7, 0.6, 0.5], [True, True, False, True, False])
    # running agreement, most confident first: 1, 1, 2/3, 3/4, 3/5
    assert eelib.calibrate(traces, "max_prob", 0.9).thresholds == (0.8,)
    assert eelib.calibrate(traces, "max_prob", 0.75).thresholds == (0.6,)
    found = eelib.calibrate(traces, "max_prob", 0.6)
    assert found.thresholds == (0.5,) and found.table.coverage[0] == 1 and found.table.exit_agreement[0] == 0.6


def test_tied_scores_exit_together_or_not_at_all():
    traces = traces_of([0.9, 0.5, 0.5, 0.5], [True, True, True, False])
    assert eelib.calibrate(traces, "max_prob", 0.8).thresholds == (0.9,)
    assert eelib.calibrate(traces, "max_prob", 0.75).thresholds == (0.5,)


def test_a_head_that_never_agrees_never_exits():
    found = eelib.calibrate(traces_of([0.9, 0.2], [False, False]), "entropy", 0.01)
    assert found.thresholds == (None,) and found.table.coverage[0] == 0


table = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40)


@given(table, st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_promise_kept_on_the_calibration_text_and_stricter_never_looser(rows, a, b):
    traces = traces_of([r[0] for r in rows], [r[1] for r in rows])
    loose, strict = (eelib.calibrate(traces, "margin", e).thresholds[0] for e in sorted((a, b)))
    if strict is not None:
        assert loose <= strict
        exits = traces[traces.margin >= strict]
        assert exits.agrees.mean() >= max(a, b) - 1e-9
        looser = [t for t in traces.margin.unique() if t < strict]
        assert all(traces[traces.margin >= t].agrees.mean() < max(a, b) for t in looser)


@given(table, st.floats(0.05, 0.95))
def test_order_of_rows_does_not_matter(rows, epsilon):
    traces = traces_of([r[0] for r in rows], [r[1] for r in rows])
    assert eelib.calibrate(traces, "margin", epsilon).thresholds == (
        eelib.calibrate(traces[::-1], "margin", epsilon).thresholds
    )


def test_tokens_pass_the_heads_in_order():
    first, second = (
        traces_of([0.9, 0.1, 0.1], [True, False, True], depth=2),
        traces_of([0.9, 0.9, 0.1], [False, True, False], depth=4).assign(head=1),
    )
    traces = pd.concat([first, second]).sort_values(["sequence", "position", "head"], ignore_index=True)
    calibration = eelib.calibrate(traces, "max_prob", 0.4)
    calibration = eelib.Calibration(
        (2, 4), (0.5, 0.5), "max_prob", 0.4, "exit_agreement", "empirical", None, calibration.table
    )
    found = achieved(traces, calibration).set_index("depth")
    assert found.loc[2, ["reached", "exited", "agreed"]].tolist() == [3, 1, 1]
    assert found.loc[4, ["reached", "alone", "alone_agreed", "exited", "agreed"]].tolist() == [2, 2, 1, 1, 1]
    with pytest.raises(InvalidInputError, match="differ in depths"):
        achieved(first, calibration)


def test_achieved_agreement_weighs_sequences_alike():
    short = traces_of([0.9, 0.9], [True, False])
    long = traces_of([0.9, 0.1, 0.1, 0.9], [True, True, False, True], sequence=1)
    traces, table = pd.concat([short, long]), eelib.calibrate(short, "max_prob", 0.4).table
    for target, expected in (("exit_agreement", (0.5 + 0.5) / (1 + 0.5)), ("output_agreement", (0.5 + 1) / 2)):
        calibration = eelib.Calibration((2,), (0.5,), "max_prob", 0.4, target, "empirical", None, table)
        found = achieved_agreement(traces, calibration)
        assert found["achieved"] == pytest.approx(expected) and found["coverage"] == 0.75
        assert found["achieved_low"] <= found["achieved"] <= found["achieved_high"]
    silent = eelib.Calibration((2,), (None,), "max_prob", 0.4, "exit_agreement", "empirical", None, table)
    assert np.isnan(achieved_agreement(traces, silent)["achieved"])


def test_saved_and_loaded(tmp_path):
    traces = pd.concat([traces_of([0.9, 0.2], [True, False]), traces_of([0.9, 0.2], [False, False], depth=4)])
    traces["entropy"] -= 1
    found = eelib.calibrate(traces, "entropy", 0.8)
    found.to_json(tmp_path / "c.json")
    loaded = eelib.Calibration.from_json(tmp_path / "c.json")
    assert (loaded.thresholds, loaded.depths, loaded.epsilon) == ((pytest.approx(-0.1), None), (2, 4), 0.8)
    assert eelib.Confidence.from_calibration(loaded).thresholds == loaded.thresholds
    first, *others = loaded.thresholds
    shallow = eelib.Confidence.from_calibration(loaded, deepest=loaded.depths[0])
    assert (
        shallow.thresholds == (first, *[None] * len(others)) and shallow.exit_depths(loaded.depths) == loaded.depths[:1]
    )
    assert loaded.digest == found.digest
    (tmp_path / "bad.json").write_text("{}")
    for name in ("bad.json", "missing.json"):
        with pytest.raises(InvalidInputError, match="holds no calibration"):
            eelib.Calibration.from_json(tmp_path / name)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_epsilon_outside_its_range(epsilon):
    with pytest.raises(InvalidInputError, match="epsilon"):
        eelib.calibrate(traces_of([1.0], [True]), "entropy", epsilon)


def test_other_bad_input():
    traces = traces_of([1.0], [True])
    for kwargs in ({"metric": "certainty"}, {"method": "hope"}, {"target": "all"}, {"delta": 0.1}):
        with pytest.raises(InvalidInputError):
            eelib.calibrate(traces, **{"metric": "entropy", "epsilon": 0.9, **kwargs})
    with pytest.raises(CorpusError):
        eelib.calibrate(traces[:0], "entropy", 0.9)
    with pytest.raises(InvalidInputError, match="a number, or None"):
        eelib.Confidence("entropy", (float("nan"),))
    with pytest.raises(InvalidInputError):
        eelib.Confidence("certainty", (0.5,))


@pytest.fixture
def saved(tmp_path):
    """A calibration file, and a function that writes it changed: with a digest that fits, or as an accident would."""
    found = eelib.calibrate(traces_of([0.9, 0.8, 0.2], [True, True, False]), "max_prob", 0.8)
    found.to_json(tmp_path / "c.json")

    def change(fitting=True, **changes):
        content = json.loads((tmp_path / "c.json").read_text()) | changes
        if fitting:  # whoever can write the file can write its digest
            rest = {name: value for name, value in content.items() if name != "digest"}
            content["digest"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
        (tmp_path / "changed.json").write_text(json.dumps(content))
        return tmp_path / "changed.json"

    return found, change


def test_a_changed_file_is_refused_and_a_forged_one_by_the_digest_expected(saved):
    found, change = saved
    with pytest.raises(InvalidInputError, match="changed after it was written"):
        eelib.Calibration.from_json(change(fitting=False, thresholds=[0.0]))
    forged = change(thresholds=[0.0])
    assert eelib.Calibration.from_json(forged).thresholds == (0.0,), "the file alone cannot tell"
    with pytest.raises(InvalidInputError, match="another calibration than expected"):
        eelib.Calibration.from_json(forged, digest=found.digest)
    assert eelib.Calibration.from_json(change(), digest=found.digest).thresholds == found.thresholds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": [float("nan")]}, "finite numbers or None"),
        ({"thresholds": [float("-inf")]}, "finite numbers or None"),
        ({"thresholds": ["0.5"]}, "finite numbers or None"),
        ({"thresholds": [True]}, "finite numbers or None"),
        ({"thresholds": [-0.5]}, "values between 0 and 1"),
        ({"thresholds": [0.5, 0.5]}, "2 thresholds for heads at depths"),
        ({"thresholds": []}, "0 thresholds"),
        ({"metric": "max_logits"}, "Unknown metric"),
        ({"metric": "entropy"}, "values between -inf and 0"),
        ({"epsilon": 1.5}, "epsilon=1.5"),
        ({"epsilon": None}, "epsilon=None"),
        ({"method": "hope"}, "Unknown calibration method"),
        ({"target": "all"}, "Unknown target"),
        ({"more": 1}, "holds no calibration"),
        ({"table": 3}, "holds no calibration"),
    ],
)
def test_values_that_no_calibration_has(saved, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        eelib.Calibration.from_json(saved[1](**changes))


def test_a_calibration_is_for_the_heads_that_its_traces_are_of(tmp_path):
    model = tiny_model("llama")
    heads = eelib.ExitHeads.init(model, [2, 4], "mlp")
    traces = eelib.record_traces(model, heads, [p[0] for p in prompts(4)])
    calibration = eelib.calibrate(traces, "margin", 0.01)
    assert calibration.heads_fingerprint == heads.fingerprint()
    policy = eelib.Confidence.from_calibration(calibration)
    eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=4)

    heads.save_pretrained(tmp_path)
    same = eelib.ExitHeads.from_pretrained(tmp_path, tiny_model("llama").to(torch.bfloat16))
    assert same.fingerprint() == heads.fingerprint(), "the same in another dtype"
    with torch.no_grad():
        next(heads.parameters()).add_(0.1)
    for others in (heads, None):
        with pytest.raises(HeadsError, match="calibrate anew"):
            eelib.generate(model, prompts(1)[0], heads=others, policy=policy, max_new_tokens=4)
