"""Speed: predicted against measured, of baselines, and against claims."""

from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.figure import Figure

from eelib.plotting.style import (
    COLUMN,
    LINES,
    MARKERS,
    PAGE,
    PALETTE,
    abreast,
    band,
    check_table,
    interval_errors,
    panels,
    styled,
    with_interval,
)


def predicted_speed(table: pd.DataFrame) -> Figure:
    """Predicted against measured tokens per second, with a band of 10%.

    Args:
        table: `check_predictions`: policy ("plain", "6 x 2", "ε = 0.8"), predicted, measured.
    """
    figure, (axes,) = panels(1, height=2.6, width=COLUMN)
    values = table[["predicted", "measured"]]
    low, high = values.min().min() * 0.9, values.max().max() * 1.1
    axes.fill_between(
        [low, high], [0.9 * low, 0.9 * high], [1.1 * low, 1.1 * high], color="0.92", zorder=0, label="±10%"
    )
    axes.plot([low, high], [low, high], color="0.6", linewidth=0.6)
    groups = {
        "plain": table.policy == "plain",
        "fixed exits": table.policy.str.contains(" x "),
        "DSSD": table.policy.str.startswith("ε"),
    }
    for (name, rows), color, marker in styled(groups.items(), PALETTE, "*os"):
        axes.plot(table.measured[rows], table.predicted[rows], marker, color=color, markersize=4, label=name)
    axes.set(xlabel="measured [tokens/s]", ylabel="predicted [tokens/s]", xlim=(low, high), ylim=(low, high))
    axes.legend(fontsize=6, loc="upper left")
    return figure


def baselines(table: pd.DataFrame) -> Figure:
    """Speed and agreement of every baseline, one row each.

    Args:
        table: decoder, lossless (whether it should preserve the output), speed_ratio with its interval,
            token_agreement.
    """
    order = table.sort_values("speed_ratio").reset_index(drop=True)
    figure, (speed, agreed) = panels(2, height=0.7 + 0.17 * len(order), sharey=True)
    for lossless, color, label in (
        (True, PALETTE[0], "verified or the model's own"),
        (False, PALETTE[1], "exits are final"),
    ):
        part = order[order.lossless == lossless]
        errors = interval_errors(part, "speed_ratio")
        speed.errorbar(part.speed_ratio, part.index, xerr=errors, fmt="o", capsize=1.5, color=color, label=label)
        agreed.plot(part.token_agreement, part.index, "o", color=color)
    speed.axvline(1, color="0.6", linewidth=0.6)
    speed.set(yticks=range(len(order)), yticklabels=order.decoder, xlabel="speed, ratio to plain (95%)")
    speed.tick_params(axis="y", labelsize=6)
    agreed.set(xlabel="share of tokens that are\nthe model's own choice", xlim=(None, 1.02))
    figure.legend(*speed.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=6)
    return figure


def speed_against_agreement(table: pd.DataFrame, front: Iterable[bool]) -> Figure:
    """Token agreement against speed, a colour per method, with the Pareto front.

    Args:
        table: method, speed_ratio, token_agreement.
        front: for each row whether it is on the front.
    """
    figure, (axes,) = panels(1, height=2.8)
    best = table[list(front)].sort_values("speed_ratio")
    axes.plot(best.speed_ratio, best.token_agreement, "--", color="0.7", linewidth=0.8, zorder=1, label="Pareto front")
    for (method, part), color, marker in styled(table.groupby("method", sort=False), PALETTE, MARKERS):
        axes.plot(part.speed_ratio, part.token_agreement, marker, color=color, markersize=4, label=method)
    axes.axvline(1, color="0.6", linewidth=0.6)
    axes.set(xlabel="speed, ratio to plain", ylabel="share of tokens that are\nthe model's own choice")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def speed_in_batches(table: pd.DataFrame) -> Figure:
    """Tokens per second by batch size, ratios to plain, and exits lost.

    Args:
        table: `summarise_batches`: rows, kind, gather ("" where there is no rule), tokens_per_second, speed_ratio with
            its interval, exits_lost.
    """
    check_table(table, "rows", "kind", "gather", "tokens_per_second", *with_interval("speed_ratio"), "exits_lost")
    figure, (speed, ratio, lost) = panels(3, height=2.4, width=PAGE)
    for (kind, of_kind), color in styled(table.groupby("kind", sort=False), PALETTE):
        for (gather, part), line, marker in styled(of_kind.groupby("gather", sort=False), LINES, MARKERS):
            style = {"color": color, "linestyle": line, "marker": marker, "markersize": 3, "linewidth": 0.9}
            name = f"{kind}, {gather}" if gather else kind
            speed.plot(part.rows, part.tokens_per_second, label=name, **style)
            band(ratio, part, "rows", "speed_ratio", **style)
            if gather:
                lost.plot(part.rows, 100 * part.exits_lost, **style)
    sizes = sorted(table.rows.unique())
    for axes in (speed, ratio, lost):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="rows at once", xticks=sizes, xticklabels=[f"{size}" for size in sizes])
    ratio.axhline(1, color="0.6", linewidth=0.6)
    speed.set_yscale("log", base=2)
    speed.yaxis.set_major_formatter("{x:g}")
    speed.set(ylabel="tokens/s, all rows")
    ratio.set(ylabel="speed, ratio to as many\nplain rows")
    lost.set(ylabel="exits lost to other rows [%]")
    figure.legend(*speed.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=6)
    return figure


def popular_claims(claims: pd.DataFrame, accuracy: pd.DataFrame, claimed_speeds: Sequence[float]) -> Figure:
    """Speed and accuracy at thresholds on max_prob, beside popular claims.

    Args:
        claims: threshold, speed_ratio with its interval.
        accuracy: threshold, task, value_less_full with its interval.
        claimed_speeds: a dotted line each.
    """
    figure, (speed, change) = panels(2, height=2.3)
    errors = interval_errors(claims, "speed_ratio")
    speed.errorbar(
        claims.threshold,
        claims.speed_ratio,
        yerr=errors,
        fmt="o-",
        capsize=1.5,
        color=PALETTE[0],
        label="measured (95%)",
    )
    for number, claimed in enumerate(claimed_speeds):
        label = "claimed: " + " and ".join(f"{value:g}" for value in claimed_speeds)
        speed.axhline(claimed, color=PALETTE[7], linestyle=":", label=None if number else label)
    speed.axhline(1, color="0.6", linewidth=0.6)
    speed.set(xlabel="threshold on max_prob", ylabel="speed, ratio to plain", ylim=(0, None), xticks=claims.threshold)
    speed.legend(fontsize=6)
    tasks = accuracy.groupby("task", sort=False)
    shifts = abreast(len(tasks), 0.012)
    for ((task, part), color, marker), shift in zip(styled(tasks, PALETTE[1:], "s^D"), shifts, strict=True):
        errors = interval_errors(part, "value_less_full")
        change.errorbar(
            part.threshold + shift,
            part.value_less_full,
            yerr=errors,
            fmt=f"{marker}-",
            capsize=1.5,
            color=color,
            label=task.removeprefix("offline_"),
        )
    change.axhline(0, color="0.6", linewidth=0.6)
    change.set(xlabel="threshold on max_prob", ylabel="accuracy, less the\nfull model's (95%)", xticks=claims.threshold)
    change.legend(fontsize=6)
    return figure
