"""Cascade: at which head each traced token exits, under given thresholds.

As in decoding, every token passes the heads in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from eelib.errors import CorpusError, InvalidInputError

TARGETS = ("exit_agreement", "output_agreement")
"""What ε may promise.

- `exit_agreement`: P(agree | exited).
- `output_agreement`: 1 - P(exited and disagreed), which with few exits is far weaker.
"""


@dataclass(frozen=True)
class HeadScores:
    """Scores and agreement of every head on the tokens of some traces.

    Attributes:
        depths: of the heads, ascending.
        scores, agrees: [token, head].
        sequence: number of each token's sequence, from 0, [token].
    """

    depths: tuple[int, ...]
    scores: Float[np.ndarray, "token head"]
    agrees: Bool[np.ndarray, "token head"]
    sequence: Int[np.ndarray, " token"]

    @classmethod
    def of(cls, traces: pd.DataFrame, metric: str) -> "HeadScores":
        """Scores by one metric, or by another column of the traces.

        Raises:
            InvalidInputError: unknown metric, NaN scores, or heads whose rows differ in their tokens.
            CorpusError: empty traces.
        """
        if not isinstance(traces, pd.DataFrame) or not {"depth", "sequence", "position", "agrees"} <= set(traces):
            found = list(traces) if isinstance(traces, pd.DataFrame) else type(traces).__name__
            raise InvalidInputError(f"traces of type {found}: expected a table from `record_traces`.")
        if not isinstance(metric, str) or metric not in traces or not pd.api.types.is_float_dtype(traces[metric]):
            scores = [name for name, values in traces.items() if pd.api.types.is_float_dtype(values)]
            raise InvalidInputError(f"Unknown metric {metric!r}: expected one of {', '.join(scores)}.")
        if traces.empty:
            raise CorpusError("No traces to calibrate on: expected at least one row.")
        types = {"depth": "i", "position": "i", "agrees": "b"}
        wrong = [name for name, kind in types.items() if getattr(traces[name].dtype, "kind", "") != kind]
        if wrong:
            raise InvalidInputError(
                f"Traces with {', '.join(f'{name} of type {traces[name].dtype}' for name in wrong)}: expected whole "
                "numbers, and True or False in agrees, from `record_traces`."
            )
        depths, tables = zip(*traces.groupby("depth"), strict=True)
        tokens = [table[["sequence", "position"]].to_numpy() for table in tables]
        if not all(np.array_equal(tokens[0], other) for other in tokens):
            raise InvalidInputError(
                f"The heads at depths {list(map(int, depths))} do not have rows of the same tokens in the same order: "
                "expected traces from `record_traces`."
            )
        scores = np.stack([table[metric].to_numpy() for table in tables], axis=1)
        if np.isnan(scores).any():
            raise InvalidInputError(
                f"{int(np.isnan(scores).sum())} scores of {metric} are NaN: train the heads again, or check the metric."
            )
        agrees = np.stack([table.agrees.to_numpy(dtype=bool) for table in tables], axis=1)
        return cls(tuple(map(int, depths)), scores, agrees, np.unique(tokens[0][:, 0], return_inverse=True)[1])

    @property
    def n_sequences(self) -> int:
        return int(self.sequence.max()) + 1

    def of_sequences(self, chosen: Int[np.ndarray, " sequence"]) -> "HeadScores":
        """Tokens of chosen sequences, with repetition, renumbered in that order."""
        order, lengths = np.argsort(self.sequence, kind="stable"), np.bincount(self.sequence)
        first, n = (np.cumsum(lengths) - lengths)[chosen], lengths[chosen]
        rows = order[np.repeat(first - (np.cumsum(n) - n), n) + np.arange(n.sum())]
        return HeadScores(self.depths, self.scores[rows], self.agrees[rows], np.repeat(np.arange(len(n)), n))

    def passed(self, thresholds: Sequence[float | None]) -> Bool[np.ndarray, "token head"]:
        """Heads that a token passes, where its score reaches the threshold."""
        return self.scores >= np.array([np.inf if t is None else t for t in thresholds])

    def exits(self, thresholds: Sequence[float | None]) -> Bool[np.ndarray, "token head"]:
        """First head that each token passes; none where it passes none."""
        passed = self.passed(thresholds)
        return passed & (passed.cumsum(axis=1) == 1)

    def losses(self, thresholds: Sequence[float | None], target: str, epsilon: float) -> Float[np.ndarray, " sequence"]:
        """Loss of each sequence, in [0, 1].

        The target is met iff its mean is at most 1 - ε. For output_agreement it is the share of tokens that exit and
        disagree; for exit_agreement (1 - ε) + the mean of exited x (disagreed - (1 - ε)). Sequences count equally,
        whatever their length.
        """
        allowed = 1 - epsilon
        exited, wrong = np.zeros((2, len(self.sequence)), dtype=bool)
        for head, threshold in enumerate(thresholds):  # head by head: several times quicker than `exits`
            if threshold is not None:
                here = (self.scores[:, head] >= threshold) & ~exited
                wrong |= here & ~self.agrees[:, head]
                exited |= here
        values = wrong if target == "output_agreement" else allowed + np.where(exited, wrong - allowed, 0.0)
        return np.bincount(self.sequence, values) / np.bincount(self.sequence)
