"""Kinds of head: agreement against cost and training text."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eelib.plotting.style import COLUMN, MARKERS, band, check_table, depth_style, panels, styled, with_interval


def agreement_against_cost(table: pd.DataFrame) -> Figure:
    """Agreement of heads against weights read per draft.

    Args:
        table: one row per head: kind (a marker each), depth (a colour each), cost_in_blocks, agreement. Heads of one
            kind and depth, which differ in the draft vocabulary, are joined by a line.
    """
    check_table(table, "kind", "depth", "cost_in_blocks", "agreement")
    style = depth_style(table.depth.unique())
    markers = dict(styled(table.kind.unique(), MARKERS))
    figure, (axes,) = panels(1, width=COLUMN, height=2.6)
    for (kind, depth), part in table.groupby(["kind", "depth"]):
        part = part.sort_values("cost_in_blocks")
        shared = {"color": style[depth]["color"], "marker": markers[kind], "linewidth": 0.6, "markersize": 4}
        axes.plot(part.cost_in_blocks, part.agreement, **shared)
    for kind, marker in markers.items():
        axes.plot([], [], marker=marker, color="0.3", linestyle="", markersize=4, label=kind)
    for depth in style:
        axes.plot([], [], color=style[depth]["color"], label=f"depth {depth}")
    axes.set(xlabel="weights read per draft [blocks]", ylabel="agreement with the model", xscale="log", ylim=(0, 1))
    low, high = np.floor(np.log2([table.cost_in_blocks.min(), table.cost_in_blocks.max()])).astype(int)
    axes.set_xticks([], minor=True)
    axes.set_xticks([2.0**power for power in range(low, high + 1)], [f"{2.0**p:g}" for p in range(low, high + 1)])
    axes.legend(fontsize=5, ncols=2)
    return figure


def agreement_against_tokens(table: pd.DataFrame) -> Figure:
    """Agreement of heads against training tokens, a line per depth.

    Args:
        table: one row per depth and training: depth, tokens, agreement with its interval.
    """
    check_table(table, "depth", "tokens", *with_interval("agreement"))
    figure, (axes,) = panels(1, width=COLUMN, height=2.4)
    for depth, style in depth_style(table.depth.unique()).items():
        part = table[table.depth == depth]
        band(axes, part, "tokens", "agreement", **style, marker="o", label=f"depth {depth}")
    axes.set(xlabel="training tokens, each seen in every epoch", ylabel="agreement (95% interval)", xscale="log")
    axes.set_xticks(table.tokens.unique(), [f"{tokens:,}" for tokens in table.tokens.unique()])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.legend(fontsize=6)
    return figure
