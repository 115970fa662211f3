import pandas as pd
from tiny import DECODERS, with_intervals

from eelib import plotting


def test_predictions_lie_in_their_groups():
    table = pd.DataFrame({"policy": ["plain", "6 x 2", "ε = 0.6"], "predicted": [20, 10, 30], "measured": [21, 11, 29]})
    (axes,) = plotting.predicted_speed(table).axes
    points = {line.get_label(): line.get_xdata().tolist() for line in axes.lines[1:]}
    assert points == {"plain": [21], "fixed exits": [11], "DSSD": [29]}


def test_baselines_are_sorted_by_speed_and_told_apart():
    table = DECODERS.assign(lossless=[True, True, True, False], token_agreement=[1, 1, 1, 0.8], method="m")
    speed, agreed = plotting.baselines(table).axes
    order = [label.get_text() for label in speed.get_yticklabels()]
    assert order == ["LayerSkip, logit lens", "plain", "LayerSkip, our heads", "DSSD"]
    assert [line.get_xdata().tolist() for line in agreed.lines] == [[1, 1, 1], [0.8]]
    (axes,) = plotting.speed_against_agreement(table, [False, True, False, False]).axes
    assert axes.lines[0].get_label() == "Pareto front" and axes.lines[0].get_xdata().tolist() == [1.1]


def test_claims_stand_beside_what_was_measured():
    claims = with_intervals(pd.DataFrame({"threshold": [0.7, 0.9], "speed_ratio": [1.1, 1.0]}), "speed_ratio")
    rows = pd.DataFrame({"threshold": [0.7, 0.9] * 2, "task": ["a", "a", "b", "b"], "value_less_full": [-0.1, 0, 0, 0]})
    speed, change = plotting.popular_claims(claims, with_intervals(rows, "value_less_full"), [1.5, 3]).axes
    assert "claimed: 1.5 and 3" in {line.get_label() for line in speed.lines}
    assert {text.get_text() for text in change.get_legend().get_texts()} == {"a", "b"}
    places = [bars.lines[0].get_xdata()[0] for bars in change.containers]
    assert len(set(places)) == 2  # no interval lies over another


def test_batches_are_lines_by_kind_and_rule():
    table = pd.DataFrame({
        "rows": [1, 8] * 3, "kind": ["plain"] * 2 + ["early exit"] * 4,
        "gather": ["", "", "all", "all", "wait", "wait"],
        "tokens_per_second": [20, 90, 22, 80, 22, 110], "speed_ratio": [1, 1, 1.1, 0.9, 1.1, 1.2],
        "exits_lost": [0, 0, 0, 0.4, 0, 0],
    })  # fmt: skip
    speed, ratio, lost = plotting.speed_in_batches(with_intervals(table, "speed_ratio")).axes
    assert [line.get_label() for line in speed.lines] == ["plain", "early exit, all", "early exit, wait"]
    assert [line.get_ydata().tolist() for line in lost.lines] == [[0, 40], [0, 0]]
    assert ratio.lines[-1].get_ydata()[0] == 1
