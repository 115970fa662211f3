"""Sentences about heads, and about LayerSkip's training in their place."""

import pandas as pd

from eelib.plotting.style import as_written, with_interval
from eelib.reporting.wording import (
    NOTHING,
    at_depths,
    depths,
    holders,
    interval,
    kind_of_text,
    listed,
    numbers,
    placed,
)


def settled_shares(table: pd.DataFrame) -> str:
    """Which share of the tokens heads settled, and where.

    Args:
        table: `plotting.settled_shares`.
    """
    table = as_written(table, "depth", "share_of_tokens")
    shares = table.dropna().set_index("depth").share_of_tokens.sort_index()
    if shares.empty:
        return NOTHING
    full, looked_up, by_head = shares.iloc[-1], shares.get(0, 0), shares.iloc[:-1].drop(0, errors="ignore")
    lookup = f" and lookup in the text {looked_up:.0%}" if looked_up else ""
    if not by_head.sum():
        return f"**Heads settle none of the tokens{lookup}**; the full model settles {full:.0%}."
    return (
        f"**Heads settle {by_head.sum():.0%} of the tokens{lookup}**: {at_depths(by_head, '.0%')}. "
        f"The full model settles {full:.0%}."
    )


def training_curves(table: pd.DataFrame) -> str:
    """Agreement of the heads at the end of training and its beginning.

    Args:
        table: tokens, depth, agreement; and held_out_agreement of each depth, where it was measured.
    """
    table = as_written(table, "tokens", "depth", "agreement")
    table = table.dropna(subset="agreement", ignore_index=True).sort_values("tokens")
    if table.empty:
        return NOTHING
    first, last = (end.set_index("depth").agreement.sort_index() for end in _ends(table))
    said = (
        f"**After {table.tokens.max():,.0f} training tokens, heads after {numbers(last.index, 'g')} blocks agree with "
        f"the model on {numbers(last, '.0%')} of the training text**"
    )
    if table.tokens.nunique() > 1:
        said += f", {'up from' if (last > first).all() else 'from'} {numbers(first, '.0%')} in the first steps"
    if "held_out_agreement" in table and table.held_out_agreement.notna().any():
        held_out = (
            table.dropna(subset="held_out_agreement", ignore_index=True).groupby("depth").held_out_agreement.last()
        )
        said += f"; on held-out text, on {at_depths(held_out, '.0%')}"
    return f"{said}."


