import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from tiny import prompts, tiny_model

import eelib
from eelib.confidence.metrics import _KNOWN, METRICS, axis_label, confidence, register_metric
from eelib.confidence.separation import measure_separation
from eelib.errors import InvalidInputError
from eelib.plotting.style import metric_style


def test_a_case_by_hand():
    """p = (1/2, 1/4, 1/4): H = 1.5 bits."""
    found = confidence(torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64) * math.log(2) + 3)
    expected = {
        "entropy": -1.5 * math.log(2), "max_prob": 0.5, "margin": 0.25,
        "max_logit": 2 * math.log(2) + 3, "margin_logit": math.log(2),
    }  # fmt: skip
    assert {name: score.item() for name, score in found.items()} == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.floats(-30, 30), min_size=3, max_size=12))
def test_sharper_logits_are_more_confident(values):
    logits = torch.tensor(values, dtype=torch.float64)
    flat, sharp = confidence(logits), confidence(2 * logits)
    for metric in ("entropy", "max_prob"):
        assert sharp[metric] >= flat[metric] - 1e-9


def test_half_precision_and_large_vocabularies_stay_finite():
    logits = torch.full((2, 256_000), -30.0, dtype=torch.bfloat16)
    logits[0, 5] = 80.0
    found = confidence(logits)
    assert all(score.dtype == torch.float32 and score.isfinite().all() for score in found.values())
    # A quarter of a million terms are added up in float32: here to a ten-thousandth of their sum.
    assert found["max_prob"][0] == 1 and abs(found["entropy"][1] + math.log(256_000)) < 1e-3


def test_only_what_is_asked_is_computed_and_unknown_names_are_refused():
    assert list(confidence(torch.randn(2, 5), ("margin",))) == ["margin"]
    with pytest.raises(InvalidInputError, match=", ".join(METRICS)):
        confidence(torch.randn(2, 5), ("certainty",))


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=8), st.floats(0.1, 10))
def test_a_common_factor_scales_the_scores_on_logits(values, factor):
    """So it cannot change how max_logit and margin_logit rank tokens, nor their AUROC."""
    logits = torch.tensor(values, dtype=torch.float64)
    once, scaled = confidence(logits), confidence(factor * logits)
    for metric in ("max_logit", "margin_logit"):
        assert scaled[metric].item() == pytest.approx(factor * once[metric].item())


def test_a_common_factor_on_all_logits_leaves_the_auroc_of_scores_on_logits():
    torch.manual_seed(0)
    logits = torch.randn(300, 20, dtype=torch.float64) * torch.rand(300, 1, dtype=torch.float64) * 5
    agrees = torch.rand(300, dtype=torch.float64) < confidence(logits, ["max_prob"])["max_prob"]

    def auroc(factor):
        return {m: roc_auc_score(agrees, s) for m, s in confidence(factor * logits).items()}

    once, scaled = auroc(1.0), auroc(8.0)  # a power of two: no rounding, so no order changes
    assert all(once[m] == scaled[m] for m in ("max_logit", "margin_logit")) and once["max_prob"] != scaled["max_prob"]


@pytest.fixture
def top3():
    register_metric("top3", lambda z: z.softmax(-1).topk(3).values.sum(-1), label="Σ p(1..3)", low=0.0, high=1.0)
    yield "top3"
    del _KNOWN["top3"]


def test_a_metric_of_ones_own_goes_all_the_way(top3, tmp_path):
    """From a function to traces, AUROC, a figure's style, a calibration and lossless decoding."""
    model = tiny_model("llama")
    heads = eelib.ExitHeads.init(model, [2, 4], "none")
    traces = eelib.record_traces(model, heads, [p[0] for p in prompts(6)])
    assert traces.top3.between(0, 1).all() and axis_label(top3) == "Σ p(1..3)" and "color" in metric_style(top3)
    assert set(measure_separation(traces, ["entropy", top3], resamples=5).metric) == {"entropy", top3}
    calibration = eelib.calibrate(traces, top3, 0.01)
    calibration.to_json(tmp_path / "c.json")
    policy = eelib.Confidence.from_calibration(eelib.Calibration.from_json(tmp_path / "c.json"))
    assert eelib.verify_lossless(model, heads, policy, prompts(2), max_new_tokens=12).equal.all()


def test_metrics_that_cannot_be():
    for name in ("entropy", "two words", ""):
        with pytest.raises(InvalidInputError, match="identifier"):
            register_metric(name, lambda z: z[..., 0])
    register_metric("whole", lambda z: z)
    try:
        with pytest.raises(InvalidInputError, match=r"gave \[2, 5\].*expected \[2\]"):
            confidence(torch.randn(2, 5))
    finally:
        del _KNOWN["whole"]
