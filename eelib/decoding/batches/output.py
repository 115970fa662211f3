"""Output of a batch: each row's own, and all together."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from eelib.decoding.output import DecodingOutput, DecodingStats
from eelib.display import table_html


@dataclass(frozen=True)
class BatchStats(DecodingStats):
    """Counts and time of a batch, summed over its rows.

    `block_calls` counts shared calls once; `seconds` is the time of the whole batch, each row's its own until it ended.

    Attributes:
        rows: number of rows.
        head_calls: calls of all heads, shared ones once.
        exits_lost: tokens that had exited, and passed blocks above their exit all the same, because other rows had not.
        shared: whether rows shared calls; else they ran one by one.
    """

    rows: int = 0
    head_calls: int = 0
    exits_lost: int = 0
    shared: bool = True

    @classmethod
    def of(
        cls, rows: Sequence[DecodingStats], block_calls: Sequence[int], seconds: float, **shared: int | bool
    ) -> "BatchStats":
        """Stats of a batch, from its rows'.

        shared: what they have in common: `head_calls`, `exits_lost`, `shared`.
        """
        counts = {
            name: sum(getattr(row, name) for row in rows) for name in ("emitted", "drafted", "accepted", "rounds")
        }
        asked: dict[int, int] = {}
        for row in rows:
            for depth, n in row.head_positions.items():
                asked[depth] = asked.get(depth, 0) + n
        return cls(
            **counts,
            block_positions=tuple(map(sum, zip(*(row.block_positions for row in rows), strict=True))),
            block_calls=tuple(block_calls),
            head_positions=dict(sorted(asked.items())),
            seconds=seconds,
            exact=all(row.exact for row in rows),
            rows=len(rows),
            **shared,
        )

    @property
    def positions_a_call(self) -> float:
        """Mean number of positions in a call of a block."""
        return sum(self.block_positions) / sum(self.block_calls)


@dataclass(frozen=True)
class BatchOutput:
    """Result of `generate` for several prompts.

    Attributes:
        rows: each row's output, as `generate` gives it for the prompt alone.
        sequences: prompts and new tokens, [row, position]: prompts padded on the left to the longest, texts on the
            right.
        trace: the rows' traces, with a column `row` in front.
        stats: counts and time, summed.

    Example:
        >>> out = generate(model, [[5, 6, 7], [8, 9]], policy=Never(), max_new_tokens=4)
        >>> out.sequences.shape, out.stats.emitted, [len(row.trace) for row in out.rows]
        (torch.Size([2, 7]), 8, [4, 4])
    """

    rows: tuple[DecodingOutput, ...]
    sequences: Int[Tensor, "row position"]
    trace: pd.DataFrame
    stats: BatchStats

    @classmethod
    def of(cls, rows: Sequence[DecodingOutput], padding: int, stats: BatchStats) -> "BatchOutput":
        """The output of some rows together."""
        prompts = [row.sequences.shape[1] - row.stats.emitted for row in rows]
        lengths = [max(prompts) - prompt + row.sequences.shape[1] for prompt, row in zip(prompts, rows, strict=True)]
        sequences = rows[0].sequences.new_full((len(rows), max(lengths)), padding)
        for padded, prompt, row in zip(sequences, prompts, rows, strict=True):
            start = max(prompts) - prompt
            padded[start : start + row.sequences.shape[1]] = row.sequences[0]
        trace = pd.concat([row.trace.assign(row=number) for number, row in enumerate(rows)], ignore_index=True)
        trace.insert(0, "row", trace.pop("row"))
        return cls(tuple(rows), sequences, trace, stats)

    def __repr__(self) -> str:
        return f"BatchOutput({len(self.rows)} rows, sequences={list(self.sequences.shape)}, {self.stats!r})"

    def _repr_html_(self) -> str:
        return table_html("BatchOutput", [("rows", len(self.rows))]) + self.stats._repr_html_()
