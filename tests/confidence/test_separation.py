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
    assert (found.agreement_low < found.agreement).all() and (found.agreement < found.agreement_high).all()
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


TOKENS = pd.DataFrame(
    {
        "sequence": 0, "position": range(5), "depth": 2, "head_token": [7, 7, 7, 7, -1],
        "agrees": [True, True, False, False, False], "entropy": [-1.0, -3.0, -2.0, -4.0, -np.inf],
    }
)  # fmt: skip
"""Two right tokens, two wrong ones, one declined."""


def test_density_table_by_hand():
    """Scores 0, 1, ..., 200, of which 0 and 200 are cut off: 99 are in the first of two bins, 100 in the second."""
    score = np.arange(201.0)
    tokens = pd.DataFrame({"depth": 2, "head_token": 7, "agrees": score >= 150, "entropy": score})
    declined = tokens.assign(head_token=-1, entropy=-np.inf)
    table = separation.density_table(pd.concat([tokens, declined]), ["entropy"], bins=2)
    assert list(table) == ["depth", "metric", "agrees", "score", "density"]
    assert table.agrees.tolist() == [False, False, True, True] and table.score.tolist() == [50.5, 149.5] * 2
    assert table.density.tolist() == pytest.approx([99 / 149 / 99, 50 / 149 / 99, 0, 1 / 99])


def test_roc_table_by_hand():
    """From strict to loose: right, wrong, right, wrong; the declined token is none of them."""
    table = separation.roc_table(TOKENS, ["entropy"], points=3).set_index("false_positive_rate")
    assert list(table.true_positive_rate) == [0.5, 1.0, 1.0] and set(table.depth) == {2}
    one_sided = TOKENS.assign(agrees=TOKENS.head_token >= 0, depth=4)
    assert set(separation.roc_table(pd.concat([TOKENS, one_sided]), ["entropy"]).depth) == {2}
    with pytest.raises(InvalidInputError, match="nothing to separate"):
        separation.roc_table(one_sided, ["entropy"])


def test_risk_coverage_table_by_hand():
    """Of five tokens four can exit: risks 0, 1/2, 1/3, 1/2 at coverages 1/5, 2/5, 3/5, 4/5."""
    table = separation.risk_coverage_table(TOKENS, ["entropy"], points=80)
    assert table.coverage.min() == 0.01 and table.coverage.max() == pytest.approx(0.8) and len(table) == 80
    at = table.set_index(table.coverage.round(6)).risk
    assert at[0.01] == 0 and at[0.4] == pytest.approx(0.5) and at[0.6] == pytest.approx(1 / 3) and at[0.8] == 0.5
    silent = TOKENS.assign(entropy=-np.inf, head_token=-1, depth=4)
    assert set(separation.risk_coverage_table(pd.concat([TOKENS, silent]), ["entropy"]).depth) == {2}
    for draw in (separation.density_table, separation.risk_coverage_table):
        with pytest.raises(InvalidInputError, match="nothing to separate"):
            draw(silent, ["entropy"])


def test_several_kinds_of_text_are_corrected_together(traces):
    traces = traces.assign(beside=traces.max_prob)
    table = separation.compare_separation(
        {"own": traces, "prose": traces[traces.sequence < 20]},
        ("entropy", "max_prob"),
        beside=("beside",),
        resamples=50,
    )
    assert table.text.tolist() == ["own"] * 3 + ["prose"] * 3 and table.index.tolist() == [*range(6)]
    alone = separation.measure_separation(traces, ("entropy", "max_prob", "beside"), resamples=50)
    assert table[:3].drop(columns=["text", "p_corrected"]).equals(alone)
    compared = table[table.metric == "max_prob"]
    assert compared.p_corrected.tolist() == pytest.approx((2 * compared.p).tolist()), "one comparison a kind of text"
    assert table[table.metric != "max_prob"].p_corrected.isna().all()


def verdict(**rivals):
    """Of metrics that lead entropy's AUROC by so much, with such a corrected p."""
    rows = [{"metric": "entropy", "auroc": 0.7, "auroc_less_entropy": 0.0, "p_corrected": np.nan}]
    rows += [
        {"metric": m, "auroc": 0.7 + lead, "auroc_less_entropy": lead, "p_corrected": p}
        for m, (lead, p) in rivals.items()
    ]
    table = pd.DataFrame(rows).assign(text="own", depth=6)
    table = table.assign(auroc_less_entropy_low=-1.0, auroc_less_entropy_high=1.0)
    return separation.judge_reference(table).iloc[0]


def test_verdicts():
    lost = verdict(max_prob=(0.1, 0.01), margin=(0.2, 0.001), max_logit=(0.3, 0.2))
    assert (lost.best, lost.better, lost.rival, lost.p_corrected) == ("no", "max_prob, margin", "max_logit", 0.2)
    won = verdict(max_prob=(-0.1, 0.01), margin=(-0.05, 0.04))
    assert (won.best, won.better, won.rival, won.auroc_less_entropy) == ("yes", "", "margin", -0.05)
    assert verdict(max_prob=(-0.1, 0.01), margin=(-0.05, 0.05)).best == "undecided"
    assert verdict(max_prob=(0.1, 0.05)).best == "undecided"
    with pytest.raises(InvalidInputError, match="compared with 'margin'"):
        separation.judge_reference(pd.DataFrame({"text": [], "p_corrected": []}), "margin")
