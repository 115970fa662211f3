import pandas as pd
import pytest

from eelib import plotting
from eelib.errors import InvalidInputError


@pytest.fixture
def kinds():
    rows = [
        {"kind": kind, "depth": depth, "cost_in_blocks": cost, "agreement": depth / 10}
        for kind, costs in (("none", [8]), ("mlp", [9, 1.5, 0.7]))
        for cost in costs
        for depth in (2, 4)
    ]
    return pd.DataFrame(rows)


def test_a_line_a_kind_and_depth_in_order_of_cost(kinds):
    (axes,) = plotting.agreement_against_cost(kinds).axes
    drawn = {(line.get_marker(), line.get_color()): line.get_xdata().tolist() for line in axes.lines[:4]}
    assert sorted(drawn.values()) == [[0.7, 1.5, 9]] * 2 + [[8]] * 2
    assert len({marker for marker, _ in drawn}) == 2 and len({color for _, color in drawn}) == 2
    assert axes.get_xscale() == "log" and axes.get_ylim() == (0, 1)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.5", "1", "2", "4", "8"], "from below to the last"
    assert [text.get_text() for text in axes.get_legend().texts] == ["none", "mlp", "depth 2", "depth 4"]


def test_one_head_is_enough(kinds):
    (axes,) = plotting.agreement_against_cost(kinds[:1]).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["8"]


def test_agreement_over_tokens_has_its_intervals_and_a_tick_a_training():
    rows = [
        {"depth": depth, "tokens": tokens, "agreement": 0.1 * depth, "agreement_low": 0.15, "agreement_high": 0.5}
        for tokens in (16000, 1000)
        for depth in (4, 2)
    ]
    (axes,) = plotting.agreement_against_tokens(pd.DataFrame(rows)).axes
    assert [text.get_text() for text in axes.get_legend().texts] == ["depth 2", "depth 4"]
    assert {tick.get_text() for tick in axes.get_xticklabels()} == {"1,000", "16,000"}
    line, _, (bars,) = axes.containers[0]
    assert line.get_xdata().tolist() == [1000, 16000] and line.get_ydata() == pytest.approx([0.2, 0.2])
    assert bars.get_segments()[0][:, 1] == pytest.approx([0.15, 0.5])


def test_tables_that_heads_cannot_be_drawn_from(kinds):
    with pytest.raises(InvalidInputError, match="no column cost_in_blocks"):
        plotting.agreement_against_cost(kinds.drop(columns="cost_in_blocks"))
    with pytest.raises(InvalidInputError, match="no column tokens"):
        plotting.agreement_against_tokens(kinds)
