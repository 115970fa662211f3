import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from eelib.confidence import separation
from eelib.errors import InvalidInputError


def test_risk_coverage_by_hand():
    curve = separation.risk_coverage(
        np.array([0.9, 0.5, 0.5, 0.1, -np.inf]), np.array([True, True, False, False, False])
    )
    assert curve.coverage.tolist() == [0.2, 0.6, 0.8] and curve.threshold.tolist() == [0.9, 0.5, 0.1]
    assert curve.risk.round(6).tolist() == [0, 0.333333, 0.5]
    assert separation.aurc(np.array([2.0, 1.0]), np.array([True, False])) == 0.25


@pytest.fixture(scope="module")
def traces():
    generator, rows = np.random.default_rng(0), []
    for sequence in range(30):
        agrees = generator.random(40) < 0.5
        good = agrees + generator.normal(size=40)
        rows.append(
            pd.DataFrame(
                {
                    "sequence": sequence,
                    "depth": 6,
                    "agrees": agrees,
                    "entropy": generator.normal(size=40),
                    "max_prob": good,
                    "head_token": 5,
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def test_separation_ranks_and_brackets(traces):
    found = separation.measure_separation(traces, ("entropy", "max_prob"), resamples=100).set_index("metric")
    assert found.auroc["max_prob"] == pytest.approx(roc_auc_score(traces.agrees, traces.max_prob))
    assert found.auroc_low["entropy"] < 0.5 < found.auroc_high["entropy"]
    assert found.auroc_less_entropy_low["max_prob"] > 0.1 and found.auroc_less_entropy["entropy"] == 0
    assert found.aurc["max_prob"] < found.aurc["entropy"] and found.aupr["max_prob"] > found.aupr["entropy"]


def test_resampled_by_weights_is_what_scikit_learn_says(traces):
    """With ties, and sequences that are not drawn at all."""
    scores, agrees = traces.max_prob.round(1).to_numpy(), traces.agrees.to_numpy()
    weights = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=7)
    found = separation._weighted(scores, agrees, traces.sequence.to_numpy(), weights)
    for i, chosen in enumerate(weights[:, traces.sequence]):
        assert found["auroc"][i] == pytest.approx(roc_auc_score(agrees, scores, sample_weight=chosen))
        assert found["aupr"][i] == pytest.approx(average_precision_score(agrees, scores, sample_weight=chosen))
        repeated = np.repeat(scores, chosen), np.repeat(agrees, chosen)
        assert found["aurc"][i] == pytest.approx(separation.aurc(*repeated))


def test_p_is_small_for_a_better_metric_and_even_for_an_equal_one(traces):
    found = separation.measure_separation(traces, ("entropy", "max_prob"), resamples=200).set_index("metric")
    assert found.p["max_prob"] < 1e-6 and found.p["entropy"] == 1
    draw, small = np.random.default_rng(2), 0
    for _ in range(100):  # two scores that are as good as each other: p is below 0.1 one time in ten
        table = traces.assign(entropy=traces.agrees + draw.normal(size=len(traces)) * 2)
        table["max_prob"] = table.agrees + draw.normal(size=len(traces)) * 2
        small += separation.measure_separation(table, ("entropy", "max_prob"), resamples=100).p.iloc[1] < 0.1
    assert 2 <= small <= 20
    with pytest.raises(InvalidInputError, match="reference"):
        separation.measure_separation(traces, ("max_prob",))


def test_repeating_tokens_within_a_sequence_narrows_nothing(traces):
    once = separation.measure_separation(traces, ("entropy", "max_prob"), resamples=50)
    thrice = separation.measure_separation(pd.concat([traces] * 3), ("entropy", "max_prob"), resamples=50)
    assert np.allclose(once[["auroc_low", "auroc_high"]], thrice[["auroc_low", "auroc_high"]])


def test_a_head_that_always_declines_has_no_row_and_all_such_heads_are_an_error(traces):
    silent = traces.assign(head_token=-1)
    depth = traces.depth.iloc[0]
    both = pd.concat([traces, silent.assign(depth=depth + 1)])
    assert set(separation.measure_separation(both, ("entropy",), resamples=5).depth) == set(traces.depth)
    with pytest.raises(InvalidInputError, match="nothing to separate"):
        separation.measure_separation(silent, ("entropy",), resamples=5)
