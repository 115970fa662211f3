"""Tests of the mean of independent losses in [0, 1]: what a guarantee from few sequences, and its watch, rest on.

Each p-value tests the hypothesis that the mean is at least `alpha`: if it is, the p-value is at most δ with a
probability of at most δ, whatever the losses' distribution, at any number of them.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

from eelib.errors import InvalidInputError

_BETS = np.linspace(0.05, 1.0, 20)  # below 1, so that a loss of 1 does not ruin a bet for any alpha
_AGAINST = np.linspace(0.05, 0.95, 19)  # times 1 / alpha, so that a loss of 0 does not


def betting(losses: np.ndarray, alpha: float) -> float:
    """From betting that losses are below alpha (Waudby-Smith and Ramdas, arXiv 2010.09686).

    The capital of a bet of size b, Π (1 - b (loss - alpha)), has a mean of at most 1 if the losses' mean is not below
    alpha, and so has the average over several sizes that were fixed beforehand; by Markov's inequality its reciprocal
    is a p-value. The order of the losses does not matter, and the p-value falls as alpha rises.
    """
    losses = _checked(losses, alpha)
    capital = np.log1p(-_BETS[:, None] * (losses - alpha)).sum(axis=1)  # logarithm, one a bet
    return float(min(1.0, len(_BETS) * np.exp(-np.logaddexp.reduce(capital))))


def hoeffding_bentkus(losses: np.ndarray, alpha: float) -> float:
    """The smaller of Hoeffding's and Bentkus' bounds on the tail (Bates et al., arXiv 2101.02703).

    From the losses' mean alone: weaker than `betting` where losses vary little.
    """
    losses = _checked(losses, alpha)
    n, mean = len(losses), float(losses.mean())
    below = min(mean, alpha)
    divergence = sum(p * np.log(p / q) for p, q in ((below, alpha), (1 - below, 1 - alpha)) if p > 0)
    # Sums of losses are rounded, so one that is a whole number may come out a little above it.
    bentkus = np.e * stats.binom.cdf(np.ceil(n * mean - 1e-9), n, alpha)
    return float(min(1.0, np.exp(-n * divergence), bentkus))


P_VALUES: dict[str, Callable[[np.ndarray, float], float]] = {"betting": betting, "hoeffding_bentkus": hoeffding_bentkus}


class SequentialTest:
    """Evidence, loss by loss, that the mean is above `alpha`, from betting that losses are (Waudby-Smith and Ramdas).

    Bets of several sizes, each too small to lose everything, win capital where losses are larger than alpha. While the
    mean is at most alpha, their average reaches 1 / δ **ever**, over any number of losses, with a probability of at
    most δ (Ville's inequality).
    """

    def __init__(self, alpha: float):
        if not 0 < alpha < 1:
            raise InvalidInputError(f"alpha={alpha}: expected a risk between 0 and 1.")
        self.alpha, self._bets, self._log_capital = alpha, _AGAINST / alpha, 0.0

    def add(self, loss: float | np.ndarray) -> float | np.ndarray:
        """Takes in one loss, or one for each of several runs side by side, and returns the average capital."""
        self._log_capital = self._log_capital + np.log1p(self._bets * (np.asarray(loss)[..., None] - self.alpha))
        with np.errstate(over="ignore"):  # capital without end is evidence enough
            return np.exp(np.logaddexp.reduce(self._log_capital, axis=-1)) / len(self._bets)


def alarm_times(
    losses: np.ndarray,
    alpha: float,
    *,
    false_alarm: float,
    runs: int = 1000,
    sequences: int = 300,
    seed: int = 0,
) -> np.ndarray:
    """At which of so many sequences, drawn with replacement from those with these losses, a `SequentialTest` raises the
    alarm; inf in runs where it does not. [run]"""
    losses, draw = _checked(losses, alpha), np.random.default_rng(seed)
    test, found = SequentialTest(alpha), np.full(runs, np.inf)
    for number in range(1, sequences + 1):
        raised = test.add(draw.choice(losses, runs)) >= 1 / false_alarm
        found[raised & np.isinf(found)] = number
    return found


def _checked(losses: np.ndarray, alpha: float) -> np.ndarray:
    losses = np.asarray(losses, float)
    if not 0 < alpha < 1:
        raise InvalidInputError(f"alpha={alpha}: expected a risk between 0 and 1.")
    if losses.ndim != 1 or not len(losses) or not ((losses >= -1e-12) & (losses <= 1 + 1e-12)).all():
        raise InvalidInputError("Expected at least one loss, all between 0 and 1.")
    return losses.clip(0, 1)
