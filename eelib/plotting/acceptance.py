"""Acceptance of drafts: by exit, of tuned policies, and against speed."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from eelib.plotting.style import MARKERS, PALETTE, depth_style, interval_errors, panels, styled

PAPERS_RATIO = 1.66
"""Acceptance of DSSD over LayerSkip's, as reported in the paper (arXiv 2407.21082)."""


def setting_label(row: Mapping[str, float]) -> str:
    """Short label of a setting, such as "ε = 0.7".

    Or "6 x 2"; empty without parameters.
    """
    if not pd.isna(row.get("epsilon")):
        return f"ε = {row['epsilon']:g}"
    if not pd.isna(row.get("depth")):
        return f"{row['depth']:.0f} x {row['draft_length']:.0f}"
    return ""


def acceptance_by_exit(grid: pd.DataFrame, dssd_acceptance: float, dssd_label: str) -> Figure:
    """Acceptance of fixed exits by depth, a line per draft length.

    Args:
        grid: `Tuning.grid`; rows with a depth are drawn: kind, depth, draft_length, acceptance_rate.
        dssd_acceptance, dssd_label: of the chosen DSSD, a dotted line.
    """
    fixed = grid[grid.depth.notna()]
    kinds, lengths = list(dict.fromkeys(fixed.kind)), sorted(fixed.draft_length.unique())
    style = depth_style(range(len(lengths)))
    figure, axes_list = panels(len(kinds), height=2.4, sharey=True)
    for axes, kind in zip(axes_list, kinds, strict=True):
        for i, n in enumerate(lengths):
            part = fixed[(fixed.kind == kind) & (fixed.draft_length == n)].sort_values("depth")
            marker = "o" if len(part) <= 8 else None
            label = f"{n:.0f} draft" + ("s" if n > 1 else "")
            axes.plot(part.depth, part.acceptance_rate, **style[i], marker=marker, label=label)
        axes.axhline(dssd_acceptance, color=PALETTE[7], linestyle=":", label=dssd_label)
        axes.set(title=kind, xlabel="depth [blocks]", ylim=(0, 1))
        if len(part) <= 8:
            axes.set_xticks(part.depth)
    axes_list[0].set_ylabel("acceptance rate (tuning prompts)")
    handles = axes_list[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(handles[1]), fontsize=6, columnspacing=1)
    return figure


def tuned_speed(result: pd.DataFrame) -> Figure:
    """Acceptance and speed of each decoder, and DSSD's acceptance over LayerSkip's.

    Args:
        result: one row per decoder: `summarise`, the settings' parameters, and acceptance_ratio with its interval for
            those that DSSD is compared with.
    """
    order = result.iloc[::-1].reset_index(drop=True)
    labels = [f"{row['decoder']}\n{setting_label(row)}".strip() for row in order.to_dict("records")]
    figure, (accepted, speed, ratio) = panels(3, height=max(2.4, 0.7 + 0.25 * len(order)))
    for axes, value, label in (
        (accepted, "acceptance_rate", "acceptance rate\n(95%)"),
        (speed, "speed_ratio", "speed, ratio\nto plain (95%)"),
    ):
        axes.errorbar(
            order[value], range(len(order)), xerr=interval_errors(order, value), fmt="o", capsize=1.5, elinewidth=0.7,
            color=PALETTE[0],
        )  # fmt: skip
        axes.set(xlabel=label, ylim=(-0.5, len(order) - 0.5), yticks=range(len(order)))
        axes.set_yticklabels(labels if axes is accepted else [])
    speed.axvline(1, color="0.6", linewidth=0.6)
    accepted.set_xlim(0, 1)
    rivals = result[result.acceptance_ratio.notna()].reset_index(drop=True)
    errors = interval_errors(rivals, "acceptance_ratio")
    ratio.errorbar(rivals.index, rivals.acceptance_ratio, yerr=errors, fmt="o", capsize=1.5, color=PALETTE[0])
    ratio.axhline(PAPERS_RATIO, color=PALETTE[7], linestyle=":", label=f"the paper: {PAPERS_RATIO}")
    names = [name.removeprefix("LayerSkip, ").replace(" ", "\n") for name in rivals.decoder]
    ratio.set_xticks(rivals.index, names)
    ratio.axhline(1, color="0.6", linewidth=0.6)
    ratio.set(xlim=(-0.5, len(rivals) - 0.5), ylabel="DSSD's acceptance\nover LayerSkip's (95%)")
    ratio.set_yscale("log", base=2)
    ratio.set_ylim(top=max(2.1, ratio.get_ylim()[1]))
    ratio.yaxis.set_major_formatter("{x:g}")
    ratio.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def acceptance_curve(summary: pd.DataFrame, ratios: pd.DataFrame, against: str) -> Figure:
    """Acceptance against speed over ε, and DSSD's over one LayerSkip's.

    Args:
        summary: one row per decoder, `summarise` with kind and parameters.
        ratios: decoder, epsilon, against, acceptance_ratio and relative_speed with their intervals.
        against: the decoder of the right panel.
    """
    figure, (absolute, relative) = panels(2, height=2.6)
    shared = {"capsize": 1.5, "elinewidth": 0.6, "linewidth": 0.8, "markersize": 4}
    kinds = list(dict.fromkeys(summary.kind.dropna()))
    for kind, color, marker in styled(kinds, PALETTE, MARKERS):
        part = summary[summary.kind == kind]
        absolute.errorbar(
            part.speed_ratio, part.acceptance_rate, xerr=interval_errors(part, "speed_ratio"),
            yerr=interval_errors(part, "acceptance_rate"), fmt=f"{marker}-", color=color, label=kind, **shared,
        )  # fmt: skip
        for row in part.to_dict("records"):
            label = setting_label(row).removeprefix("ε = ")
            _annotate(absolute, label, row["speed_ratio"], row["acceptance_rate"], color)
    absolute.axvline(1, color="0.6", linewidth=0.6)
    absolute.set(xlabel="speed, ratio to plain", ylabel="acceptance rate", ylim=(0, 1))
    part = ratios[ratios.against == against].sort_values("epsilon")
    relative.errorbar(
        part.relative_speed, part.acceptance_ratio, xerr=interval_errors(part, "relative_speed"),
        yerr=interval_errors(part, "acceptance_ratio"), fmt="o-", color=PALETTE[0], **shared,
    )  # fmt: skip
    for row in part.to_dict("records"):
        _annotate(relative, setting_label(row), row["relative_speed"], row["acceptance_ratio"], PALETTE[0])
    relative.axvline(1, color="0.6", linewidth=0.6)
    relative.axhline(PAPERS_RATIO, color=PALETTE[7], linestyle=":", label=f"the paper: {PAPERS_RATIO}")
    relative.set(
        xlabel=f"tokens per second over those of\n{against}", ylabel="acceptance over LayerSkip's", ylim=(0, None)
    )
    relative.legend(fontsize=6, loc="lower right")
    figure.legend(*absolute.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=6)
    return figure


def _annotate(axes: Axes, text: str, x: float, y: float, color) -> None:
    outlined = [withStroke(linewidth=1.5, foreground="white")]  # readable where another point's bars run through it
    axes.annotate(
        text, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=6, color=color, path_effects=outlined
    )
