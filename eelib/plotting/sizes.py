"""Model sizes side by side."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from eelib.plotting.style import MARKERS, PAGE, PALETTE, abreast, band, check_table, interval_errors, panels, styled


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
        shift = abreast(len(models), 0.5 / len(models))[number]
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


def claims_by_size(table: pd.DataFrame) -> Figure:
    """Popular claims and what models measured, a colour per model.

    Args:
        table: from `read_claims`. What is claimed is a grey bar, or a line.
    """
    check_table(table, "model", "measure", "claim", "claimed_low", "claimed_high", "value", "value_low", "value_high")
    measures = {"speed": "speed, ratio to plain", "compute saved": "share of compute saved",
                "accuracy": "accuracy, less the full model's"}  # fmt: skip
    parts = [table[table.measure == measure] for measure in measures]
    heights = [part.claim.nunique() for part in parts]
    figure, axes_list = plt.subplots(3, 1, figsize=(PAGE, 1.2 + 0.28 * sum(heights)), height_ratios=heights)
    models = list(table.model.unique())
    for axes, part, label in zip(axes_list, parts, measures.values(), strict=True):
        claims = list(part.claim.unique())
        for number, (model, color, marker) in enumerate(styled(models, PALETTE, MARKERS)):
            of = part[part.model == model].reset_index(drop=True)
            place = of.claim.map(claims.index) + abreast(len(models), 0.7 / len(models))[number]
            claimed = axes.hlines(place, of.claimed_low, of.claimed_high, color="0.75", linewidth=3, label="claimed")
            axes.plot(of.claimed_low, place, "|", color="0.5", markersize=7)
            errors = interval_errors(of, "value")
            axes.errorbar(
                of.value, place, xerr=errors, fmt=marker, color=color, capsize=1.5, elinewidth=0.7, markersize=3,
                label=model,
            )  # fmt: skip
            if number:
                claimed.set_label(None)
        axes.axvline(1 if label.startswith("speed") else 0, color="0.6", linewidth=0.6)
        axes.set(xlabel=label, yticks=range(len(claims)), ylim=(len(claims) - 0.5, -0.5))
        axes.set_yticklabels(claims, fontsize=6)
    figure.legend(
        *axes_list[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(models) + 1, fontsize=6
    )
    return figure
