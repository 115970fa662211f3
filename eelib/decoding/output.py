"""Output of the engine: text, trace and counts."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from eelib.display import table_html

TRACE_COLUMNS = ("round", "position", "token_id", "depth", "score", "drafted", "accepted", "asked", "ends")


@dataclass(frozen=True)
class DecodingStats:
    """Counts and time of one call.

    Attributes:
        emitted: new tokens.
        drafted: drafts made.
        accepted: drafts that the full model confirmed.
        rounds: verifications, without prefill.
        block_positions: positions that passed each block.
        block_calls: calls of each block.
        head_positions: positions at which the head of each depth was asked, declined ones included.
        seconds: wall-clock time, with prefill.
        exact: whether verification had the bits of decoding one token at a time.

    Example:
        >>> stats = generate(model, input_ids, policy=Never(), max_new_tokens=8).stats
        >>> stats.emitted, stats.drafted, stats.block_positions
        (8, 0, (14, 14, 14, 14, 14, 14))
    """

    emitted: int
    drafted: int
    accepted: int
    rounds: int
    block_positions: tuple[int, ...]
    block_calls: tuple[int, ...]
    head_positions: dict[int, int]
    seconds: float
    exact: bool = False

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; NaN when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")

    @property
    def tokens_per_second(self) -> float:
        return self.emitted / self.seconds

    def __repr__(self) -> str:
        return (
            f"DecodingStats({self.emitted} tokens in {self.seconds:.2f} s, {self.rounds} rounds, "
            f"{self.accepted} of {self.drafted} drafts accepted{', exact' if self.exact else ''})"
        )

    def _repr_html_(self) -> str:
        rounds = f"{self.rounds:,}"
        if self.rounds:  # the first token comes from prefill, which is no round
            rounds += f" ({max(0, self.emitted - 1) / self.rounds:.2f} tokens a round)"
        accepted = f"{self.accepted:,}" + (f" ({self.acceptance_rate:.0%})" if self.drafted else "")
        rows = [("new tokens", self.emitted), ("rounds", rounds), ("drafts", self.drafted), ("accepted", accepted)]
        rows += [("head asked, by depth", self.head_positions)] if self.head_positions else []
        rows += [("seconds", self.seconds), ("tokens per second", self.tokens_per_second), ("exact", self.exact)]
        return table_html("DecodingStats", rows)


@dataclass(frozen=True)
class DecodingOutput:
    """Result of `generate`.

    Attributes:
        sequences: prompt and new tokens, [1, position].
        trace: one row per emitted or rejected token: round (0 = prefill), position, token_id, depth (the number of
            blocks for the full model; 0 for lookup), score of the exit, drafted, accepted, asked (heads asked for the
            token, where it is the full model's in vain), ends (whether the text ends with it).
        stats: counts and time.

    Example:
        >>> output = generate(model, input_ids, policy=Never(), max_new_tokens=8)
        >>> output.trace.token_id.tolist() == output.sequences[0, -8:].tolist()
        True
    """

    sequences: Int[Tensor, "1 position"]
    trace: pd.DataFrame
    stats: DecodingStats

    def __repr__(self) -> str:
        return f"DecodingOutput(sequences={list(self.sequences.shape)}, trace={len(self.trace)} rows, {self.stats!r})"

    def _repr_html_(self) -> str:
        prompt = self.sequences.shape[1] - self.stats.emitted
        return (
            table_html("DecodingOutput", [("sequences", f"{prompt} tokens of the prompt, {self.stats.emitted} new")])
            + self.stats._repr_html_()
        )
