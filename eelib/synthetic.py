"""Traces whose true risk is known, to see how often a calibration breaks its promise."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from tqdm.auto import tqdm

from eelib.calibration import METHODS, find_thresholds
from eelib.exits import TARGETS, HeadScores
from eelib.risk import risk_path


class Population:
    """Sequences to draw calibration text from, with replacement: the draws are independent, and the true risk of any
    thresholds is a mean over the population.

    Tokens depend strongly on each other: a sequence is hard or easy as a whole, which moves its scores by `shift`, and
    the agreement behind a given score by `dependence` (in logits).
    """

    def __init__(
        self,
        sequences: int = 2000,
        tokens: int = 25,
        depths: Sequence[int] = (6, 12, 18),
        dependence: float = 1.5,
        shift: float = 0.5,
        seed: int = 0,
    ):
        draw = np.random.default_rng(seed)
        ease = draw.normal(size=(sequences, 1, 1))
        scores = shift * ease + draw.normal(size=(sequences, tokens, len(depths)))
        logits = 2 * scores + dependence * ease + np.linspace(0.5, 2, len(depths))
        self.depths, self._scores = tuple(depths), scores
        self._agrees = draw.random(scores.shape) < 1 / (1 + np.exp(-logits))
        self.all = self._of(np.arange(sequences))

    def draw(self, n: int, generator: np.random.Generator) -> HeadScores:
        """n independent sequences."""
        return self._of(generator.integers(len(self._scores), size=n))

    def risk(self, thresholds: Sequence[float | None], target: str, epsilon: float) -> float:
        """The true mean loss; the target is met just where it is at most 1 - ε."""
        return float(self.all.losses(thresholds, target, epsilon).mean())

    def coverage(self, thresholds: Sequence[float | None]) -> float:
        return float(self.all.exits(thresholds).any(axis=1).mean())

    def oracle(self, target: str, epsilon: float) -> tuple[float, ...]:
        """The loosest thresholds on the population's own path that meet the target."""
        for thresholds in risk_path(self.all)[::-1]:
            if self.risk(thresholds, target, epsilon) <= 1 - epsilon + 1e-12:
                return tuple(thresholds)
        return (np.inf,) * len(self.depths)

    def _of(self, chosen: np.ndarray) -> HeadScores:
        scores, agrees = self._scores[chosen], self._agrees[chosen]
        n, tokens, heads = scores.shape
        flat = (array.reshape(-1, heads) for array in (scores, agrees))
        return HeadScores(self.depths, *flat, np.repeat(np.arange(n), tokens))


def violations(
    population: Population,
    *,
    epsilon: float,
    delta: float,
    sequences: int,
    trials: int = 1000,
    methods: Sequence[str] = METHODS,
    targets: Sequence[str] = TARGETS,
    seed: int = 0,
) -> pd.DataFrame:
    """How often each method's thresholds, from so many sequences, miss the target on the population.

    Columns: method, target, epsilon, delta, sequences, trials, violations, rate with its exact 95% binomial interval
    (low, high), and coverage as a share of the oracle's, mean over trials.
    """
    rows = []
    for target in targets:
        best = population.coverage(population.oracle(target, epsilon))
        for method in methods:
            generator = np.random.default_rng(seed)  # every method sees the same draws
            missed, coverage = 0, 0.0
            for trial in tqdm(range(trials), desc=f"{method}, {target}", unit="draw"):
                tokens = population.draw(sequences, generator)
                given = {"delta": delta, "seed": trial} if method == "risk" else {}
                thresholds = find_thresholds(tokens, target, epsilon, method, **given)[0]
                missed += population.risk(thresholds, target, epsilon) > 1 - epsilon + 1e-12
                coverage += population.coverage(thresholds) / trials
            interval = stats.binomtest(missed, trials).proportion_ci()
            rows.append({
                "method": method, "target": target, "epsilon": epsilon, "delta": delta, "sequences": sequences,
                "trials": trials, "violations": missed, "rate": missed / trials, "low": interval.low,
                "high": interval.high, "coverage_of_oracle": coverage / best if best else float("nan"),
            })  # fmt: skip
    return pd.DataFrame(rows)
