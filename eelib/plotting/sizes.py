"""Model sizes side by side."""

import pandas as pd
from matplotlib.figure import Figure

from eelib.plotting.style import MARKERS, PALETTE, band, check_table, interval_errors, panels, styled


def agreement_and_speed(table: pd.DataFrame) -> Figure:
    """Agreement by depth and speed by setting, a colour per model.

    Args:
        table: from `read_sizes`.
    """
    check_table(table, "model", "parameters", "measure", "at", "value", "value_low", "value_high")
    models = table.drop_duplicates("model").sort_values("parameters").model.tolist()
    ways = list(dict.fromkeys(table[table.measure == "speed"]["at"]))[::-1]
    figure, (agreement, early, tuned) = panels(3, height=1.4 + 0.14 * len(ways))
    for number, (model, color, marker) in enumerate(styled(models, PALETTE, MARKERS)):
        of = table[table.model == model]
        style = {"color": color, "marker": marker, "label": model, "markersize": 3}
        band(agreement, of[of.measure == "agreement"].astype({"at": float}), "at", "value", **style)
        band(early, of[of.measure == "early exit, speed"].astype({"at": float}), "at", "value", **style)
        part = of[of.measure == "speed"].reset_index(drop=True)
        shift = 0.5 * ((number + 0.5) / len(models) - 0.5)
        errors = interval_errors(part, "value")
        tuned.errorbar(
            part.value, part["at"].map(ways.index) - shift, xerr=errors, fmt=marker, color=color, capsize=1.5,
            elinewidth=0.7, markersize=3,
        )  # fmt: skip
    agreement.set(xlabel="share of the blocks", ylabel="agreement", ylim=(0, 1))
    early.set(xlabel="ε of early exit", ylabel="speed, ratio to plain")
    for axes, line in ((early, early.axhline), (tuned, tuned.axvline)):
        line(1, color="0.6", linewidth=0.6)
        axes.tick_params(labelsize=6)
    tuned.set(xlabel="speed, ratio to plain", yticks=range(len(ways)), yticklabels=ways)
    figure.legend(*agreement.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=6)
    return figure
