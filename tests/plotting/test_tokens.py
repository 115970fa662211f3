import pandas as pd
import pytest

from eelib import plotting
from eelib.errors import InvalidInputError


class Words:
    """A tokenizer of three tokens, one of them markup."""

    def decode(self, tokens):
        return "".join({0: "<b>", 1: "one & two", 2: "\n"}[token] for token in tokens)


TRACE = pd.DataFrame(
    {
        "token_id": [0, 1, 1, 2], "depth": [6, 12, 6, 30],
        "drafted": [True, True, True, False], "accepted": [True, False, True, False],
    }
)  # fmt: skip
"""A draft of 6 blocks, one of 12 that was rejected, another of 6, and the full model's own token."""


def test_tokens_are_escaped_and_coloured_by_depth():
    text = plotting.tokens_html(TRACE, Words(), 30, [6, 12])
    assert "<b>" not in text and "&lt;b&gt;" in text and "one &amp; two" in text and "⏎<br>" in text
    spans = text.split("<span ")[1:]
    legend, tokens = spans[:3], spans[3:]
    assert [s.split("&nbsp;")[1] for s in legend] == ["6", "12", "30 (full model)"]
    assert [s.split('title="')[1].split('"')[0] for s in tokens] == ["depth 6", "depth 6", "depth 30"]
    color = [s.split("background:")[1].split(";")[0] for s in spans]
    assert len(set(color[:3])) == 3 and color[3:] == [color[0], color[0], color[2]], "as the legend says"


def test_shares_by_hand_without_what_was_rejected():
    table = plotting.settled_shares(TRACE, 30, [6, 12])
    assert table.depth.tolist() == [6, 12, 30]
    assert table.share_of_tokens.tolist() == pytest.approx([2 / 3, 0, 1 / 3])


def test_a_depth_that_is_no_heads_is_refused():
    for draw in (
        lambda: plotting.tokens_html(TRACE, Words(), 30, [6]),
        lambda: plotting.settled_shares(TRACE, 30, [6]),
    ):
        with pytest.raises(InvalidInputError, match=r"depth \[12\]: expected 6, 30"):
            draw()
    with pytest.raises(InvalidInputError, match="no rows"):
        plotting.tokens_html(TRACE[:0], Words(), 30, [6])


def test_a_bar_a_depth():
    table = plotting.settled_shares(TRACE, 30, [6, 12])
    (axes,) = plotting.depth_shares(table, 30, "a title").axes
    assert [bar.get_height() for bar in axes.patches] == table.share_of_tokens.tolist()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["6", "12", "30"]
    assert "30 = the full model" in axes.get_xlabel() and axes.get_title() == "a title" and axes.get_ylim() == (0, 1)
    with pytest.raises(InvalidInputError, match="no column share_of_tokens"):
        plotting.depth_shares(table[["depth"]], 30)


def test_tokens_that_were_looked_up_are_depth_0():
    trace = TRACE.assign(depth=[0, 12, 6, 30])
    assert "0 (looked up in the text)" in plotting.tokens_html(trace, Words(), 30, [6, 12])
    assert plotting.settled_shares(trace, 30, [6, 12]).depth.tolist() == [0, 6, 12, 30]
