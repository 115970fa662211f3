"""Attacks on early exits: effect by mode of decoding, and monitor delay."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eelib.plotting.style import COLUMN, LINES, MARKERS, PALETTE, check_table, panels, styled, with_interval


def speed_under_attack(table: pd.DataFrame) -> Figure:
    """Agreement against speed under forged thresholds and adversarial prompts.

    Args:
        table: one row per mode (a marker each), file and prompts: mode, file ("honest", or a forged one), prompts
            ("ordinary", or the goal of the search), agreement, speed_ratio with its interval. Ordinary prompts are on
            the left, the honest file on the right; of honest files on ordinary prompts the first row is for the left,
            the last for the right.
    """
    check_table(table, "mode", "file", "prompts", "agreement", *with_interval("speed_ratio"))
    by_file = table[table.prompts == "ordinary"].drop_duplicates(["mode", "file"])
    by_prompt = table[table.file == "honest"].drop_duplicates(["mode", "prompts"], keep="last")
    markers = dict(styled(table["mode"].unique(), MARKERS))
    figure, (left, right) = panels(2, height=2.9, sharey=True)
    _draw_attack(left, by_file, "file", markers)
    _draw_attack(right, by_prompt, "prompts", markers)
    for mode, marker in markers.items():
        left.plot([], [], marker, color="0.4", label=mode)
    for axes, title in ((left, "thresholds"), (right, "prompts, honest thresholds")):
        axes.axvline(1, color="0.7", linewidth=0.6, zorder=0)
        axes.set(title=title, ylim=(0, 1.05))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6, loc="lower right", handletextpad=0)
    left.set_ylabel("agreement with the full model")
    figure.supxlabel("speed, ratio to plain decoding (95% interval)", fontsize=8)
    return figure


def _draw_attack(axes: Axes, table: pd.DataFrame, group: str, markers: dict[str, str]) -> None:
    colors = dict(styled(table[group].unique(), PALETTE))
    for row in table.to_dict("records"):
        color = colors[row[group]]
        interval = [row["speed_ratio_low"], row["speed_ratio_high"]]
        axes.plot(interval, [row["agreement"]] * 2, color=color, linewidth=0.7)
        axes.plot(row["speed_ratio"], row["agreement"], color=color, marker=markers[row["mode"]])
    for name, color in colors.items():
        axes.plot([], [], "o", color=color, label=name)


def alarms_over_time(table: pd.DataFrame, false_alarm: float, unshifted: str = "own") -> Figure:
    """Share of runs with an alarm over sequences, a line per text.

    Args:
        table: one row per text and number of sequences: text, sequences, share_of_runs (`alarm_shares`).
        false_alarm: allowed probability of a false alarm, a dotted line.
        unshifted: the text that thresholds were calibrated for.
    """
    check_table(table, "text", "sequences", "share_of_runs")
    figure, (axes,) = panels(1, width=COLUMN, height=2.2)
    for i, (text, part) in enumerate(table.groupby("text", sort=False)):
        label = f"{text}: no shift" if text == unshifted else text
        style = {"color": PALETTE[i % len(PALETTE)], "linestyle": LINES[i % len(LINES)]}
        axes.plot(part.sequences, part.share_of_runs, label=label, **style)
    axes.axhline(false_alarm, color="0.5", linestyle=":", linewidth=0.8, label=f"false alarms allowed: {false_alarm:g}")
    axes.set(xlabel="audited sequences", ylabel="share of runs with an alarm", ylim=(0, 1.02))
    axes.legend(fontsize=6, loc="center right")
    return figure
