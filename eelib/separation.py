"""How well a metric tells right head predictions from wrong ones: AUROC, AUPR, risk-coverage. Numbers, no drawing.

The positive class is agreement with the full model. Tokens of one sequence are not independent, so every interval is
a bootstrap over sequences.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from eelib.confidence import METRICS
from eelib.errors import InvalidInputError


def risk_coverage(scores: np.ndarray, agrees: np.ndarray, weights: np.ndarray | None = None) -> pd.DataFrame:
    """Risk (share of disagreement) among the tokens that exit, for every coverage, tied scores exiting together.

    Columns: threshold, coverage (share of tokens that exit), risk. Declined tokens (-inf) never exit. Tokens count as
    their `weights` say; None: all the same.
    """
    order = np.argsort(-scores, kind="stable")
    scores, agrees, weights = scores[order], agrees[order], 1 if weights is None else weights[order]
    last_of_tie = np.append(scores[1:] != scores[:-1], True) & np.isfinite(scores)
    exited = np.cumsum(np.ones(len(scores)) * weights)
    agreed = np.cumsum(agrees * weights)[last_of_tie]
    coverage, exited = exited[last_of_tie] / exited[-1], exited[last_of_tie]
    return pd.DataFrame({"threshold": scores[last_of_tie], "coverage": coverage, "risk": 1 - agreed / exited})


def aurc(scores: np.ndarray, agrees: np.ndarray) -> float:
    """Area under the risk-coverage curve up to full coverage of the rows given; smaller is better."""
    curve = risk_coverage(scores, agrees)
    widths = np.diff(curve.coverage, prepend=0.0)
    return float((curve.risk * widths).sum() / curve.coverage.iloc[-1])


STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "auroc": lambda scores, agrees: float(roc_auc_score(agrees, scores)),
    "aupr": lambda scores, agrees: float(average_precision_score(agrees, scores)),
    "aurc": aurc,
}


def separation(
    traces: pd.DataFrame, metrics: Sequence[str] = METRICS, *, resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """AUROC, AUPR and AURC per depth and metric, each with a 95% interval, and the AUROC's paired difference to
    entropy's on the same resamples.

    Rows where a head declines are left out: it has nothing to be right or wrong about there. Columns: depth, metric,
    {auroc, aupr, aurc} and their _low and _high, auroc_less_entropy with _low and _high, declined (share of rows). A
    head that declines everywhere has no row.

    Raises:
        InvalidInputError: all do.
    """
    rows = []
    for depth, table in traces.groupby("depth"):
        spoken = table[table.head_token >= 0]
        if spoken.empty:
            continue
        groups = [g for _, g in spoken.groupby("sequence")[[*metrics, "agrees"]]]
        agrees = [g.agrees.to_numpy() for g in groups]
        scores = {m: [g[m].to_numpy() for g in groups] for m in metrics}

        def measure(chosen, scores=scores, agrees=agrees):
            truth = np.concatenate([agrees[i] for i in chosen])
            values = {m: np.concatenate([scores[m][i] for i in chosen]) for m in metrics}
            return np.array([[s(values[m], truth) for s in STATISTICS.values()] for m in metrics])

        point = measure(range(len(groups)))
        generator = np.random.default_rng(seed)
        resampled = np.stack([measure(generator.integers(len(groups), size=len(groups))) for _ in range(resamples)])
        baseline = metrics.index("entropy") if "entropy" in metrics else 0
        for i, metric in enumerate(metrics):
            row = {"depth": depth, "metric": metric, "declined": 1 - len(spoken) / len(table)}
            for j, statistic in enumerate(STATISTICS):
                row |= percentile_interval(statistic, point[i, j], resampled[:, i, j])
            difference = resampled[:, i, 0] - resampled[:, baseline, 0]
            row |= percentile_interval(f"auroc_less_{metrics[baseline]}", point[i, 0] - point[baseline, 0], difference)
            rows.append(row)
    if not rows:
        raise InvalidInputError(
            "Every head declines everywhere: train them on more text, or leave draft_vocab_size out."
        )
    return pd.DataFrame(rows)


def percentile_interval(name: str, value: float, resampled: np.ndarray) -> dict[str, float]:
    """A statistic under `name`, and the middle 95% of its resampled values under name_low and name_high."""
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def mean_interval(values: npt.ArrayLike, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of independent values (one a sequence, a case or a prompt) and its 95% percentile-bootstrap interval."""
    return _interval((np.asarray(values, float),), lambda x, axis: x.mean(axis=axis), resamples, seed)


def ratio_interval(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Σ numerators / Σ denominators over independent pairs, and its 95% interval. NaN where the denominator is 0."""
    pair = (np.asarray(numerators, float), np.asarray(denominators, float))
    if not pair[1].sum():
        return float("nan"), float("nan"), float("nan")
    return _interval(pair, lambda n, d, axis: n.sum(axis=axis) / d.sum(axis=axis), resamples, seed)


def ratio_difference_interval(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Σ numerators / Σ denominators of the second sample less that of the first, and its 95% interval; the samples are
    independent of each other. NaN where a denominator is 0."""
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