def _ends(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """First and last row of each depth."""
    return table.drop_duplicates("depth"), table.drop_duplicates("depth", keep="last")


def agreement_against_cost(table: pd.DataFrame) -> str:
    """Kind of head that agrees most, and savings by drafting fewer tokens.

    Args:
        table: kind, drafted ("all", or a number of tokens), depth, cost_in_blocks, agreement.
    """
    table = as_written(table, "kind", "drafted", "depth", "cost_in_blocks", "agreement")
    table = table.dropna(subset=["cost_in_blocks", "agreement"], ignore_index=True)
    whole = table[table.drafted.astype(str) == "all"]
    if whole.empty:
        return NOTHING
    best = whole.loc[whole.groupby("depth").agreement.idxmax()].set_index("depth")
    said = (
        f"**Over the whole vocabulary, agreement is highest with {holders(best.kind)}** ({at_depths(best.agreement)})"
    )
    worst = whole.loc[whole.groupby("depth").agreement.idxmin()].set_index("depth")
    if whole.kind.nunique() > 1:
        said += f", lowest with {holders(worst.kind)} ({numbers(worst.agreement)})"
    kind = best.kind.mode().iloc[0]
    part = table[(table.kind == kind) & (table.drafted.astype(str) != "all")]
    part = part.assign(size=part.drafted.astype(float))
    part = part[part["size"] == part["size"].min()].set_index("depth")
    own = whole[whole.kind == kind].set_index("depth")
    change = (part.agreement - own.agreement).dropna()
    if change.empty:
        return f"{said}."
    less, more = (of.cost_in_blocks.mean() for of in (part, own))
    changes = numbers(change, "+.3f") if len(change) == len(best) else at_depths(change, "+.3f")
    return (
        f"{said}. Drafting {part['size'].iloc[0]:,.0f} tokens only, `{kind}` heads read {less:.1f} blocks' weights, "
        f"not {more:.1f}; agreement changes by {changes}."
    )


def agreement_against_tokens(table: pd.DataFrame) -> str:
    """What the last addition of training text brought at each depth.

    Args:
        table: depth, tokens, agreement with its interval.
    """
    table = as_written(table, "depth", "tokens", *with_interval("agreement"))
    by_tokens = table.pivot_table(index="depth", columns="tokens", values="agreement").dropna()
    if by_tokens.shape[1] < 2 or by_tokens.empty:
        return NOTHING
    fewer, most = by_tokens.columns[-2:]
    gain = by_tokens[most] - by_tokens[fewer]
    helps = "still helps" if (gain > 0).all() else "no longer helps" if (gain <= 0).all() else "helps at some depths"
    (deepest,) = table[(table.tokens == most) & (table.depth == by_tokens.index.max())].to_dict("records")
    return (
        f"**More text {helps}**: from {fewer:,.0f} to {most:,.0f} training tokens, agreement changes by "
        f"{at_depths(gain, '+.3f')}; at {depths([deepest['depth']])} it is then {interval(deepest, 'agreement')}."
    )


def exits_by_depth(table: pd.DataFrame) -> str:
    """Agreement of a deep exit before and after LayerSkip's training.

    Told at the depth of the deepest head, and with what can be drafted.

    Args:
        table: exits ("original", "tuned", "our heads"), depth; in rows of held-out text agreement with its interval; in
            rows of fixed exits draft_length, acceptance_rate and tokens_per_pass.
    """
    table = as_written(table, "exits", "depth", *with_interval("agreement"), "draft_length", "tokens_per_pass")
    on_text = table.dropna(subset="agreement", ignore_index=True)
    if not len(on_text[on_text.exits == "our heads"]):
        return NOTHING
    depth = on_text[on_text.exits == "our heads"].depth.max()
    rows = {row["exits"]: row for row in on_text[on_text.depth == depth].to_dict("records")}
    if "original" not in rows or "tuned" not in rows:
        return NOTHING
    change = rows["tuned"]["agreement"] - rows["original"]["agreement"]
    verb = "raises" if change > 0 else "lowers" if change < 0 else "moves"
    said = (
        f"**LayerSkip's training {verb} the logit lens's agreement at {depths([depth])} from "
        f"{interval(rows['original'], 'agreement')} to {interval(rows['tuned'], 'agreement')}**; heads on the frozen "
        f"model have {interval(rows['our heads'], 'agreement')}."
    )
    fixed = table.dropna(subset=["tokens_per_pass", "draft_length"], ignore_index=True)
    best = fixed.loc[fixed.groupby("exits", sort=False).tokens_per_pass.idxmax()].to_dict("records")
    named = {"original": "before", "tuned": "after", "our heads": "with heads"}
    drafted = []
    for row in best:
        setting = f"depth {row['depth']:.0f}, {row['draft_length']:.0f} drafts"
        drafted.append(f"{row['tokens_per_pass']:.2f} {named.get(row['exits'], row['exits'])} ({setting})")
    if not drafted:
        return said
    return f"{said} Most tokens per pass of the full model, of which plain decoding has 1: {listed(drafted)}."


def full_model_change(table: pd.DataFrame) -> str:
    """Perplexity and accuracy of the full model after LayerSkip's training.

    Args:
        table: model ("original", "tuned", "plain"); in rows of text: text, ratio with its interval; in rows of a
            benchmark: task, difference with its interval.
    """
    table = as_written(table, "model", "text", *with_interval("ratio"), "task", *with_interval("difference"))
    texts, tasks = (
        table.dropna(subset=["text", "ratio"], ignore_index=True),
        table.dropna(subset=["task", "difference"], ignore_index=True),
    )
    tuned, plain = (texts[texts.model == model] for model in ("tuned", "plain"))
    if tuned.empty:
        return NOTHING
    rows = tuned.to_dict("records")
    worse = [placed(row, "ratio", 1) for row in rows]
    verdict = "is worse" if min(worse) > 0 else "is better" if max(worse) < 0 else "is not certainly worse everywhere"
    ratios = [f"{interval(row, 'ratio')} times the original's on {kind_of_text(row['text'])}" for row in rows[:1]]
    ratios += [f"{interval(row, 'ratio')} on {kind_of_text(row['text'])}" for row in rows[1:]]
    said = f"**Tuned by LayerSkip, the full model {verdict}**: its perplexity is {listed(ratios)}"
    if len(plain):
        said += f"; tuned as long without the recipe, {numbers(plain.ratio)} times"
    changes = [
        f"{interval(row, 'difference', '+.2f')} on {row['task']}"
        for row in tasks[tasks.model == "tuned"].to_dict("records")
    ]
    return f"{said}. Accuracy changes by {listed(changes)}." if changes else f"{said}."
