import pandas as pd
import pytest

from eelib import plotting
from eelib.errors import InvalidInputError


def test_a_marker_a_model():
    rows = [
        {
            "model": model,
            "parameters": n,
            "measure": measure,
            "at": at,
            "value": v,
            "value_low": v - 0.1,
            "value_high": v,
        }
        for model, n, v in (("large", 10**9, 1.5), ("small", 10**8, 0.5))
        for measure, at in (("agreement", 0.25), ("agreement", 0.5), ("early exit, speed", 0.9), ("speed", "DSSD"))
    ]
    figure = plotting.agreement_and_speed(pd.DataFrame(rows))
    agreement, _, tuned = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["small", "large"]
    assert [list(bars.lines[0].get_ydata()) for bars in agreement.containers] == [[0.5, 0.5], [1.5, 1.5]]
    assert [label.get_text() for label in tuned.get_yticklabels()] == ["DSSD"]


def test_a_table_of_something_else():
    with pytest.raises(InvalidInputError, match="no column model"):
        plotting.agreement_and_speed(pd.DataFrame({"speed_ratio": [1.0]}))


def test_what_is_claimed_stands_beside_each_model():
    rows = [
        {"model": model, "measure": measure, "claim": f"{measure} claimed", "claimed_low": low, "claimed_high": high,
         "value": value, "value_low": value - 0.1, "value_high": value + 0.1}
        for model, value in (("small", 0.1), ("large", 0.2))
        for measure, low, high in (("speed", 3, 3), ("compute saved", 0.3, 0.6), ("accuracy", -0.1, -0.05))
    ]  # fmt: skip
    figure = plotting.claims_by_size(pd.DataFrame(rows))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["claimed", "small", "large"]
    for axes, (low, high) in zip(figure.axes, ((3, 3), (0.3, 0.6), (-0.1, -0.05)), strict=True):
        assert [bars.lines[0].get_xdata().tolist() for bars in axes.containers] == [[0.1], [0.2]]
        claimed = [line for line in axes.collections if line.get_linewidth()[0] == 3]
        assert [line.get_segments()[0][:, 0].tolist() for line in claimed] == [[low, high]] * 2
        assert len(axes.get_yticklabels()) == 1
