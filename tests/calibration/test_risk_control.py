import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import drawn, traces_of

import eelib
from eelib.calibration.cascade import TARGETS, HeadScores
from eelib.calibration.p_values import betting
from eelib.calibration.risk_control import risk_path
from eelib.calibration.thresholds import METHODS, achieved
from eelib.errors import CorpusError, InvalidInputError

TWO_HEADS = traces_of([
    ("a", (0.9, 0.9), (True, False)),  # exits at the first head, rightly
    ("a", (0.1, 0.9), (True, False)),  # at the second, wrongly
    ("b", (0.1, 0.1), (True, True)),  # nowhere
    ("b", (0.9, 0.1), (False, True)),  # at the first, wrongly
])  # fmt: skip


def test_losses_by_hand():
    tokens = HeadScores.of(TWO_HEADS, "entropy")
    assert tokens.exits((0.5, 0.5)).tolist() == [[True, False], [False, True], [False, False], [True, False]]
    assert tokens.losses((0.5, 0.5), "output_agreement", 0.9).tolist() == [0.5, 0.5]
    # a: 0.1 + (-0.1 + 0.9) / 2; b: 0.1 + 0.9 / 2
    assert tokens.losses((0.5, 0.5), "exit_agreement", 0.9) == pytest.approx([0.5, 0.55])
    assert tokens.losses((0.5, None), "exit_agreement", 0.9) == pytest.approx([0.05, 0.55])
    assert tokens.losses((None, None), "exit_agreement", 0.9) == pytest.approx([0.1, 0.1])


@given(st.integers(0, 50), st.floats(0.3, 0.95))
def test_a_mean_loss_below_its_bound_is_the_target_met(seed, epsilon):
    tokens = HeadScores.of(drawn(6, seed), "entropy")
    exits = tokens.exits((0.3, 1.2))
    exited, agreed = exits.sum(), (exits & tokens.agrees).sum()
    for target, met in (
        ("exit_agreement", agreed - epsilon * exited),
        ("output_agreement", 1 - (exited - agreed) / len(exits) - epsilon),
    ):
        assert (tokens.losses((0.3, 1.2), target, epsilon).mean() <= 1 - epsilon) == (met >= 0) or abs(met) < 1e-9


def test_the_path_only_loosens_and_every_sequence_weighs_the_same():
    traces = drawn(12)
    path = risk_path(HeadScores.of(traces, "margin"))
    assert (np.diff(path, axis=0) <= 0).all() and len(path) > 5 and np.isfinite(path[-1]).all()
    long = pd.concat([traces, *[traces[traces.sequence == 3]] * 4])
    assert np.array_equal(path, risk_path(HeadScores.of(long, "margin")))


@pytest.mark.parametrize("target", TARGETS)
def test_repeated_rows_of_a_sequence_change_nothing(target):
    traces = drawn(60)
    for repeated in (pd.concat([traces, traces]), pd.concat([traces, *[traces[traces.sequence == 5]] * 3])):
        found, again = (eelib.calibrate(t, "margin", 0.7, "risk", 0.1, target, seed=3) for t in (traces, repeated))
        assert found.thresholds == again.thresholds and found.p_value == pytest.approx(again.p_value)


@pytest.mark.parametrize("target", TARGETS)
def test_on_a_fixed_path_thresholds_do_not_fall_as_epsilon_rises(target):
    traces, path = drawn(80), risk_path(HeadScores.of(drawn(20, seed=9), "margin"))[20:]
    found = [eelib.calibrate(traces, "margin", e, "risk", 0.1, target, path=path) for e in np.linspace(0.4, 0.95, 12)]
    limits = np.array([[np.inf if t is None else t for t in one.thresholds] for one in found])
    assert (limits[1:] >= limits[:-1]).all() and len(np.unique(limits, axis=0)) > 2


@pytest.mark.parametrize("target", TARGETS)
def test_a_given_path_is_tested_by_all_sequences(target):
    traces, path = drawn(60), risk_path(HeadScores.of(drawn(20, seed=9), "margin"))[20:]
    found = eelib.calibrate(traces, "margin", 0.7, "risk", 0.1, target, path=path, seed=1)
    tokens, last, p = HeadScores.of(traces, "margin"), None, None
    for thresholds in path:
        evidence = betting(tokens.losses(thresholds, target, 0.7), 0.3)
        if evidence > 0.1:
            break
        last, p = thresholds, evidence
    assert found.thresholds == tuple(last) and found.p_value == pytest.approx(p) and found.tested_on == 60
    assert found.thresholds == eelib.calibrate(traces, "margin", 0.7, "risk", 0.1, target, path=path).thresholds
    one = traces[traces.sequence == 0]
    assert eelib.calibrate(one, "margin", 0.7, "risk", 0.1, target, path=path).tested_on == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", TARGETS)
