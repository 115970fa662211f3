"""From traces to a policy: what fixed exits would do on text that the model wrote, and which of them is best."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from eelib.cost import Costs
from eelib.errors import InvalidInputError

DRAFT_LENGTHS = (2, 4, 6, 8)


def fixed_exit_rounds(matches: np.ndarray, draft_length: int) -> dict[str, int]:
    """What `FixedExit` with this draft length does on one greedy text of the model's: exact, up to ties.

    Args:
        matches: bool [token]; whether the exit, reading the state before new token i, names token i. Entry 0 is the
            token that prefill emits.
        draft_length: drafts a round.

    Returns:
        emitted, rounds, drafted, accepted. A text that ended at its length limit is assumed: drafts stop there.
    """
    if draft_length < 1:
        raise InvalidInputError(f"draft_length={draft_length}: expected a positive number.")
    at, rounds, drafted, accepted = 1, 0, 0, 0
    while at < len(matches):
        window = matches[at : at + draft_length]
        right = len(window) if window.all() else int(window.argmin())
        rounds, drafted, accepted = rounds + 1, drafted + len(window), accepted + right
        at += right + 1
    return {"emitted": len(matches), "rounds": rounds, "drafted": drafted, "accepted": accepted}


def fixed_exit_grid(
    traces: pd.DataFrame, costs: Costs, n_blocks: int, draft_lengths: Sequence[int] = DRAFT_LENGTHS
) -> pd.DataFrame:
    """Every depth in the traces x every draft length: counts over all texts, acceptance, and expected speed.

    Traces are of greedy text, recorded from the last position of the prompt on. Columns: depth, draft_length,
    emitted, rounds, drafted, accepted, acceptance_rate, accepted_per_round, tokens_per_round, tokens_per_pass (tokens
    emitted per cost of one full pass; plain decoding has 1).
    """
    rows = []
    for depth, table in traces.groupby("depth"):
        texts = [t.agrees.to_numpy() for _, t in table.sort_values("position").groupby("sequence")]
        for draft_length in draft_lengths:
            counts = pd.DataFrame([fixed_exit_rounds(text, draft_length) for text in texts]).sum()
            spent = counts.rounds * costs.fixed_exit_round(depth, n_blocks, draft_length) + len(texts)
            rows.append(
                {
                    "depth": depth,
                    "draft_length": draft_length,
                    **counts,
                    "acceptance_rate": counts.accepted / counts.drafted,
                    "accepted_per_round": counts.accepted / counts.rounds,
                    "tokens_per_round": (counts.emitted - len(texts)) / counts.rounds,
                    "tokens_per_pass": counts.emitted / spent,
                }
            )
    return pd.DataFrame(rows)


def on_front(gain: Sequence[float], cost: Sequence[float]) -> list[bool]:
    """For each point whether it is on the Pareto front: none has its gain for less, or more for its cost."""
    gain, cost = np.asarray(gain, float), np.asarray(cost, float)
    beaten = [((gain >= g) & (cost < c) | (gain > g) & (cost <= c)).any() for g, c in zip(gain, cost, strict=True)]
    return [not b for b in beaten]
