"""Thresholds for a ladder of ε, which the explorer's slider steps through."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from eelib.calibration.cascade import HeadScores
from eelib.calibration.thresholds import METHODS, calibrate, find_thresholds
from eelib.confidence.metrics import METRICS
from eelib.errors import InvalidInputError
from eelib.settings import Number, check_known

EPSILONS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
"""Steps of the slider."""
_CHANCE = Number(above=0, below=1)


@dataclass(frozen=True)
class ThresholdLadder:
    """Calibrated thresholds at many ε.

    Attributes:
        depths: of the heads.
        epsilons: ascending.
        thresholds: by method and metric, for each ε one per head; None for a head that never exits.
        target: the agreement that ε is about.
        delta: of the method `risk`.
        heads_fingerprint: of the calibrated heads.

    Example:
        >>> ladder = ThresholdLadder.of(traces, epsilons=(0.5, 0.7))
        >>> len(ladder.thresholds["empirical"]["entropy"])
        2
    """

    depths: tuple[int, ...]
    epsilons: tuple[float, ...]
    thresholds: dict[str, dict[str, tuple[tuple[float | None, ...], ...]]]
    target: str = "exit_agreement"
    delta: float | None = None
    heads_fingerprint: str | None = None

    @classmethod
    def of(
        cls,
        traces: pd.DataFrame,
        *,
        epsilons: Sequence[float] = EPSILONS,
        metrics: Sequence[str] = METRICS,
        methods: Sequence[str] = ("empirical", "cascade"),
        target: str = "exit_agreement",
        delta: float | None = None,
    ) -> "ThresholdLadder":
        """Calibrate every metric by every method at every ε.

        Args:
            traces: from `record_traces`, on calibration text.
            methods: as for `calibrate`; `risk` takes `delta`, and longest.

        Raises:
            InvalidInputError: as `calibrate`.
        """
        epsilons = sorted({_CHANCE("epsilons", epsilon) for epsilon in epsilons})
        if not (epsilons and metrics and methods):
            raise InvalidInputError("epsilons, metrics and methods: expected at least one of each.")
        for method in methods:
            check_known("calibration method", method, METHODS)
        found = {method: {} for method in methods}
        for metric in metrics:
            scores = HeadScores.of(traces, metric)
            for method in methods:
                steps = [_thresholds(scores, traces, metric, epsilon, method, target, delta) for epsilon in epsilons]
                found[method][metric] = tuple(steps)
        return cls(scores.depths, tuple(epsilons), found, target, delta, traces.attrs.get("heads_fingerprint"))

    def to_json(self) -> dict:
        return {
            "epsilons": self.epsilons, "methods": list(self.thresholds), "thresholds": self.thresholds,
            "target": self.target.replace("_", " "), "delta": self.delta,
        }  # fmt: skip


def _thresholds(scores: HeadScores, traces: pd.DataFrame, metric: str, epsilon: float, method: str, target, delta):
    if method == "risk":
        return calibrate(traces, metric, epsilon, method, delta, target).thresholds
    return find_thresholds(scores, target, epsilon, method)[0]
