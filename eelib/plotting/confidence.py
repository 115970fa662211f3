"""Separation of right from wrong predictions: densities, ROC, risk-coverage, AUROC.

Each figure is drawn from a table of `eelib.confidence.separation`, or from its CSV.
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eelib.confidence.metrics import axis_label
from eelib.plotting.style import MARKERS, PAGE, PALETTE, abreast, band, check_table, metric_style, panels, with_interval


def score_densities(table: pd.DataFrame, epsilon: float | None = None) -> Figure:
    """Score densities of right and wrong tokens, per depth and metric.

    Args:
        table: from `density_table`: columns depth (a row of panels each), metric (a column each), agrees, score,
            density. A column threshold, if any, is a dotted line.
        epsilon: promised by the thresholds, for the legend.

    Raises:
        InvalidInputError: no rows, or a column is missing.
    """
    check_table(table, "depth", "metric", "agrees", "score", "density")
    depths, metrics = sorted(table.depth.unique()), table.metric.unique()
    figure, grid = plt.subplots(
        len(depths), len(metrics), figsize=(PAGE, 1.15 * len(depths) + 0.4), squeeze=False
    )  # fmt: skip
    for line, depth in zip(grid, depths, strict=True):
        for axes, metric in zip(line, metrics, strict=True):
            _densities(axes, table[(table.depth == depth) & (table.metric == metric)], epsilon)
        line[0].set_ylabel(f"depth {depth}\ndensity")
    for axes, metric in zip(grid[-1], metrics, strict=True):
        axes.set_xlabel(axis_label(metric), fontsize=7)
    labelled = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    figure.legend(labelled.values(), labelled.keys(), loc="outside upper center", ncols=3)
    return figure


def _densities(axes: Axes, table: pd.DataFrame, epsilon: float | None) -> None:
    for agrees, color, dash, label in ((True, PALETTE[0], "-", "right"), (False, PALETTE[1], "--", "wrong")):
        part = table[table.agrees == agrees]
        axes.fill_between(part.score, part.density, alpha=0.2, color=color, linewidth=0)
        axes.plot(part.score, part.density, dash, color=color, label=label)
    for threshold in table.threshold.dropna().unique() if "threshold" in table else ():
        label = "threshold" if epsilon is None else f"ε = {epsilon:g}"
        axes.axvline(threshold, color="0.3", linestyle=":", label=label)
    axes.set(yticks=[], ylim=(0, None))


def roc_curves(table: pd.DataFrame) -> Figure:
    """ROC curves, a panel per depth, a line per metric.

    Args:
        table: from `roc_table`: columns depth, metric, false_positive_rate, true_positive_rate.

    Raises:
        InvalidInputError: no rows, or a column is missing.
    """

    def frame(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.6, zorder=0)
        axes.set(aspect="equal", ylim=(0, 1))

    figure, panel = _curves(table, "false_positive_rate", "true_positive_rate", frame)
    panel[0].set_ylabel("share of right tokens\nabove the threshold")
    figure.supxlabel("share of wrong tokens above the threshold", fontsize=8)
    panel[-1].legend(loc="lower right", fontsize=6, handlelength=1.6)
    return figure


def risk_coverage_curves(table: pd.DataFrame) -> Figure:
    """Risk-coverage curves, a panel per depth, a line per metric.

    Args:
        table: from `risk_coverage_table`: columns depth, metric, coverage, risk.

    Raises:
        InvalidInputError: no rows, or a column is missing.
    """
    figure, panel = _curves(table, "coverage", "risk", lambda axes: axes.set_ylim(0, None))
    panel[0].set_ylabel("risk: share of exits\nthat are wrong")
    figure.supxlabel("coverage: share of tokens that exit", fontsize=8)
    panel[-1].legend(loc="upper left", fontsize=6, handlelength=1.6)
    return figure


def _curves(table: pd.DataFrame, x: str, y: str, frame: Callable[[Axes], object]) -> tuple[Figure, list[Axes]]:
    check_table(table, "depth", "metric", x, y)
    depths = sorted(table.depth.unique())
    figure, panel = panels(len(depths), height=1.8, sharey=True)
    for axes, depth in zip(panel, depths, strict=True):
        for metric in table.metric.unique():
            part = table[(table.depth == depth) & (table.metric == metric)]
            axes.plot(part[x], part[y], **metric_style(metric), label=metric)
        frame(axes)
        axes.set(title=f"depth {depth}", xlim=(0, 1), xticks=[0, 0.5, 1])
    return figure, panel


def auroc_by_depth(table: pd.DataFrame) -> Figure:
    """AUROC of each metric by depth, a panel per kind of text.

    Args:
        table: from `compare_separation`: columns text, depth, metric, auroc, auroc_low, auroc_high.

    Raises:
        InvalidInputError: no rows, or a column is missing.
    """
    check_table(table, "text", "depth", "metric", *with_interval("auroc"))
    depths, metrics, texts = sorted(table.depth.unique()), table.metric.unique(), table.text.unique()
    step = min(np.diff(depths, prepend=0)) * 0.12
    figure, panel = panels(len(texts), height=2.2, sharey=True)
    for axes, text in zip(panel, texts, strict=True):
        for i, (metric, shift) in enumerate(zip(metrics, abreast(len(metrics), step), strict=True)):
            part = table[(table.text == text) & (table.metric == metric)]
            points = part.assign(x=part.depth + shift)
            look = {"color": metric_style(metric)["color"], "marker": MARKERS[i % len(MARKERS)], "markersize": 3}
            band(axes, points, "x", "auroc", **look, linestyle="", label=metric)
        axes.set(title=text, xticks=depths)
    panel[0].set_ylabel("AUROC (95% interval)")
    figure.supxlabel("depth of the head [blocks]", fontsize=8)
    handles = panel[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(metrics), fontsize=6)
    return figure
