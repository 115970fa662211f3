import numpy as np
import pandas as pd
import pytest

from eelib import plotting
from eelib.errors import InvalidInputError


def with_interval(table, name):
    return table.assign(**{f"{name}_low": table[name] - 0.1, f"{name}_high": table[name] + 0.2})


@pytest.fixture
def result():
    """Two tasks, the full model and three ε; on hellaswag ε = 0.6 is beaten."""
    settings = pd.DataFrame({
        "policy": ["full model", *["early exit"] * 3], "epsilon": [1.0, 0.9, 0.6, 0.5],
        "blocks": [1.0, 0.9, 0.6, 0.5], "speed_ratio": [1.0, 1.1, 1.5, 2.0],
    })  # fmt: skip
    accuracies = {"hellaswag": [0.4, 0.3, 0.2, 0.25], "truthfulqa_mc1": [0.3] * 4}
    tables = [settings.assign(task=task, accuracy=values) for task, values in accuracies.items()]
    table = with_interval(pd.concat(tables, ignore_index=True), "accuracy")
    table["on_front"] = (table.task == "hellaswag") & (table.epsilon != 0.6)
    return table.assign(on_speed_front=table.epsilon == 0.5)


@pytest.mark.parametrize(
    "cost,front,label",
    [("blocks", [0.5, 0.9, 1.0], "blocks run"), ("speed_ratio", [2.0], "measured speed")],
)
def test_a_panel_a_task_and_the_front_in_order_of_cost(result, cost, front, label):
    figure = plotting.accuracy_against_cost(result, cost)
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["hellaswag", "truthfulqa_mc1"]
    assert label in figure.get_supxlabel() and "accuracy" in first.get_ylabel()
    assert first.lines[0].get_xdata().tolist() == front and first.get_ylim()[0] == 0
    star = first.lines[1]
    assert (star.get_xdata().tolist(), star.get_ydata().tolist()) == ([1.0], [0.4])
    band = first.patches[0]
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.3, 0.6))
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["Pareto front", "full model (band: 95%)", "ε = 0.5", "ε = 0.6", "ε = 0.9"]
    point, _, (bars,) = second.containers[0]
    assert point.get_xdata()[0] == (0.5 if cost == "blocks" else 2.0) and point.get_ydata()[0] == 0.3
    assert bars.get_segments()[0][:, 1] == pytest.approx([0.2, 0.5])


def test_one_task_without_the_full_model_is_enough(result):
    figure = plotting.accuracy_against_cost(result[(result.task == "hellaswag") & (result.policy == "early exit")])
    (axes,) = figure.axes
    assert len(axes.containers) == 3 and not axes.patches and not len(axes.lines[1].get_xdata())


def test_tables_that_accuracy_cannot_be_drawn_from(result):
    with pytest.raises(InvalidInputError, match="cost='time': expected one of blocks, speed_ratio"):
        plotting.accuracy_against_cost(result, "time")
    with pytest.raises(InvalidInputError, match="no column on_speed_front"):
        plotting.accuracy_against_cost(result.drop(columns="on_speed_front"), "speed_ratio")
    with pytest.raises(InvalidInputError, match="no rows"):
        plotting.accuracy_against_cost(result[:0])


@pytest.fixture
def exits():
    table = pd.DataFrame(
        {"epsilon": [1.0, 0.9, 0.5], "generated_blocks": [1, 0.8, 0.4], "passes_per_token": [1, 0.9, 0.5]}
    )
    table = with_interval(table.assign(speed_ratio=[1, 1.05, 1.6]), "speed_ratio")
    return table.assign(share_2=[0, 0.1, 0.7], share_4=[0, 0.3, 0.2], share_10=[1, 0.6, 0.1])


def test_shares_are_stacked_by_depth_and_promises_are_set_beside_the_clock(exits):
    stacked, promised = plotting.exits_and_speed(exits).axes
    assert [bars.get_label() for bars in stacked.containers] == ["depth 2", "depth 4", "full model"]
    assert [tick.get_text() for tick in stacked.get_xticklabels()] == ["0.5", "0.9"], "the full model is no bar"
    tops = [[bar.get_y() + bar.get_height() for bar in bars] for bars in stacked.containers]
    assert np.array(tops) == pytest.approx(np.array([[0.7, 0.1], [0.9, 0.4], [1, 1]]))
    blocks, weights = promised.lines[:2]
    assert blocks.get_ydata() == pytest.approx([1 / 0.4, 1 / 0.8]) and weights.get_ydata() == pytest.approx(
        [2, 1 / 0.9]
    )
    assert promised.containers[0].lines[0].get_ydata() == pytest.approx([1.6, 1.05])
    labels = [text.get_text() for text in promised.get_legend().texts]
    assert labels == ["blocks only", "all weights read", "measured (95%)"]


def test_tables_that_exits_cannot_be_drawn_from(exits):
    with pytest.raises(InvalidInputError, match=r"no columns share_\{depth\}"):
        plotting.exits_and_speed(exits[[name for name in exits if not name.startswith("share")]])
    with pytest.raises(InvalidInputError, match="speed_ratio_low"):
        plotting.exits_and_speed(exits.drop(columns="speed_ratio_low"))


def test_anytime_quality_has_a_line_a_task_and_one_agreement():
    rows = [
        {
            "task": task,
            "depth": depth,
            "agreement": depth / 10,
            "accuracy": 0.03 * depth,
            "log_prob_less_full": depth - 10,
        }
        for task in ("hellaswag", "truthfulqa_mc1")
        for depth in (10, 2, 4)
    ]
    table = with_interval(with_interval(pd.DataFrame(rows), "accuracy"), "log_prob_less_full")
    agreement, log_prob, accuracy = plotting.anytime_quality(table).axes
    assert len(agreement.lines) == 1 and agreement.lines[0].get_ydata().tolist() == [0.2, 0.4, 1.0]
    for axes, value in ((log_prob, [-8, -6, 0]), (accuracy, [0.06, 0.12, 0.3])):
        assert [container.lines[0].get_ydata().tolist() for container in axes.containers] == [pytest.approx(value)] * 2
    assert [text.get_text() for text in accuracy.get_legend().texts] == ["hellaswag", "truthfulqa_mc1"]
    assert len(plotting.anytime_quality(table[table.task == "hellaswag"]).axes[1].containers) == 1
    with pytest.raises(InvalidInputError, match="agreement"):
        plotting.anytime_quality(table.drop(columns="agreement"))
