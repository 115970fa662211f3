"""Accuracy against cost, at each ε and for each exit alone."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eelib.errors import InvalidInputError
from eelib.plotting.style import PALETTE, band, check_table, depth_style, epsilon_style, panels, with_interval

COSTS = {
    "blocks": ("on_front", "blocks run per scored token, share of all"),
    "speed_ratio": ("on_speed_front", "measured speed in generation, ratio to the full model"),
}
"""Costs to plot accuracy against: the column with the Pareto front, and the label."""


def accuracy_against_cost(table: pd.DataFrame, cost: str = "blocks") -> Figure:
    """Accuracy at each ε against a cost, with the Pareto front.

    Args:
        table: one row per task (a panel each) and setting: task, policy ("full model" or "early exit"), epsilon,
            accuracy with its interval, the cost, and whether the row is on its front (on_front or on_speed_front).
        cost: blocks or speed_ratio.

    Raises:
        InvalidInputError: another cost, or missing columns.
    """
    if cost not in COSTS:
        raise InvalidInputError(f"cost={cost!r}: expected one of {', '.join(COSTS)}.")
    front, label = COSTS[cost]
    check_table(table, "task", "policy", "epsilon", *with_interval("accuracy"), cost, front)
    tasks = table.task.unique()
    figure, axes_list = panels(len(tasks), height=2.4, sharey=True)
    for axes, task in zip(axes_list, tasks, strict=True):
        _draw_task(axes, table[table.task == task].sort_values(cost), cost, front)
        axes.set(title=task, ylim=(0, None))
    axes_list[0].set_ylabel("accuracy (95% interval)")
    figure.supxlabel(label, fontsize=8)
    figure.legend(*axes_list[0].get_legend_handles_labels(), loc="outside right center", fontsize=6)
    return figure


def _draw_task(axes: Axes, table: pd.DataFrame, cost: str, front: str) -> None:
    best, full = table[table[front].astype(bool)], table[table.policy == "full model"]
    axes.plot(best[cost], best.accuracy, "--", color="0.4", linewidth=0.8, zorder=1, label="Pareto front")
    for row in full.itertuples():
        axes.axhspan(row.accuracy_low, row.accuracy_high, color="0.93", zorder=0)
    axes.plot(full[cost], full.accuracy, "*", markersize=8, color=PALETTE[1], label="full model (band: 95%)")
    early = table[table.policy != "full model"]
    for epsilon, style in epsilon_style(early.epsilon.unique()).items():
        part = early[early.epsilon == epsilon]
        band(axes, part, cost, "accuracy", linestyle="", label=f"ε = {epsilon:g}", **style)


def exits_and_speed(table: pd.DataFrame) -> Figure:
    """Exit shares at each ε, and predicted beside measured speed.

    Args:
        table: one row per ε: epsilon (1: the full model, not drawn), share_{depth} of every exit and, the deepest, of
            the full model, generated_blocks, passes_per_token, and speed_ratio with its interval.
    """
    check_table(table, "epsilon", "generated_blocks", "passes_per_token", *with_interval("speed_ratio"))
    table = table[table.epsilon < 1].sort_values("epsilon")
    figure, (stacked, promised) = panels(2, height=2.4)
    _stack(stacked, table)
    promised.plot(table.epsilon, 1 / table.generated_blocks, "--", color=PALETTE[1], label="blocks only")
    promised.plot(table.epsilon, 1 / table.passes_per_token, "-.", color=PALETTE[2], label="all weights read")
    band(promised, table, "epsilon", "speed_ratio", marker="o", color=PALETTE[0], label="measured (95%)")
    promised.axhline(1, color="0.6", linewidth=0.6)
    promised.set(xlabel="ε", ylabel="speed, ratio to the full model")
    promised.legend(fontsize=6)
    return figure


def _stack(axes: Axes, table: pd.DataFrame) -> None:
    """Stacked bars of share_{depth}, the shallowest exit at the bottom."""
    depths = sorted(int(name.removeprefix("share_")) for name in table.columns if name.startswith("share_"))
    if not depths:
        raise InvalidInputError("The table has no columns share_{depth}: expected one per depth (`exit_shares`).")
    bottom = np.zeros(len(table))
    for i, depth in enumerate(depths):
        last = depth == depths[-1]
        label, color = ("full model", "0.85") if last else (f"depth {depth}", PALETTE[i % len(PALETTE)])
        part = table[f"share_{depth}"].to_numpy()
        axes.bar(range(len(part)), part, bottom=bottom, color=color, label=label)
        bottom += part
    axes.set(xticks=range(len(table)), xticklabels=[f"{e:g}" for e in table.epsilon], xlabel="ε", ylim=(0, 1))
    axes.set_ylabel("share of the tokens")
    axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=3)


def anytime_quality(table: pd.DataFrame) -> Figure:
    """Agreement, log-likelihood and accuracy by depth, if all tokens exit there.

    Args:
        table: one row per task and depth: task, depth, agreement, and log_prob_less_full and accuracy with their
            intervals.
    """
    drawn = ("log_prob_less_full", "accuracy")
    check_table(table, "task", "depth", "agreement", *with_interval(drawn[0]), *with_interval(drawn[1]))
    figure, (agreement, *by_task) = panels(3, height=2.2)
    by_depth = table.drop_duplicates("depth").sort_values("depth")
    agreement.plot(by_depth.depth, by_depth.agreement, "o-")
    styles = depth_style(range(table.task.nunique())).values()
    for (task, part), style in zip(table.groupby("task"), styles, strict=True):
        for axes, value in zip(by_task, drawn, strict=True):
            band(axes, part, "depth", value, marker="o", label=task, **style)
    agreement.set(title="agreement with the model,\nits own text", ylim=(0, 1.03))
    by_task[0].set(title="log-likelihood of the right\nchoice, less the model's [nats]")
    by_task[1].set(title="accuracy", ylim=(0, None))
    by_task[1].legend(fontsize=6)
    figure.supxlabel("depth of the exit [blocks]", fontsize=8)
    return figure
