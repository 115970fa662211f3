import pandas as pd
import pytest

from eelib import plotting
from eelib.errors import InvalidInputError

REPORT = pd.DataFrame(
    {
        "tokens": [1000, 1000, 2000, 2000], "depth": [2, 4, 2, 4], "loss": [3.0, 2.0, 2.5, 1.0],
        "agreement": [0.2, 0.3, 0.4, 0.5],
    }
)  # fmt: skip


def test_two_panels_with_a_line_a_depth():
    left, right = plotting.training_curves(REPORT).axes
    assert [line.get_label() for line in left.lines] == ["depth 2", "depth 4"]
    assert [line.get_ydata().tolist() for line in left.lines] == [[3.0, 2.5], [2.0, 1.0]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[0.2, 0.4], [0.3, 0.5]]
    assert left.lines[0].get_xdata().tolist() == [1, 2] and "thousands" in left.get_xlabel()
    assert "nats" in left.get_ylabel() and "agreement" in right.get_ylabel() and right.get_title() == ""


def test_dots_of_held_out_text_have_the_colour_of_their_line():
    validation = pd.DataFrame({"depth": [2, 4], "agreement": [0.35, 0.45]})
    _, right = plotting.training_curves(REPORT, validation).axes
    lines, dots = right.lines[:2], right.lines[2:]
    assert [(*dot.get_xdata(), *dot.get_ydata()) for dot in dots] == [(2, 0.35), (2, 0.45)]
    assert [dot.get_color() for dot in dots] == [line.get_color() for line in lines] and "dots" in right.get_title()


def test_a_table_that_nothing_can_be_drawn_from():
    with pytest.raises(InvalidInputError, match="no rows"):
        plotting.training_curves(REPORT[:0])
    with pytest.raises(InvalidInputError, match="no column loss: it has tokens"):
        plotting.training_curves(REPORT.drop(columns="loss"))
