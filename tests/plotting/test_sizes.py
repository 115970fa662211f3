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
