"""Calibration: what thresholds promise and achieve.

Each figure is drawn from a table of `eelib.calibration.promises` or `eelib.calibration.violations`, or from its CSV.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eelib.errors import InvalidInputError
from eelib.plotting.style import MARKERS, PAGE, PALETTE, abreast, band, check_table, panels, with_interval


def promised_against_achieved(table: pd.DataFrame) -> Figure:
    """Achieved against promised agreement, and coverage.

    A row of panels per target, a column per metric, a line per method; the last column is the coverage of the first
    metric.

    Args:
        table: from `achieved_table`: columns target, metric, method, epsilon, achieved, achieved_low, achieved_high,
            coverage. NaN is not drawn.

    Raises:
        InvalidInputError: no rows, or a column is missing.
    """
    check_table(table, "target", "metric", "method", "epsilon", *with_interval("achieved"), "coverage")
    targets, metrics, style = table.target.unique(), table.metric.unique(), _look(table.method.unique())
    lowest, loosest = np.nanmin([table.achieved.min(), table.epsilon.min()]), table.epsilon.min()
    figure, grid = plt.subplots(
        len(targets), len(metrics) + 1, figsize=(PAGE, 1.95 * len(targets)), sharex=True, squeeze=False
    )  # fmt: skip
    for line, target in zip(grid, targets, strict=True):
        for axes, metric in zip(line, metrics, strict=False):
            of = table[(table.target == target) & (table.metric == metric)]
            for method in style:
                band(axes, of[of.method == method], "epsilon", "achieved", **style[method], label=method)
            axes.plot([loosest, 1], [loosest, 1], color="0.6", linewidth=0.6, zorder=0)
            axes.set_ylim(lowest - 0.02, 1.0)
        line[0].set_ylabel(f"achieved {target.replace('_', ' ')}")
        of = table[(table.target == target) & (table.metric == metrics[0])]
        for method in style:
            part = of[of.method == method].sort_values("epsilon")
            line[-1].plot(part.epsilon, part.coverage, **style[method], label=method)
        line[-1].set(ylim=(0, 1), ylabel="coverage")
    for axes, metric in zip(grid[0], [*metrics, metrics[0]], strict=True):
        axes.set_title(metric)
    grid[-1, 0].legend(fontsize=6, loc="lower right")
    figure.supxlabel("promised ε", fontsize=8)
    return figure


def violations(table: pd.DataFrame) -> Figure:
    """Rate of broken promises of each method, with the δ of `risk`.

    Args:
        table: from `violation_rates`, with the text of each row (a panel each): columns text, method, target, epsilon,
            delta, sequences, rate, rate_low, rate_high. A NaN interval is not drawn.

    Raises:
        InvalidInputError: no rows, a column is missing, or there is more than one ε or δ.
    """
    check_table(table, "text", "method", "target", "epsilon", "delta", "sequences", *with_interval("rate"))
    if table.epsilon.nunique() > 1 or table.delta.nunique() > 1:
        raise InvalidInputError("The table has several ε or δ: expected one of each.")
    targets, texts, style = table.target.unique(), table.text.unique(), _look(table.method.unique())
    epsilon, delta = table.epsilon.iloc[0], table.delta.iloc[0]
    figure, panel = panels(len(texts), height=2.1, sharey=True)
    for axes, text in zip(panel, texts, strict=True):
        of = table[table.text == text]
        for method, shift in zip(style, abreast(len(style), 0.6 / len(style)), strict=True):
            _points(axes, of[of.method == method], "target", targets, shift, "rate", **style[method], label=method)
        axes.axhline(delta, color="0.4", linestyle=":", label=f"δ = {delta:g}")
        axes.set_xticks(range(len(targets)), [target.replace("_", "\n") for target in targets])
        title = f"{text}: {of.sequences.iloc[0]} sequences each"
        axes.set(xlim=(-0.5, len(targets) - 0.5), ylim=(-0.03, 1.03), title=title)
    panel[0].set_ylabel(f"rate of violations at ε = {epsilon:g}")
    panel[-1].legend(fontsize=6)
    return figure


def shifted_agreement(table: pd.DataFrame, epsilon: float) -> Figure:
    """Exit agreement of thresholds across kinds of text, a panel per method.

    Args:
        table: from `shift_table`: columns method, calibrated_on, used_on, achieved, achieved_low, achieved_high. Where
            achieved is NaN nothing exits, and the panel says so.
        epsilon: promised agreement.

    Raises:
        InvalidInputError: no rows, or a column is missing.
    """
    check_table(table, "method", "calibrated_on", "used_on", *with_interval("achieved"))
    methods, texts, used_on = table.method.unique(), table.calibrated_on.unique(), table.used_on.unique()
    style = _look(texts)
    figure, panel = panels(len(methods), height=2.1, sharey=True)
    for axes, method in zip(panel, methods, strict=True):
        of = table[table.method == method]
        for text, shift in zip(texts, abreast(len(texts), 0.6 / len(texts)), strict=True):
            look = {**style[text], "label": f"calibrated on {text}"}
            _points(axes, of[of.calibrated_on == text], "used_on", used_on, shift, "achieved", **look)
        axes.axhline(epsilon, color="0.4", linestyle=":")
        axes.set_xticks(range(len(used_on)), used_on)
        axes.set(title=method, xlabel="used on", xlim=(-0.5, len(used_on) - 0.5))
        silent = of[of.achieved.isna()].calibrated_on.unique()
        if len(silent):
            note = f"calibrated on {' or '.join(silent)}:\nnothing exits"
            axes.text(0.97, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize=6)
    panel[0].set_ylabel(f"achieved exit agreement\n(promised: {epsilon:g})")
    handles = panel[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(texts), fontsize=6)
    return figure


def _look(names: Sequence[str]) -> dict[str, dict]:
    """Colour and marker by name."""
    return {
        name: {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]} for i, name in enumerate(names)
    }


def _points(axes: Axes, table: pd.DataFrame, x: str, ticks: Sequence[str], shift: float, y: str, **style) -> None:
    """Points with intervals over named ticks, offset by `shift`."""
    place = {name: i for i, name in enumerate(ticks)}
    band(axes, table.assign(_x=table[x].map(place) + shift), "_x", y, linestyle="", **style)
