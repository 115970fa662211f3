"""Sentences about accuracy: what early exit loses, by task."""

import pandas as pd

from eelib.plotting.style import as_written, with_interval
from eelib.reporting.wording import NOTHING, depths, interval, listed, nearest, numbers, pace

TOLD = (0.8, 0.9)
"""The ε that are told, or those nearest to them."""


def accuracy_against_cost(table: pd.DataFrame, cost: str = "blocks") -> str:
    """Accuracy lost by early exit, and blocks or time saved.

    Args:
        table: one row per task and setting: task, policy, epsilon, accuracy, accuracy_less_full with its interval, and
            for blocks changed_answers and blocks, for speed token_agreement and speed_ratio with its interval.
        cost: blocks or speed_ratio.
    """
    table = as_written(table, "task", "policy", "epsilon", "accuracy", *with_interval("accuracy_less_full"), cost)
    early = table[table.policy != "full model"].dropna(
        subset=["accuracy", "accuracy_less_full", cost], ignore_index=True
    )
    early = early.assign(full=early.accuracy - early.accuracy_less_full)
    if early.empty:
        return NOTHING
    if cost == "speed_ratio":
        return _accuracy_against_speed(early)
    rows = early[early.epsilon == nearest(early.epsilon, TOLD[0])].to_dict("records")
    blocks = [
        f"{row['blocks']:.0%}{' of the blocks' * (not number)} on {row['task']}" for number, row in enumerate(rows)
    ]
    changes = [f"{interval(row, 'accuracy_less_full', '+.2f')} from {row['full']:.2f}" for row in rows]
    said = f"**Early exit at ε = {rows[0]['epsilon']:g} runs {listed(blocks)}**; accuracy moves by {listed(changes)}"
    changed = [row["changed_answers"] for row in rows]
    return f"{said}." if pd.isna(changed).any() else f"{said}, and {numbers(changed, '.0%')} of the answers change."


def _accuracy_against_speed(early: pd.DataFrame) -> str:
    told = sorted({nearest(early.epsilon, wanted) for wanted in TOLD}, reverse=True)
    phrases, changes = [], []
    for epsilon in told:
        row = early[early.epsilon == epsilon].iloc[0]
        own = "" if phrases else " of its tokens the model's own"
        same = "" if pd.isna(row.token_agreement) else f" ({row.token_agreement:.0%}{own})"
        phrases.append(f"{pace(row)} with ε = {epsilon:g}{same}")
    for task, part in (
        early[early.epsilon.isin(told)].sort_values("epsilon", ascending=False).groupby("task", sort=False)
    ):
        moved = listed(interval(row, "accuracy_less_full", "+.2f") for row in part.to_dict("records"))
        changes.append(f"on {task} by {moved}")
    return f"**Beside the full model, early exit is {listed(phrases)}**; accuracy moves {listed(changes)}."


def anytime_quality(table: pd.DataFrame) -> str:
    """What the exits would be worth, if all tokens left there.

    Args:
        table: task, depth (the greatest is the full model's), agreement, and accuracy_less_full with its interval.
    """
    table = as_written(table, "task", "depth", "agreement", *with_interval("accuracy_less_full"))
    heads = table[table.depth < table.depth.max()].dropna(subset=["agreement", "accuracy_less_full"], ignore_index=True)
    if heads.empty:
        return NOTHING
    agreement = heads.groupby("depth").agreement.first()
    ends = heads[heads.depth.isin([heads.depth.min(), heads.depth.max()])].sort_values("depth")
    phrases = []
    for task, part in ends.groupby("task", sort=False):
        moved = [
            f"{interval(r, 'accuracy_less_full', '+.2f')} at depth {r['depth']:g}" for r in part.to_dict("records")
        ]
        phrases.append(f"on {task} by {listed(moved)}")
    return (
        f"**{numbers(agreement, '.0%', 'or')} of the tokens would be the model's own choice if all left at "
        f"{depths(agreement.index, 'or')}.** Accuracy would move {'; '.join(phrases)}."
    )
