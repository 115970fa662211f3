import pandas as pd
import pytest
from tiny import DECODERS, with_intervals

from eelib import plotting


def test_a_setting_in_a_few_characters():
    rows = DECODERS.to_dict("records")
    assert [plotting.setting_label(row) for row in rows] == ["", "ε = 0.7", "1 x 1", "6 x 2"]
    assert plotting.setting_label({"epsilon": 0.85, "max_draft": 4}) == "ε = 0.85"


def test_acceptance_has_a_panel_a_kind_and_a_line_a_draft_length():
    rows = [(kind, d, n, 0.1 * d) for kind in ("a", "b") for d in (1, 2, 3) for n in (1, 4)]
    grid = pd.DataFrame(rows, columns=["kind", "depth", "draft_length", "acceptance_rate"])
    grid = pd.concat([grid, pd.DataFrame([{"kind": "DSSD", "epsilon": 0.5, "acceptance_rate": 0.9}])])
    figure = plotting.acceptance_by_exit(grid, 0.55, "DSSD, ε = 0.5")
    left, right = figure.axes
    assert [left.get_title(), right.get_title()] == ["a", "b"] and len(left.lines) == 3
    assert [line.get_label() for line in right.lines] == ["1 draft", "4 drafts", "DSSD, ε = 0.5"]
    assert right.lines[1].get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_speed_names_every_decoder_with_its_setting_and_compares_only_rivals():
    accepted, speed, ratio = plotting.tuned_speed(DECODERS).axes
    labels = [label.get_text() for label in accepted.get_yticklabels()]
    assert labels == ["LayerSkip, our heads\n6 x 2", "LayerSkip, logit lens\n1 x 1", "DSSD\nε = 0.7", "plain"]
    assert [label.get_text() for label in ratio.get_xticklabels()] == ["logit\nlens", "our\nheads"]
    assert not any(label.get_text() for label in speed.get_yticklabels())


def test_the_curve_compares_with_one_rival():
    ratios = with_intervals(
        pd.DataFrame({
            "decoder": ["DSSD", "DSSD, ε = 0.9"] * 2, "epsilon": [0.7, 0.9] * 2, "against": ["a", "a", "b", "b"],
            "acceptance_ratio": [1.2, 1.9, 5, 6], "relative_speed": [1.0, 1.1, 1, 1],
        }),
        "acceptance_ratio", "relative_speed",
    )  # fmt: skip
    kinds = [f"kind {number}" for number in range(12)]
    absolute, relative = plotting.acceptance_curve(
        pd.concat([DECODERS[1:2].assign(kind=kind) for kind in kinds]), ratios, "a"
    ).axes
    assert absolute.get_legend_handles_labels()[1] == kinds, "more than there are colours and markers"
    assert relative.get_xlabel().endswith("a") and [text.get_text() for text in relative.texts] == [
        "ε = 0.7",
        "ε = 0.9",
    ]
