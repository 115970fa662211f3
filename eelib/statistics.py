"""Bootstrap intervals over independent units, and Pareto fronts."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats


def percentile_interval(name: str, value: float, resampled: np.ndarray) -> dict[str, float]:
    """A statistic and its 95% interval, from its resampled values.

    Keys: `name`, `name_low`, `name_high`.
    """
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def format_interval(row: Mapping[str, float] | pd.Series, name: str, form: str = ".2f") -> str:
    """A statistic and its interval as text, such as "0.55 [0.50, 0.61]".

    Reads `name`, `name_low` and `name_high` of a row.
    """
    return f"{row[name]:{form}} [{row[f'{name}_low']:{form}}, {row[f'{name}_high']:{form}}]"


def mean_interval(values: npt.ArrayLike, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of independent values and its 95% percentile-bootstrap interval.

    The values are one per sequence, case or prompt.
    """
    return _interval((np.asarray(values, float),), lambda x, axis: x.mean(axis=axis), resamples, seed)


def ratio_interval(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of sums over independent pairs, and its 95% interval.

    Σ numerators / Σ denominators; NaN where the denominator is 0.
    """
    pair = (np.asarray(numerators, float), np.asarray(denominators, float))
    if not pair[1].sum():
        return float("nan"), float("nan"), float("nan")
    return _interval(pair, lambda n, d, axis: n.sum(axis=axis) / d.sum(axis=axis), resamples, seed)


def ratio_of_ratios_interval(
    first: tuple[npt.ArrayLike, npt.ArrayLike],
    second: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Quotient of two ratios of sums, and its 95% interval.

    Both are over the same units, such as two decoders on the same prompts. NaN where a divisor is 0, in a resample too.
    """
    parts = tuple(np.asarray(values, float) for values in (*first, *second))
    if not (parts[1].sum() and parts[2].sum() and parts[3].sum()):
        return float("nan"), float("nan"), float("nan")

    def ratio(a, b, c, d, axis):
        own, other = a.sum(axis=axis) / b.sum(axis=axis), c.sum(axis=axis) / d.sum(axis=axis)
        return np.where(other > 0, own / other, np.nan)

    return _interval(parts, ratio, resamples, seed)


def ratio_difference_interval(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of two ratios of sums, and its 95% interval.

    The second less the first; the samples are independent of each other. NaN where a denominator is 0.
    """
    if not (first[1].sum() and second[1].sum()):
        return float("nan"), float("nan"), float("nan")

    def difference(i, j, axis):
        (a, b), (c, d) = first, second
        return c[j].sum(axis=axis) / d[j].sum(axis=axis) - a[i].sum(axis=axis) / b[i].sum(axis=axis)

    numbers = tuple(np.arange(len(sample[0])) for sample in (first, second))
    return _interval(numbers, difference, resamples, seed, paired=False)


def median_interval(values: npt.ArrayLike, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Median of independent values and its 95% percentile-bootstrap interval."""
    return _interval((np.asarray(values, float),), lambda x, axis: np.median(x, axis=axis), resamples, seed)


def _interval(
    data: tuple, statistic: Callable, resamples: int, seed: int, paired: bool = True
) -> tuple[float, float, float]:
    value = float(statistic(*data, axis=0))
    if len(data[0]) < 2 or all(np.ptp(values) == 0 for values in data):
        return value, value, value
    with np.errstate(invalid="ignore", divide="ignore"):
        interval = stats.bootstrap(
            data, statistic, paired=paired, vectorized=True, axis=0, n_resamples=resamples, method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    return value, float(interval.low), float(interval.high)


def on_front(gain: Sequence[float], cost: Sequence[float]) -> list[bool]:
    """Whether each point lies on the Pareto front of gain against cost.

    A point does unless another has its gain at a lower cost, or more gain at its cost.
    """
    gain, cost = np.asarray(gain, float), np.asarray(cost, float)
    beaten = [((gain >= g) & (cost < c) | (gain > g) & (cost <= c)).any() for g, c in zip(gain, cost, strict=True)]
    return [not b for b in beaten]
