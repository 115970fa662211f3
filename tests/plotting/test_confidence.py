import io

import numpy as np
import pandas as pd
import pytest
from tiny import drawn

from eelib import confidence, plotting
from eelib.errors import InvalidInputError

METRICS = ["entropy", "margin"]


@pytest.fixture(scope="module")
def traces():
    """Two heads, at depths 2 and 4."""
    table = drawn(30, 0)
    table["margin"] += np.random.default_rng(1).normal(size=len(table))
    return table.assign(head_token=7)


def saved(table):
    """As a figure's CSV gives it back."""
    return pd.read_csv(io.StringIO(table.to_csv(index=False, float_format="%.6g")))


def labels(axes):
    return axes.get_legend_handles_labels()[1]


def test_a_panel_of_densities_a_depth_and_metric(traces):
    table = confidence.density_table(traces, METRICS)
    thresholds = pd.DataFrame({"depth": [2, 4, 4], "metric": ["entropy", "entropy", "margin"]})
    table = saved(table.merge(thresholds.assign(threshold=[0.5, 1.5, np.nan]), how="left"))
    figure = plotting.score_densities(table, epsilon=0.9)
    assert len(figure.axes) == 4
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["depth 2\ndensity", "depth 4\ndensity"]
    assert [axes.get_xlabel() for axes in figure.axes[2:]] == ["entropy: −H(p) [nats]", "margin: p(1) − p(2)"]
    assert [labels(axes)[2:] for axes in figure.axes] == [["ε = 0.9"], [], ["ε = 0.9"], []]
    right, wrong, threshold = figure.axes[2].lines
    part = table.query("depth == 4 and metric == 'entropy'")
    assert right.get_ydata().tolist() == part[part.agrees].density.tolist()
    assert wrong.get_ydata().tolist() == part[~part.agrees].density.tolist() and threshold.get_xdata() == [1.5, 1.5]
    assert [text.get_text() for text in figure.legends[0].texts] == ["right", "wrong", "ε = 0.9"]


def test_densities_without_thresholds_or_with_only_right_tokens(traces):
    table = confidence.density_table(traces, METRICS)
    figure = plotting.score_densities(table[table.agrees & (table.depth == 2)])
    assert len(figure.axes) == 2 and [len(axes.lines[1].get_xdata()) for axes in figure.axes] == [0, 0]
    assert [text.get_text() for text in figure.legends[0].texts] == ["right", "wrong"]


@pytest.mark.parametrize(
    ("make", "draw", "y", "label"),
    [
        (confidence.roc_table, plotting.roc_curves, "true_positive_rate", "wrong tokens above the threshold"),
        (confidence.risk_coverage_table, plotting.risk_coverage_curves, "risk", "tokens that exit"),
    ],
)
def test_a_panel_of_curves_a_depth(traces, make, draw, y, label):
    table = saved(make(traces, METRICS))
    figure = draw(table)
    assert [axes.get_title() for axes in figure.axes] == ["depth 2", "depth 4"]
    assert [labels(axes) for axes in figure.axes] == [METRICS] * 2 and label in figure.get_supxlabel()
    line = figure.axes[1].lines[0]
    assert line.get_ydata().tolist() == table.query("depth == 4 and metric == 'entropy'")[y].tolist()
    assert line.get_linestyle() != figure.axes[1].lines[1].get_linestyle(), "told apart without colour"
    partial = table[(table.depth == 2) | (table.metric == "margin")]
    assert len(draw(partial).axes[1].lines[0].get_xdata()) == 0, "a curve that is missing leaves the others"


def test_auroc_with_intervals_a_panel_a_kind_of_text(traces):
    kinds = {"own": traces.assign(combined=traces.entropy), "prose": traces.assign(combined=0.0)}
    table = saved(confidence.compare_separation(kinds, METRICS, beside=["combined"], resamples=20))
    figure = plotting.auroc_by_depth(table)
    assert [axes.get_title() for axes in figure.axes] == ["own", "prose"]
    assert [text.get_text() for text in figure.legends[0].texts] == [*METRICS, "combined"]
    for axes, text in zip(figure.axes, ("own", "prose"), strict=True):
        for bars, metric in zip(axes.containers, [*METRICS, "combined"], strict=True):
            of = table[(table.text == text) & (table.metric == metric)]
            assert bars.lines[0].get_ydata().tolist() == of.auroc.tolist()
            low, high = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()]).T
            assert low == pytest.approx(np.minimum(of.auroc_low, of.auroc)), "the interval"
            assert high == pytest.approx(np.maximum(of.auroc_high, of.auroc))
    beside = [bars.lines[0].get_xdata()[0] for bars in figure.axes[0].containers]
    assert beside == sorted(set(beside)) and np.mean(beside) == pytest.approx(2), "side by side around their depth"


def test_tables_that_nothing_can_be_drawn_from(traces):
    table = confidence.roc_table(traces, METRICS)
    for draw in (plotting.score_densities, plotting.risk_coverage_curves, plotting.auroc_by_depth):
        with pytest.raises(InvalidInputError, match="has no column"):
            draw(table)
    with pytest.raises(InvalidInputError, match="no rows"):
        plotting.roc_curves(table[:0])
