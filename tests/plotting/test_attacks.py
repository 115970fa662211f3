import pandas as pd
import pytest

from eelib import plotting
from eelib.errors import InvalidInputError

MODES = ["lossless", "early exit"]


@pytest.fixture
def attacked():
    """As the notebook saves it: files on ordinary prompts, then prompts with the honest file, ordinary ones again."""
    by_file = [("honest", "ordinary", 1.0), ("all exit at once", "ordinary", 0.5)]
    by_prompt = [("honest", "ordinary", 0.9), ("honest", "wrong exits", 0.7)]
    rows = [
        {"mode": mode, "file": file, "prompts": kind, "agreement": agreement, "speed_ratio": 1.2}
        for file, kind, agreement in by_file + by_prompt
        for mode in MODES
    ]
    return pd.DataFrame(rows).assign(speed_ratio_low=1.1, speed_ratio_high=1.5)


def points(axes):
    """Agreement and marker of what is drawn with data, by its colour."""
    found = [line for line in axes.lines if line.get_marker() in ("o", "s") and len(line.get_xdata())]
    return [(line.get_ydata()[0], line.get_marker()) for line in found]


def test_files_left_prompts_right_a_marker_a_mode(attacked):
    left, right = plotting.speed_under_attack(attacked).axes
    assert [left.get_title(), right.get_title()] == ["thresholds", "prompts, honest thresholds"]
    assert points(left) == [(1.0, "o"), (1.0, "s"), (0.5, "o"), (0.5, "s")]
    assert points(right) == [(0.9, "o"), (0.9, "s"), (0.7, "o"), (0.7, "s")]
    assert [text.get_text() for text in left.get_legend().texts] == ["honest", "all exit at once", *MODES]
    assert [text.get_text() for text in right.get_legend().texts] == ["ordinary", "wrong exits"]
    assert left.lines[0].get_xdata().tolist() == [1.1, 1.5], "the interval"


def test_files_alone_are_enough(attacked):
    left, right = plotting.speed_under_attack(attacked[:4]).axes
    assert len(points(left)) == 4 and points(right) == [(1.0, "o"), (1.0, "s")]
    left, right = plotting.speed_under_attack(attacked[attacked.file != "honest"]).axes
    assert len(points(left)) == 2 and not points(right) and right.get_legend() is None


def test_alarms_over_time_have_a_line_a_text_and_one_for_false_alarms():
    table = pd.DataFrame({"text": ["own"] * 3 + ["prose"] * 3, "sequences": [0, 1, 2] * 2})
    table["share_of_runs"] = [0, 0, 0.01, 0, 0.5, 1]
    (axes,) = plotting.alarms_over_time(table, 0.05).axes
    labels = [text.get_text() for text in axes.get_legend().texts]
    assert labels == ["own: no shift", "prose", "false alarms allowed: 0.05"]
    assert axes.lines[1].get_ydata().tolist() == [0, 0.5, 1] and axes.lines[2].get_ydata() == [0.05, 0.05]
    assert len({line.get_linestyle() for line in axes.lines}) == 3
    (axes,) = plotting.alarms_over_time(table[table.text == "prose"], 0.05, unshifted="prose").axes
    assert axes.get_legend().texts[0].get_text() == "prose: no shift"


def test_tables_that_attacks_cannot_be_drawn_from(attacked):
    with pytest.raises(InvalidInputError, match="no column prompts"):
        plotting.speed_under_attack(attacked.drop(columns="prompts"))
    with pytest.raises(InvalidInputError, match="no column text"):
        plotting.alarms_over_time(attacked, 0.05)