def test_heads_that_never_agree_hardly_exit(method, target):
    traces = drawn(40).assign(agrees=False)
    found = eelib.calibrate(traces, "margin", 0.9, method, 0.05 if method == "risk" else None, target)
    exits = achieved(traces, found)
    if target == "exit_agreement":
        assert found.thresholds == (None, None)
    assert exits.exited.sum() <= 0.1 * exits.query("depth == 2").tokens.sum()


def test_risk_lets_more_out_with_more_sequences_and_less_with_a_smaller_delta():
    def coverage(n, delta=0.1):
        found = eelib.calibrate(drawn(n), "margin", 0.7, "risk", delta)
        exits = achieved(drawn(200, seed=1), found)
        return exits.exited.sum() / exits.query("depth == 2").tokens.sum()

    assert coverage(300) > coverage(40) > 0 and coverage(80, 1e-6) < coverage(80, 0.1)


def test_cascade_calibrates_on_what_reaches_a_head():
    rows = [(i, (0.9, 0.9), (True, True)) for i in range(8)]  # the first head takes these,
    rows += [(i, (0.1, 0.9), (True, i == 8)) for i in range(8, 10)]  # and leaves the second two that it has half right
    traces = traces_of(rows)
    traces.loc[(traces.depth == 2) & (traces.margin < 0.5), "agrees"] = False
    assert eelib.calibrate(traces, "margin", 0.9).thresholds == (0.9, 0.9), "9 of 10 alone"
    assert eelib.calibrate(traces, "margin", 0.9, "cascade").thresholds == (0.9, None), "1 of 2 in order"


@given(st.integers(0, 100), st.floats(0.5, 0.98), st.sampled_from(("empirical", "cascade")))
def test_output_agreement_holds_on_the_calibration_text(seed, epsilon, method):
    traces = drawn(8, seed)
    exits = achieved(traces, eelib.calibrate(traces, "margin", epsilon, method, target="output_agreement"))
    wrong = exits.exited.sum() - exits.agreed.sum()
    assert wrong <= (1 - epsilon) * exits.query("depth == 2").tokens.sum() + 1e-9


def test_risk_saved_and_loaded(tmp_path):
    found = eelib.calibrate(drawn(60), "max_logit", 0.7, "risk", 0.1, "output_agreement")
    found.to_json(tmp_path / "c.json")
    loaded = eelib.Calibration.from_json(tmp_path / "c.json")
    assert (loaded.method, loaded.target, loaded.delta) == ("risk", "output_agreement", 0.1)
    assert (loaded.p_value, loaded.tested_on) == (found.p_value, 42) and loaded.p_value <= 0.1


def test_bad_input():
    traces = drawn(6)
    for changes in (
        {"delta": None}, {"delta": 0.0}, {"delta": 1.0}, {"delta": float("nan")}, {"p_value": "hope"},
        {"path": [[0.1, 0.1], [0.2, 0.0]]}, {"path": [[0.1]]}, {"path": [[float("nan"), 0.1]]}, {"path": []},
    ):  # fmt: skip
        with pytest.raises(InvalidInputError):
            eelib.calibrate(traces, "margin", 0.9, "risk", **{"delta": 0.1, **changes})
    with pytest.raises(InvalidInputError, match="takes no delta or path"):
        eelib.calibrate(traces, "margin", 0.9, "cascade", path=[[0.1, 0.1]])
    with pytest.raises(CorpusError, match="two sequences"):
        eelib.calibrate(traces[traces.sequence == 0], "margin", 0.9, "risk", 0.1)
    with pytest.raises(InvalidInputError, match="same tokens in the same order"):
        eelib.calibrate(traces[1:], "margin", 0.9)
    with pytest.raises(InvalidInputError, match="NaN"):
        eelib.calibrate(traces.assign(margin=float("nan")), "margin", 0.9)


@pytest.mark.slow
def test_a_million_tokens_of_four_heads_take_a_few_times_their_sorting_and_two_gigabytes():
    """The processor's own seconds, beside those of sorting the same rows: so on a slow or a busy machine, too."""
    draw, tokens, heads = np.random.default_rng(0), 1_000_000, 4
    sequence, position = np.divmod(np.arange(tokens), 200)
    scores = draw.normal(size=(tokens, heads)).astype(np.float32)
    traces = pd.DataFrame({
        "sequence": sequence.repeat(heads), "position": position.repeat(heads),
        "head": np.tile(np.arange(heads), tokens), "depth": np.tile([6, 12, 18, 24], tokens),
        "entropy": scores.ravel(), "agrees": (draw.random((tokens, heads)) < 1 / (1 + np.exp(-2 * scores))).ravel(),
    })  # fmt: skip
    started = time.process_time()
    traces.sort_values("entropy")
    sorting = time.process_time() - started
    for method in METHODS:
        given = "entropy", 0.9, method, 0.05 if method == "risk" else None
        started = time.process_time()
        found = eelib.calibrate(traces, *given)
        seconds = time.process_time() - started
        assert any(t is not None for t in found.thresholds) and seconds < 20 * sorting, "2 to 3 times where measured"
        tracemalloc.start()
        assert eelib.calibrate(traces, *given).thresholds == found.thresholds
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2e9
