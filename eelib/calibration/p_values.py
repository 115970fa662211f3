"""P-values for the mean of independent losses in [0, 1].

Guarantees and monitoring rest on them. Each tests the hypothesis that the mean is at least `alpha`: under it, the
p-value is at most δ with probability at most δ, for any distribution and any number of losses.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

from eelib.errors import InvalidInputError

_BETS = np.linspace(0.05, 1.0, 20)  # below 1, so that a loss of 1 does not ruin a bet for any alpha
_AGAINST = np.linspace(0.05, 0.95, 19)  # times 1 / alpha, so that a loss of 0 does not


def betting(losses: np.ndarray, alpha: float) -> float:
    """P-value from betting against the mean (Waudby-Smith and Ramdas, arXiv 2010.09686).

    The capital of a bet of size b, Π (1 - b (loss - alpha)), has mean at most 1 if the losses' mean is not below alpha,
    and so has its average over several sizes fixed beforehand; by Markov's inequality the reciprocal is a p-value. The
    order of losses does not matter, and the p-value falls as alpha rises.
    """
    losses = _checked(losses, alpha)
    capital = np.log1p(-_BETS[:, None] * (losses - alpha)).sum(axis=1)  # logarithm, one a bet
    return float(min(1.0, len(_BETS) * np.exp(-np.logaddexp.reduce(capital))))


def hoeffding_bentkus(losses: np.ndarray, alpha: float) -> float:
    """The smaller of Hoeffding's and Bentkus' tail bounds (arXiv 2101.02703).

    Uses the mean loss only: weaker than `betting` where losses vary little.
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
    """Sequential test, loss by loss, that the mean exceeds `alpha`, by betting.

    Bets of several sizes, each too small to go bankrupt, gain where losses exceed alpha. While the mean is at most
    alpha, their average capital reaches 1 / δ **ever**, over any number of losses, with probability at most δ (Ville's
    inequality; Waudby-Smith and Ramdas). An array of alphas makes one test of each.
    """

    def __init__(self, alpha: float | np.ndarray):
        self.alpha = np.asarray(alpha, float)[..., None]
        if not ((self.alpha > 0) & (self.alpha < 1)).all():
            raise InvalidInputError(f"alpha={alpha}: expected a risk between 0 and 1.")
        self._bets, self._log_capital = _AGAINST / self.alpha, 0.0

    def add(self, loss: float | np.ndarray) -> float | np.ndarray:
        """Add a loss, or one per run or alpha; return the capital."""
        self._log_capital = self._log_capital + np.log1p(self._bets * (np.asarray(loss)[..., None] - self.alpha))
        with np.errstate(over="ignore"):  # capital without end is evidence enough
            return np.exp(np.logaddexp.reduce(self._log_capital, axis=-1)) / len(_AGAINST)


class AgreementSequence:
    """Confidence sequence of an agreement.

    Its limits hold at every length at once.

    Each limit is wrong **ever**, over any number of sequences, with probability at most `delta`. Candidates lie 0.005
    apart; a limit is the nearest one that its `SequentialTest` refuted, or 0 and 1 while there is none. So the upper
    limit falls to a candidate just when the test of that candidate reaches 1 / δ. A lower limit above the upper one
    shows that no single agreement fits all sequences: it has changed on the way.

    Args:
        delta: probability that a limit is ever wrong, in (0, 1).
        promised: a further candidate, such as the ε of a calibration.
    """

    def __init__(self, delta: float, promised: float):
        self._candidates, self._needed = np.unique([*np.linspace(0.005, 0.995, 199), promised]), 1 / delta
        self._too_high, self._too_low = SequentialTest(1 - self._candidates), SequentialTest(self._candidates)
        self.low, self.high = 0.0, 1.0

    def add(self, wrong: float, exited: float = 1.0) -> tuple[float, float]:
        """Add one sequence, by its shares of tokens; return both limits.

        Args:
            wrong: share that exited and disagreed.
            exited: share that exited, for the agreement of exits; 1 for the agreement of all tokens.
        """
        allowed = 1 - self._candidates
        loss = allowed + wrong - allowed * exited  # its mean is above `allowed` where the agreement is below
        self.high = min([self.high, *self._candidates[self._too_high.add(loss) >= self._needed]])
        self.low = max([self.low, *self._candidates[self._too_low.add(1 - loss) >= self._needed]])
        return self.low, self.high


def alarm_times(
    losses: np.ndarray,
    alpha: float,
    *,
    false_alarm: float,
    runs: int = 1000,
    sequences: int = 300,
    seed: int = 0,
) -> np.ndarray:
    """Number of sequences until a `SequentialTest` raises its alarm, [run].

    Sequences are drawn with replacement from the given losses; inf in runs without an alarm.
    """
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
        raise InvalidInputError("losses: expected at least one, all between 0 and 1.")
    return losses.clip(0, 1)
