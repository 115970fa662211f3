"""How well a metric tells right head predictions from wrong ones: AUROC, AUPR, risk-coverage. Numbers, no drawing.

The positive class is agreement with the full model. Tokens of one sequence are not independent, so every interval is
a bootstrap over sequences.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from eelib.confidence.metrics import METRICS
from eelib.errors import InvalidInputError
from eelib.statistics import percentile_interval


class Curve(NamedTuple):
    """Risk against coverage, one entry a threshold, strictest first."""

    threshold: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray


def curve_of(scores: np.ndarray, agrees: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """Risk (share of disagreement) among the tokens that exit, for every coverage (share of tokens that exit), tied
    scores exiting together.

    Declined tokens (-inf) never exit. Tokens count as their `weights` say; None: all the same.
    """
    order = np.argsort(-scores, kind="stable")
    scores, agrees, weights = scores[order], agrees[order], 1 if weights is None else weights[order]
    last_of_tie = np.append(scores[1:] != scores[:-1], True) & np.isfinite(scores)
    exited = np.cumsum(np.ones(len(scores)) * weights)
    agreed = np.cumsum(agrees * weights)[last_of_tie]
    coverage, exited = exited[last_of_tie] / exited[-1], exited[last_of_tie]
    return Curve(scores[last_of_tie], coverage, 1 - agreed / exited)


def risk_coverage(scores: np.ndarray, agrees: np.ndarray) -> pd.DataFrame:
    """`curve_of` as a table with the columns threshold, coverage and risk."""
    return pd.DataFrame(curve_of(scores, agrees)._asdict())


def aurc(scores: np.ndarray, agrees: np.ndarray) -> float:
    """Area under the risk-coverage curve up to full coverage of the rows given; smaller is better."""
    curve = curve_of(scores, agrees)
    widths = np.diff(curve.coverage, prepend=0.0)
    return float((curve.risk * widths).sum() / curve.coverage[-1])


STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "auroc": lambda scores, agrees: float(roc_auc_score(agrees, scores)),
    "aupr": lambda scores, agrees: float(average_precision_score(agrees, scores)),
    "aurc": aurc,
}


def measure_separation(
    traces: pd.DataFrame,
    metrics: Sequence[str] = METRICS,
    *,
    reference: str = "entropy",
    resamples: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC, AUPR and AURC per depth and metric, each with a 95% interval, and the AUROC's paired difference to that of
    `reference` on the same resamples.

    Rows where a head declines are left out: it has nothing to be right or wrong about there. Columns: depth, metric,
    declined (share of rows), {auroc, aupr, aurc} and their _low and _high, auroc_less_{reference} with _low and _high,
    and p: of no difference, two-sided, from the difference in units of its bootstrap standard deviation (as pROC does,
    Robin et al. 2011). A head that declines everywhere, or is always right or always wrong, has no row.

    Args:
        metrics: columns of the traces; `reference` is one of them.

    Raises:
        InvalidInputError: no head has a row, or there is no such reference.
    """
    if reference not in metrics:
        raise InvalidInputError(f"reference={reference!r}: expected one of the metrics compared, {', '.join(metrics)}.")
    rows = []
    for depth, table in traces.groupby("depth"):
        spoken = table[table.head_token >= 0]
        agrees, sequence = spoken.agrees.to_numpy(), pd.factorize(spoken.sequence)[0]
        if len(set(agrees)) < 2:
            continue
        n = sequence.max() + 1
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        point = {m: {s: f(spoken[m].to_numpy(), agrees) for s, f in STATISTICS.items()} for m in metrics}
        drawn = {m: _weighted(spoken[m].to_numpy(), agrees, sequence, weights) for m in metrics}
        for metric in metrics:
            row = {"depth": depth, "metric": metric, "declined": 1 - len(spoken) / len(table)}
            for statistic in STATISTICS:
                row |= percentile_interval(statistic, point[metric][statistic], drawn[metric][statistic])
            lead = point[metric]["auroc"] - point[reference]["auroc"]
            difference = drawn[metric]["auroc"] - drawn[reference]["auroc"]
            row |= percentile_interval(f"auroc_less_{reference}", lead, difference)
            spread = np.nanstd(difference)
            rows.append(row | {"p": float(2 * stats.norm.sf(abs(lead) / spread)) if spread > 0 else 1.0})
    if not rows:
        raise InvalidInputError(
            "Every head declines everywhere, or is always right, or always wrong: there is nothing to separate. Train "
            "heads on more text, leave draft_vocab_size out, or give more text."
        )
    return pd.DataFrame(rows)


def _weighted(
    scores: Float[np.ndarray, " token"],
    agrees: Bool[np.ndarray, " token"],
    sequence: Int[np.ndarray, " token"],
    weights: Int[np.ndarray, "resample sequence"],
) -> dict[str, Float[np.ndarray, " resample"]]:
    """The STATISTICS where each sequence counts as often as it was drawn: all resamples from one sorting of the scores,
    which sorting anew for each of thousands would take a hundred times longer to give."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    found = []
    for chunk in np.array_split(weights, max(1, weights.shape[0] * len(scores) // 2**21)):
        counts = chunk[:, sequence[order]].astype(float)
        right = np.cumsum(counts * agrees[order], axis=1)[:, last_of_tie]
        total = np.cumsum(counts, axis=1)[:, last_of_tie]
        wrong = total - right
        more_right, more_wrong = (np.diff(x, axis=1, prepend=0) for x in (right, wrong))
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(total > 0, right / total, 0)
            auroc = (more_wrong * (right - more_right / 2)).sum(axis=1) / (right[:, -1] * wrong[:, -1])
            aupr = (more_right * precision).sum(axis=1) / right[:, -1]
        aurc = ((more_right + more_wrong) * (1 - precision)).sum(axis=1) / total[:, -1]
        found.append({"auroc": auroc, "aupr": aupr, "aurc": aurc})
    return {name: np.concatenate([part[name] for part in found]) for name in STATISTICS}
