"""Risk control: thresholds that hold on new sequences with a chosen probability.

Learn-then-Test (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing: candidates are ordered without
looking at the sequences that test them, and accepted in turn until one fails.
"""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from eelib.calibration.cascade import HeadScores
from eelib.calibration.p_values import P_VALUES
from eelib.confidence.separation import curve_of
from eelib.errors import CorpusError, InvalidInputError

ThresholdPath = Float[np.ndarray, "point head"]
"""Candidate thresholds, strictest first, none rising along the path; inf: the head never exits."""


def risk_path(tokens: HeadScores, points: int = 200) -> ThresholdPath:
    """Thresholds at which each head alone reaches agreements from 1 down.

    In equal steps down to 0. Sequences count equally; points that change nothing are left out.
    """
    levels, columns = np.linspace(1, 0, points), []
    weights = 1 / np.bincount(tokens.sequence)[tokens.sequence]
    for scores, agrees in zip(tokens.scores.T, tokens.agrees.T, strict=True):
        curve = curve_of(scores, agrees, weights)
        reachable = np.maximum.accumulate(1 - curve.risk[::-1])[::-1]  # the best agreement from here to looser ones
        loosest = np.searchsorted(-reachable, -levels, side="right") - 1
        columns.append(np.append(curve.threshold, np.inf)[loosest])  # -1, where none reaches it, is the last: inf
    path = np.stack(columns, axis=1)
    return path[np.append(True, (path[1:] != path[:-1]).any(axis=1))]


def control_risk(
    tokens: HeadScores,
    target: str,
    epsilon: float,
    delta: float,
    *,
    p_value: str = "betting",
    path: npt.ArrayLike | None = None,
    share: float = 0.3,
    seed: int = 0,
) -> tuple[tuple[float | None, ...], float, int]:
    """Thresholds whose mean loss on new sequences is bounded.

    It is at most 1 - ε. This holds except with probability δ over the draw of the calibration sequences, which must be
    independent draws of what is to come. The loss is `HeadScores.losses`. A `share` of the sequences, drawn by `seed`,
    makes the path and picks where testing starts: at the strictest point, or where few exits make that one
    inconclusive, at the point with the smallest p-value on this share. The other sequences test from there on.

    Args:
        p_value: `betting` or `hoeffding_bentkus` (`eelib.calibration.p_values`).
        path: a path of your own, like a `ThresholdPath`, made without these sequences; all of them test it from its
            start.
        share, seed: of the sequences that make the path; ignored where it is given.

    Returns:
        The thresholds (all None if the first point fails), the p-value of the last accepted point (else of the first),
        and the number of testing sequences.
    """
    if p_value not in P_VALUES:
        raise InvalidInputError(f"Unknown p_value {p_value!r}: expected one of {', '.join(P_VALUES)}.")

    def evidence(on: HeadScores, thresholds: np.ndarray) -> float:
        return P_VALUES[p_value](on.losses(thresholds, target, epsilon), 1 - epsilon)

    if path is None:
        makers, testers = _parted(tokens, share, seed)
        path = risk_path(makers)
        path = path[int(np.argmin([evidence(makers, thresholds) for thresholds in path])) :]
    else:
        path, testers = _checked(path, tokens), tokens
    accepted, p = None, 1.0
    for thresholds in path:
        found = evidence(testers, thresholds)
        if found > delta:
            p = found if accepted is None else p
            break
        accepted, p = thresholds, found
    chosen = np.full(len(tokens.depths), np.inf) if accepted is None else accepted
    return tuple(float(t) if np.isfinite(t) else None for t in chosen), p, testers.n_sequences


def _parted(tokens: HeadScores, share: float, seed: int) -> tuple[HeadScores, HeadScores]:
    """A share of the sequences and the rest, each at least one."""
    if tokens.n_sequences < 2:
        raise CorpusError("Risk control needs at least two sequences: some to make the path and others to test it.")
    order = np.random.default_rng(seed).permutation(tokens.n_sequences)
    first = min(max(1, round(share * len(order))), len(order) - 1)
    return tokens.of_sequences(order[:first]), tokens.of_sequences(order[first:])


def _checked(path: npt.ArrayLike, tokens: HeadScores) -> np.ndarray:
    path = np.asarray(path, float)
    if path.ndim != 2 or path.shape[1] != len(tokens.depths) or not len(path) or np.isnan(path).any():
        raise InvalidInputError(f"path: expected rows of {len(tokens.depths)} thresholds, one per head, without NaN.")
    if (path[1:] > path[:-1]).any():
        raise InvalidInputError("path: expected the strictest thresholds first, and none to rise along it.")
    return path
