import numpy as np
import pandas as pd
import pytest

from eelib import plotting
from eelib.errors import InvalidInputError

TARGETS, METHODS = ["exit_agreement", "output_agreement"], ["empirical", "cascade", "risk"]


def with_interval(table, name):
    return table.assign(**{f"{name}_low": table[name] - 0.01, f"{name}_high": table[name] + 0.02})


@pytest.fixture
def achieved():
    """As `achieved_table` gives it; nothing exits by `risk` at the stricter ε."""
    rows = [
        {"target": target, "metric": metric, "method": method, "epsilon": epsilon, "coverage": 1 - epsilon}
        for target in TARGETS for metric in ("entropy", "margin") for method in METHODS for epsilon in (0.6, 0.9)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    silent = (table.method == "risk") & (table.epsilon == 0.9)
    return with_interval(table.assign(achieved=np.where(silent, np.nan, table.epsilon - 0.05)), "achieved")


def test_a_row_a_target_a_column_a_metric_and_coverage_last(achieved):
    figure = plotting.promised_against_achieved(achieved)
    first = figure.axes[:3]
    assert len(figure.axes) == 6 and [axes.get_title() for axes in first] == ["entropy", "margin", "entropy"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["achieved exit agreement", "achieved output agreement"]
    assert figure.axes[2].get_ylabel() == "coverage" and figure.get_supxlabel() == "promised ε"
    points = first[0].containers[1].lines[0]
    assert points.get_xdata().tolist() == [0.6, 0.9] and points.get_ydata() == pytest.approx([0.55, 0.85])
    assert first[0].get_ylim()[0] == pytest.approx(0.53), "room below the least that was achieved"
    assert np.isnan(first[0].containers[2].lines[0].get_ydata()[1]), "no point where nothing exits"
    assert figure.axes[5].lines[2].get_ydata() == pytest.approx([0.4, 0.1])
    assert [text.get_text() for text in figure.axes[3].get_legend().texts] == METHODS


def test_one_target_and_one_metric_are_enough(achieved):
    figure = plotting.promised_against_achieved(achieved.query("target == 'exit_agreement' and metric == 'margin'"))
    assert [axes.get_title() for axes in figure.axes] == ["margin", "margin"]
    nothing = achieved[achieved.achieved.isna()]
    assert len(plotting.promised_against_achieved(nothing).axes) == 6, "nothing exits at all"


@pytest.fixture
def broken():
    rows = [
        {"text": text, "method": method, "target": target, "sequences": n, "rate": 0.1 * i}
        for text, n in (("synthetic", 300), ("offline text", 20))
        for target in TARGETS for i, method in enumerate(METHODS)
    ]  # fmt: skip
    table = with_interval(pd.DataFrame(rows), "rate").assign(epsilon=0.8, delta=0.1)
    table.loc[table.text != "synthetic", ["rate_low", "rate_high"]] = np.nan
    return table


def test_rates_of_each_text_beside_delta(broken):
    left, right = plotting.violations(broken).axes
    assert (
        left.get_title() == "synthetic: 300 sequences each" and right.get_title() == "offline text: 20 sequences each"
    )
    assert left.get_ylabel() == "rate of violations at ε = 0.8"
    assert [text.get_text() for text in right.get_legend().texts] == ["δ = 0.1", *METHODS]
    assert [label.get_text() for label in left.get_xticklabels()] == ["exit\nagreement", "output\nagreement"]
    risk = left.containers[2].lines[0]
    assert risk.get_ydata() == pytest.approx([0.2, 0.2]) and risk.get_xdata() == pytest.approx([0.2, 1.2])


def test_a_method_that_lacks_a_target_stands_over_the_one_it_has(broken):
    partial = broken[(broken.method != "risk") | (broken.target == "output_agreement")]
    assert plotting.violations(partial).axes[0].containers[2].lines[0].get_xdata() == pytest.approx([1.2])
    with pytest.raises(InvalidInputError, match="several ε or δ"):
        plotting.violations(pd.concat([broken, broken.assign(epsilon=0.9)]))


@pytest.fixture
def shift():
    rows = [
        {"method": method, "calibrated_on": on, "used_on": to, "achieved": 0.7 if method == "cascade" else np.nan}
        for method in ("cascade", "risk") for on in ("own", "prose") for to in ("own", "prose")
    ]  # fmt: skip
    rows[4]["achieved"] = rows[5]["achieved"] = 0.9  # risk, calibrated on own text
    return with_interval(pd.DataFrame(rows), "achieved")


def test_agreement_on_each_kind_of_text_and_where_nothing_exits(shift):
    figure = plotting.shifted_agreement(shift, 0.8)
    cascade, risk = figure.axes
    assert (cascade.get_title(), risk.get_title()) == ("cascade", "risk") and "promised: 0.8" in cascade.get_ylabel()
    assert not cascade.texts and risk.texts[0].get_text() == "calibrated on prose:\nnothing exits"
    assert [text.get_text() for text in figure.legends[0].texts] == ["calibrated on own", "calibrated on prose"]
    own, prose = (bars.lines[0] for bars in cascade.containers)
    assert own.get_xdata() == pytest.approx([-0.15, 0.85]) and prose.get_xdata() == pytest.approx([0.15, 1.15])
    assert risk.containers[0].lines[0].get_ydata() == pytest.approx([0.9, 0.9])
    figure.canvas.draw()


def test_tables_that_nothing_can_be_drawn_from(achieved, broken, shift):
    draws = (
        plotting.promised_against_achieved,
        plotting.violations,
        lambda table: plotting.shifted_agreement(table, 0.8),
    )
    for draw, table in zip(draws, (achieved, broken, shift), strict=True):
        with pytest.raises(InvalidInputError, match="no rows"):
            draw(table[:0])
        with pytest.raises(InvalidInputError, match="no column method"):
            draw(table.drop(columns="method"))
