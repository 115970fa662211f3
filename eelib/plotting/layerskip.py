"""LayerSkip's training recipe: gains of the exits, cost to the full model."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eelib.errors import InvalidInputError
from eelib.plotting.style import PALETTE, band, check_table, interval_errors, panels, with_interval

EXITS = {
    "original": {"color": PALETTE[7], "linestyle": "--", "label": "original, logit lens"},
    "tuned": {"color": PALETTE[0], "linestyle": "-", "label": "tuned by LayerSkip, logit lens"},
    "our heads": {"color": PALETTE[1], "linestyle": "", "marker": "o", "label": "our heads, model frozen"},
}
COPIES = {
    "tuned": {"color": PALETTE[0], "fmt": "o", "label": "tuned by LayerSkip"},
    "plain": {"color": PALETTE[3], "fmt": "s", "label": "tuned without the recipe"},
}


def exits_by_depth(table: pd.DataFrame, n_blocks: int) -> Figure:
    """Agreement, perplexity and acceptance by depth, a line per source of exits.

    Args:
        table: exits (one of `EXITS`), depth, and in rows of held-out text agreement with its interval and perplexity
            (NaN for heads); in rows of fixed exits draft_length and acceptance_rate. The shortest drafts are drawn.
        n_blocks: depth of the model's end, whose agreement is 1 by definition.

    Raises:
        InvalidInputError: other exits, or missing columns.
    """
    measured = ("perplexity", "draft_length", "acceptance_rate")
    check_table(table, "exits", "depth", *with_interval("agreement"), *measured)
    _check_names("exits", table.exits, EXITS)
    figure, (agreement, perplexity, accepted) = panels(3, height=2.3)
    shortest = table.draft_length.min()
    for name, style in EXITS.items():
        part = table[table.exits == name]
        on_text, fixed = part[part.agreement.notna()], part[part.draft_length == shortest]
        band(agreement, on_text[on_text.depth < n_blocks], "depth", "agreement", **style)
        if on_text.perplexity.notna().any():
            perplexity.plot(on_text.depth, on_text.perplexity, **style)
        accepted.plot(fixed.depth, fixed.acceptance_rate, **style)
    agreement.set(title="agreement with the\nmodel's own end", ylim=(0, 1))
    perplexity.set(title="perplexity of the text", yscale="log")
    accepted.set(title=f"acceptance, {shortest:.0f} drafts,\nown greedy answers", ylim=(0, 1))
    figure.supxlabel("depth of the exit [blocks]", fontsize=8)
    figure.legend(*agreement.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=6)
    return figure


def full_model_change(table: pd.DataFrame) -> Figure:
    """Perplexity and accuracy of tuned copies, relative to the original.

    Args:
        table: model ("original" is not drawn, the others are `COPIES`); in rows of text: text, ratio (of perplexities)
            with its interval; in rows of a benchmark: task, difference (of accuracies) with its interval.

    Raises:
        InvalidInputError: other models, or missing columns.
    """
    check_table(table, "model", "text", *with_interval("ratio"), "task", *with_interval("difference"))
    copies = table[table.model != "original"]
    _check_names("model", copies.model, COPIES)
    figure, (texts, tasks) = panels(2, height=2.0)
    _compare_copies(texts, copies, "text", "ratio", unchanged=1)
    _compare_copies(tasks, copies, "task", "difference", unchanged=0)
    texts.set_xlabel("perplexity, over the original's (95%)")
    tasks.set_xlabel("accuracy, less the original's (95%)")
    figure.legend(*texts.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=6)
    return figure


def _compare_copies(axes: Axes, table: pd.DataFrame, kind: str, value: str, unchanged: float) -> None:
    """One row per kind, one interval per copy, around no change."""
    table = table[table[kind].notna()]
    kinds = list(table[kind].unique())
    for i, (model, style) in enumerate(COPIES.items()):
        part = table[table.model == model]
        height = [kinds.index(name) + 0.3 * i - 0.15 for name in part[kind]]
        axes.errorbar(part[value], height, xerr=interval_errors(part, value), capsize=1.5, **style)
    axes.axvline(unchanged, color="0.6", linewidth=0.6)
    axes.set(yticks=range(len(kinds)), yticklabels=kinds, ylim=(len(kinds) - 0.5, -0.5))


def _check_names(column: str, names: pd.Series, known: dict) -> None:
    unknown = set(names) - set(known)
    if unknown:
        raise InvalidInputError(f"{column}: {', '.join(sorted(unknown))}; expected {', '.join(known)}.")
