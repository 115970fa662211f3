"""The look of every figure, and saving it with its numbers in words."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eelib.confidence.metrics import known_metrics
from eelib.errors import InvalidInputError
from eelib.timing import provenance
from eelib.workspace import atomic_write, write_note

COLUMN, PAGE = 3.25, 5.5
"""Widths in inches: one column, or the page."""

PALETTE = sns.color_palette("colorblind")
LINES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


def use_style() -> None:
    """Drawn at final size, 8 pt, fonts embedded as outlines that editors can read (type 42)."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    mpl.rcParams |= {
        "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
        "ytick.labelsize": 7, "lines.linewidth": 1.2, "lines.markersize": 4, "axes.linewidth": 0.6,
        "figure.dpi": 150, "savefig.dpi": 300, "pdf.fonttype": 42, "ps.fonttype": 42, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True,
        "svg.hashsalt": "eelib",
    }  # fmt: skip


def metric_style(metric: str) -> dict:
    """Colour and dash of a metric, the same in every figure: nobody must tell lines apart by colour alone. A column of
    traces that is no metric (`combined`) is drawn in grey."""
    if metric not in known_metrics():
        return {"color": "0.35", "linestyle": LINES[-1]}
    i = known_metrics().index(metric)
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": LINES[i % len(LINES)]}


def depth_style(depths: Sequence[int]) -> dict[int, dict]:
    """Colour and dash of each depth."""
    return {d: {"color": PALETTE[i % 10], "linestyle": LINES[i % len(LINES)]} for i, d in enumerate(sorted(depths))}


def epsilon_style(epsilons: Sequence[float]) -> dict[float, dict]:
    """Colour and marker of each ε, from loose (light) to strict (dark)."""
    ordered = sorted(epsilons)
    shades = sns.color_palette("flare", len(ordered))
    return {e: {"color": shades[i], "marker": MARKERS[i % len(MARKERS)]} for i, e in enumerate(ordered)}


def save_figure(figure: Figure, folder: str | Path, name: str, plotted: pd.DataFrame, sentence: str) -> None:
    """Writes name.pdf, .png, .csv and .md into `folder`, each whole.

    Args:
        plotted: the numbers that the figure shows. Columns with "second" or "speed" in their name hold what was timed,
            and differ from run to run; no other column does.
        sentence: what the figure shows, in Markdown (`eelib.reporting`). The note ends with day, machine and commit.
    """
    folder = Path(folder)
    with atomic_write(folder / f"{name}.csv") as path:
        plotted.to_csv(path, index=False, float_format="%.6g")
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
        with atomic_write(folder / f"{name}.{kind}") as path:
            figure.savefig(path, metadata=metadata)
    write_note(folder / f"{name}.md", sentence, provenance())


def panels(n: int, width: float = PAGE, height: float = 2.2, **kwargs) -> tuple[Figure, list[Axes]]:
    """n panels side by side."""
    figure, axes = plt.subplots(1, n, figsize=(width, height), squeeze=False, **kwargs)
    return figure, list(axes[0])


def band(axes: Axes, table: pd.DataFrame, x: str, y: str, **style) -> None:
    """A line of y over x with its interval {y}_low ... {y}_high as error bars."""
    table = table.sort_values(x)
    axes.errorbar(table[x], table[y], yerr=interval_errors(table, y), capsize=1.5, elinewidth=0.7, **style)


def interval_errors(table: pd.DataFrame, name: str) -> list[pd.Series]:
    """How far intervals reach below and above their values, as matplotlib's error bars take it."""
    # The middle of few resamples may not hold the value itself.
    return [(table[name] - table[f"{name}_low"]).clip(lower=0), (table[f"{name}_high"] - table[name]).clip(lower=0)]


def with_interval(name: str) -> tuple[str, str, str]:
    """The columns of a value with its interval."""
    return name, f"{name}_low", f"{name}_high"


def check_table(table: pd.DataFrame, *columns: str) -> None:
    """Raises InvalidInputError for a table that no figure can be drawn from: without rows, or without these columns."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise InvalidInputError(f"The table to draw has no column {', '.join(missing)}: it has {', '.join(table)}.")
    if table.empty:
        raise InvalidInputError(f"The table to draw has no rows: expected at least one, with {', '.join(columns)}.")
