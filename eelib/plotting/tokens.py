"""Easy tokens: text coloured by the depth at which tokens were decided."""

import html
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from eelib.errors import InvalidInputError
from eelib.plotting.style import COLUMN, check_table, depth_style, panels


def tokens_html(trace: pd.DataFrame, tokenizer, n_blocks: int, depths: Sequence[int]) -> str:
    """Decoded text as HTML, tokens coloured by depth, with a legend.

    Args:
        trace: of a decoding (`DecodingOutput.trace`); rejected drafts are left out.
        tokenizer: decodes the tokens, whose text is escaped.
        n_blocks: of the full model.
        depths: of the heads, all in the legend.

    Raises:
        InvalidInputError: the trace has another depth, or no token.
    """
    known = _depths(trace, n_blocks, depths)
    colors = {depth: _pastel(style["color"]) for depth, style in depth_style(known).items()}
    tokens = _final_tokens(trace, colors)
    names = {0: "0 (looked up in the text)", n_blocks: f"{n_blocks} (full model)"}
    legend = [_span(f"&nbsp;{names.get(depth, depth)}&nbsp;", color) for depth, color in colors.items()]
    text = [
        _span(html.escape(tokenizer.decode([token])).replace("\n", "⏎<br>"), colors[depth], f"depth {depth}")
        for token, depth in zip(tokens.token_id, tokens.depth, strict=True)
    ]
    return (
        f"<p>settled after … blocks: {' '.join(legend)}</p>"
        f'<p style="white-space:pre-wrap">{"".join(text)}</p>'
    )  # fmt: skip


def settled_shares(trace: pd.DataFrame, n_blocks: int, depths: Sequence[int]) -> pd.DataFrame:
    """Share of tokens decided at each depth, for `depth_shares`.

    Arguments as for `tokens_html`. Columns: depth (of every head; n_blocks for the full model; 0 for lookup),
    share_of_tokens.
    """
    known = _depths(trace, n_blocks, depths)
    shares = _final_tokens(trace, known).depth.value_counts(normalize=True).reindex(known, fill_value=0.0)
    return pd.DataFrame({"depth": known, "share_of_tokens": shares.to_numpy()})


def depth_shares(table: pd.DataFrame, n_blocks: int, title: str = "") -> Figure:
    """Bar chart of `settled_shares`.

    Args:
        table: columns depth, share_of_tokens.
        n_blocks: of the full model.
        title: above the figure.

    Raises:
        InvalidInputError: no rows, or a column is missing.
    """
    check_table(table, "depth", "share_of_tokens")
    style = depth_style(table.depth)
    figure, (axes,) = panels(1, width=COLUMN)
    axes.bar(table.depth.astype(str), table.share_of_tokens, color=[style[depth]["color"] for depth in table.depth])
    axes.set(xlabel=f"settled after … blocks ({n_blocks} = the full model)", ylabel="share of tokens", ylim=(0, 1))
    axes.set_title(title)
    return figure


def _depths(trace: pd.DataFrame, n_blocks: int, depths: Sequence[int]) -> list[int]:
    """All depths of tokens, ascending; 0 only with lookup."""
    looked_up = "depth" in trace and (trace.depth == 0).any()
    return sorted([*([0] if looked_up else []), *depths, n_blocks])


def _final_tokens(trace: pd.DataFrame, depths: Sequence[int]) -> pd.DataFrame:
    """Rows of final tokens."""
    check_table(trace, "token_id", "depth", "drafted", "accepted")
    unknown = sorted(set(trace.depth) - set(depths))
    if unknown:
        raise InvalidInputError(f"The trace has tokens of depth {unknown}: expected {', '.join(map(str, depths))}.")
    return trace[trace.accepted | ~trace.drafted]


def _span(text: str, color: str, title: str = "") -> str:
    return f'<span style="background:{color};color:black" title="{title}">{text}</span>'


def _pastel(color: tuple[float, float, float]) -> str:
    """Lighter shade, for black text on it."""
    red, green, blue = (int(255 * (0.55 + 0.45 * part)) for part in color)
    return f"rgb({red},{green},{blue})"
