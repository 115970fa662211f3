import pandas as pd
import pytest

from eelib import plotting


def with_intervals(table, *names):
    return table.assign(**{f"{n}_low": table[n] - 0.1 for n in names}, **{f"{n}_high": table[n] + 0.2 for n in names})


RESULT = with_intervals(
    pd.DataFrame({
        "decoder": ["plain", "DSSD", "LayerSkip, logit lens", "LayerSkip, our heads"],
        "kind": [None, "DSSD", "LayerSkip, logit lens", "LayerSkip, our heads"],
        "epsilon": [None, 0.7, None, None], "depth": [None, None, 1, 6], "draft_length": [None, None, 1, 2],
        "acceptance_rate": [None, 0.5, 0.1, 0.4], "speed_ratio": [1, 1.1, 0.9, 1.0],
        "acceptance_ratio": [None, None, 5.0, 1.25],
    }).astype({"epsilon": float, "depth": float, "draft_length": float, "acceptance_rate": float}),
    "acceptance_rate", "speed_ratio", "acceptance_ratio",
)  # fmt: skip


def test_a_setting_in_a_few_characters():
    rows = RESULT.to_dict("records")
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
    accepted, speed, ratio = plotting.tuned_speed(RESULT).axes
    labels = [label.get_text() for label in accepted.get_yticklabels()]
    assert labels == ["LayerSkip, our heads\n6 x 2", "LayerSkip, logit lens\n1 x 1", "DSSD\nε = 0.7", "plain"]
    assert [label.get_text() for label in ratio.get_xticklabels()] == ["logit\nlens", "our\nheads"]
    assert not any(label.get_text() for label in speed.get_yticklabels())


def test_predictions_lie_in_their_groups():
    table = pd.DataFrame({"policy": ["plain", "6 x 2", "ε = 0.6"], "predicted": [20, 10, 30], "measured": [21, 11, 29]})
    (axes,) = plotting.predicted_speed(table).axes
    points = {line.get_label(): line.get_xdata().tolist() for line in axes.lines[1:]}
    assert points == {"plain": [21], "fixed exits": [11], "DSSD": [29]}


def test_the_curve_compares_with_one_rival():
    ratios = with_intervals(
        pd.DataFrame({
            "decoder": ["DSSD", "DSSD, ε = 0.9"] * 2, "epsilon": [0.7, 0.9] * 2, "against": ["a", "a", "b", "b"],
            "acceptance_ratio": [1.2, 1.9, 5, 6], "relative_speed": [1.0, 1.1, 1, 1],
        }),
        "acceptance_ratio", "relative_speed",
    )  # fmt: skip
    _, relative = plotting.acceptance_curve(RESULT, ratios, "a").axes
    assert relative.get_xlabel().endswith("a") and [text.get_text() for text in relative.texts] == [
        "ε = 0.7",
        "ε = 0.9",
    ]


def test_baselines_are_sorted_by_speed_and_told_apart():
    table = RESULT.assign(lossless=[True, True, True, False], token_agreement=[1, 1, 1, 0.8], method="m")
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
