"""Style of all figures, and saving as PDF, PNG and CSV."""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eelib.confidence.metrics import known_metrics
from eelib.errors import InvalidInputError
from eelib.timing import provenance
from eelib.workspace import recorded, write_note, write_whole

COLUMN, PAGE = 3.25, 5.5
"""Widths in inches: one column, or the page."""

PALETTE = sns.color_palette("colorblind")
"""Colours that colour-blind readers can tell apart."""
LINES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)))
"""Dashes, beside colour."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""Markers, beside colour."""
DIGITS = "%.6g"
"""How numbers are written beside a figure."""


def styled(groups: Iterable, *styles: Iterable) -> Iterator[tuple]:
    """Each group with a colour, marker or the like, which begin anew.

    So that where there are more groups than styles, none is left out.
    """
    return zip(groups, *map(cycle, styles), strict=False)


def abreast(n: int, apart: float) -> np.ndarray:
    """Offsets of n points side by side over one tick."""
    return (np.arange(n) - (n - 1) / 2) * apart


def use_style() -> None:
    """Set the style: final size, 8 pt, editable embedded fonts (type 42)."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    mpl.rcParams |= {
        "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
        "ytick.labelsize": 7, "lines.linewidth": 1.2, "lines.markersize": 4, "axes.linewidth": 0.6,
        "figure.dpi": 150, "savefig.dpi": 300, "pdf.fonttype": 42, "ps.fonttype": 42, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True,
        "svg.hashsalt": "eelib",
    }  # fmt: skip


def metric_style(metric: str) -> dict:
    """Colour and dash of a metric, the same in every figure.

    Never colour alone. Other columns (`combined`) are grey.
    """
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
    """Write name.pdf, .png, .csv, .md and their provenance, together.

    Args:
        plotted: the numbers that the figure shows. Columns with "second" or "speed" in their name hold what was timed,
            and differ from run to run; no other column does.
        sentence: what the figure shows, in Markdown (`eelib.reporting`). The note ends with day, machine and commit.
    """
    with recorded(folder) as temporary:
        write_whole(temporary / f"{name}.csv", plotted.to_csv(index=False, float_format=DIGITS))
        for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=metadata)
            write_whole(temporary / f"{name}.{kind}", content.getvalue())
        write_note(temporary / f"{name}.md", sentence, provenance())


def panels(n: int, width: float = PAGE, height: float = 2.2, **kwargs) -> tuple[Figure, list[Axes]]:
    """Figure with n panels side by side."""
    figure, axes = plt.subplots(1, n, figsize=(width, height), squeeze=False, **kwargs)
    return figure, list(axes[0])


def band(axes: Axes, table: pd.DataFrame, x: str, y: str, **style) -> None:
    """Line of y over x, with {y}_low ... {y}_high as error bars."""
    table = table.sort_values(x)
    axes.errorbar(table[x], table[y], yerr=interval_errors(table, y), capsize=1.5, elinewidth=0.7, **style)


def interval_errors(table: pd.DataFrame, name: str) -> list[pd.Series]:
    """Distances of interval bounds from their values, as for matplotlib's error bars."""
    # The middle of few resamples may not hold the value itself.
    return [(table[name] - table[f"{name}_low"]).clip(lower=0), (table[f"{name}_high"] - table[name]).clip(lower=0)]


def with_interval(name: str) -> tuple[str, str, str]:
    """Column names of a value and its interval."""
    return name, f"{name}_low", f"{name}_high"


def check_table(table: pd.DataFrame, *columns: str) -> None:
    """Refuse a table without rows or with missing columns.

    Raises:
        InvalidInputError: it is one.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        raise InvalidInputError(f"The table has no column {', '.join(missing)}: it has {', '.join(table)}.")
    if table.empty:
        raise InvalidInputError(f"The table has no rows: expected at least one, with {', '.join(columns)}.")


def as_written(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """A checked table with the digits of its CSV.

    What is said of it in memory is then what would be said of the file: 0.77499999 is 0.775 in both.

    Raises:
        InvalidInputError: as `check_table`.
    """
    check_table(table, *columns)
    return table.map(lambda value: float(DIGITS % value) if isinstance(value, float | np.floating) else value)
