"""Violation rates of calibrations, where the true risk is known."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from tqdm.auto import tqdm

from eelib.calibration.cascade import TARGETS, HeadScores
from eelib.calibration.risk_control import risk_path
from eelib.calibration.thresholds import METHODS, find_thresholds
from eelib.errors import CorpusError


class Population:
    """Population of sequences; its mean loss is the true risk.

    Args:
        tokens: of all sequences.
        independent: draw with replacement, so that draws are independent trials; else draws are subsets, and overlap.
    """

    def __init__(self, tokens: HeadScores, independent: bool):
        self.tokens, self.independent = tokens, independent

    @classmethod
    def of_traces(cls, tables: Sequence[pd.DataFrame], metric: str) -> "Population":
        """Population of the sequences of several traces, to draw subsets of."""
        first, pooled = 0, []
        for table in tables:
            pooled.append(table.assign(sequence=table.sequence + first))
            first = pooled[-1].sequence.max() + 1
        return cls(HeadScores.of(pd.concat(pooled), metric), independent=False)

    def draw(self, n: int, generator: np.random.Generator) -> HeadScores:
        """Draw n sequences.

        Raises:
            CorpusError: a draw without replacement would leave none.
        """
        if not self.independent and n >= self.tokens.n_sequences:
            raise CorpusError(
                f"A draw of {n} of {self.tokens.n_sequences} sequences leaves nothing to be new: draw fewer."
            )
        return self.tokens.of_sequences(generator.choice(self.tokens.n_sequences, size=n, replace=self.independent))

    def risk(self, thresholds: Sequence[float | None], target: str, epsilon: float) -> float:
        """True mean loss.

        The target is met iff it is at most 1 - ε.
        """
        return float(self.tokens.losses(thresholds, target, epsilon).mean())

    def coverage(self, thresholds: Sequence[float | None]) -> float:
        return float(self.tokens.passed(thresholds).any(axis=1).mean())

    def oracle(self, target: str, epsilon: float) -> tuple[float, ...]:
        """Loosest thresholds on the population's own path that meet the target."""
        for thresholds in risk_path(self.tokens)[::-1]:
            if self.risk(thresholds, target, epsilon) <= 1 - epsilon + 1e-12:
                return tuple(thresholds)
        return (np.inf,) * len(self.tokens.depths)


def synthetic(
    sequences: int = 2000,
    tokens: int = 25,
    depths: Sequence[int] = (6, 12, 18),
    dependence: float = 1.5,
    shift: float = 0.5,
    seed: int = 0,
) -> Population:
    """Synthetic population, for independent draws.

    Tokens of a sequence are strongly dependent: a sequence is hard or easy as a whole, which moves its scores by
    `shift`, and the agreement behind a score by `dependence` (in logits).
    """
    draw = np.random.default_rng(seed)
    ease = np.repeat(draw.normal(size=sequences), tokens)[:, None]
    scores = shift * ease + draw.normal(size=(sequences * tokens, len(depths)))
    logits = 2 * scores + dependence * ease + np.linspace(0.5, 2, len(depths))
    agrees = draw.random(scores.shape) < 1 / (1 + np.exp(-logits))
    numbers = np.repeat(np.arange(sequences), tokens)
    return Population(HeadScores(tuple(depths), scores, agrees, numbers), independent=True)


def violation_rates(
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
    """Rate at which each method's thresholds miss the target on the population.

    Columns: method, target, epsilon, delta, sequences, trials, violations, rate with its exact 95% binomial interval
    (_low, _high; NaN where trials are not independent), coverage (mean over trials) and coverage_of_oracle, as a share
    of the oracle's.
    """
    rows = []
    for target in targets:
        best = population.coverage(population.oracle(target, epsilon))
        for method in methods:
            generator = np.random.default_rng(seed)  # every method sees the same draws
            missed, coverage = 0, 0.0
            for trial in tqdm(range(trials), desc=f"{method}, {target}", unit="draw"):
                tokens = population.draw(sequences, generator)
                options = {"delta": delta, "seed": trial} if method == "risk" else {}
                thresholds = find_thresholds(tokens, target, epsilon, method, **options)[0]
                missed += population.risk(thresholds, target, epsilon) > 1 - epsilon + 1e-12
                coverage += population.coverage(thresholds) / trials
            interval = stats.binomtest(missed, trials).proportion_ci()
            low, high = (interval.low, interval.high) if population.independent else (float("nan"),) * 2
            rows.append({
                "method": method, "target": target, "epsilon": epsilon, "delta": delta, "sequences": sequences,
                "trials": trials, "violations": missed, "rate": missed / trials, "rate_low": low, "rate_high": high,
                "coverage": coverage, "coverage_of_oracle": coverage / best if best else float("nan"),
            })  # fmt: skip
    return pd.DataFrame(rows)
