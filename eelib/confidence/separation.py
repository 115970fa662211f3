"""Separation of right from wrong head predictions: AUROC, AUPR, risk-coverage.

The positive class is agreement with the full model. Tokens of a sequence are dependent, so every interval is a
bootstrap over sequences. `eelib.plotting.confidence` draws these tables.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from eelib.confidence.metrics import METRICS
from eelib.errors import InvalidInputError
from eelib.statistics import percentile_interval


class Curve(NamedTuple):
    """Risk-coverage curve, one entry per threshold, strictest first.

    Attributes:
        threshold: lowest score that exits.
        coverage: share of tokens that exit.
        risk: share of disagreement among them.
    """

    threshold: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray


def curve_of(scores: np.ndarray, agrees: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """Risk-coverage curve, tied scores exiting together.

    Risk is the share of disagreement among the tokens that exit, coverage the share of tokens that exit. Declined
    tokens (-inf) never exit. `weights` count tokens; None counts each once.
    """
    order = np.argsort(-scores, kind="stable")
    scores, agrees, weights = scores[order], agrees[order], 1 if weights is None else weights[order]
    last_of_tie = np.append(scores[1:] != scores[:-1], True) & np.isfinite(scores)
    exited = np.cumsum(np.ones(len(scores)) * weights)
    agreed = np.cumsum(agrees * weights)[last_of_tie]
    coverage, exited = exited[last_of_tie] / exited[-1], exited[last_of_tie]
    return Curve(scores[last_of_tie], coverage, 1 - agreed / exited)


def risk_coverage(scores: np.ndarray, agrees: np.ndarray) -> pd.DataFrame:
    """Risk-coverage curve as a table: threshold, coverage, risk."""
    return pd.DataFrame(curve_of(scores, agrees)._asdict())


def aurc(scores: np.ndarray, agrees: np.ndarray) -> float:
    """Area under the risk-coverage curve up to full coverage; smaller is better."""
    curve = curve_of(scores, agrees)
    widths = np.diff(curve.coverage, prepend=0.0)
    return float((curve.risk * widths).sum() / curve.coverage[-1])


STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "auroc": lambda scores, agrees: float(roc_auc_score(agrees, scores)),
    "aupr": lambda scores, agrees: float(average_precision_score(agrees, scores)),
    "aurc": aurc,
}

_NOTHING = (
    "Every head always declines, or is always right, or always wrong: there is nothing to separate. Train heads on "
    "more text, omit draft_vocab_size, or use more text."
)


def measure_separation(
    traces: pd.DataFrame,
    metrics: Sequence[str] = METRICS,
    *,
    reference: str = "entropy",
    resamples: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC, AUPR and AURC per depth and metric, with 95% intervals.

    Rows where a head declines are left out: there is no prediction to be right or wrong. Columns: depth, metric,
    declined (share of rows), agreement (of all rows) with _low and _high, {auroc, aupr, aurc} and theirs,
    auroc_less_{reference} (paired, on the same resamples) with _low and _high, and p: two-sided, of no difference, from
    the difference in units of its bootstrap standard deviation (as pROC does, Robin et al. 2011). A head that always
    declines, always agrees or never does has no row.

    Args:
        metrics: columns of the traces.
        reference: the one that others are compared with.

    Raises:
        InvalidInputError: no head has a row, or the reference is not among the metrics.
    """
    if reference not in metrics:
        raise InvalidInputError(f"reference={reference!r}: expected one of the metrics compared, {', '.join(metrics)}.")
    rows = []
    for depth, table in traces.groupby("depth"):
        texts, n = pd.factorize(table.sequence)[0], table.sequence.nunique()
        spoken, sequence = table[table.head_token >= 0], texts[table.head_token >= 0]
        agrees = spoken.agrees.to_numpy()
        if len(set(agrees)) < 2:
            continue
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        right, total = np.bincount(texts, table.agrees, n), np.bincount(texts, minlength=n)
        agreement = percentile_interval("agreement", table.agrees.mean(), (weights @ right) / (weights @ total))
        point = {m: {s: f(spoken[m].to_numpy(), agrees) for s, f in STATISTICS.items()} for m in metrics}
        drawn = {m: _weighted(spoken[m].to_numpy(), agrees, sequence, weights) for m in metrics}
        for metric in metrics:
            row = {"depth": depth, "metric": metric, "declined": 1 - len(spoken) / len(table), **agreement}
            for statistic in STATISTICS:
                row |= percentile_interval(statistic, point[metric][statistic], drawn[metric][statistic])
            lead = point[metric]["auroc"] - point[reference]["auroc"]
            difference = drawn[metric]["auroc"] - drawn[reference]["auroc"]
            row |= percentile_interval(f"auroc_less_{reference}", lead, difference)
            spread = np.nanstd(difference)
            rows.append(row | {"p": float(2 * stats.norm.sf(abs(lead) / spread)) if spread > 0 else 1.0})
    if not rows:
        raise InvalidInputError(_NOTHING)
    return pd.DataFrame(rows)


def _weighted(
    scores: Float[np.ndarray, " token"],
    agrees: Bool[np.ndarray, " token"],
    sequence: Int[np.ndarray, " token"],
    weights: Int[np.ndarray, "resample sequence"],
) -> dict[str, Float[np.ndarray, " resample"]]:
    """Resampled STATISTICS, from a single sort of the scores.

    Each sequence counts as often as it was drawn. A sort for each of thousands of resamples would take a hundred times
    as long.
    """
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


def compare_separation(
    texts: Mapping[str, pd.DataFrame],
    metrics: Sequence[str] = METRICS,
    *,
    beside: Sequence[str] = (),
    reference: str = "entropy",
    resamples: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """`measure_separation` on several kinds of text, with corrected p-values.

    Args:
        texts: traces by kind of text.
        metrics: compared with `reference`, which is one of them.
        beside: further columns of scores, such as `combined`: measured alike, but not part of the comparison.

    Returns:
        One row per text, depth and metric: text, the columns of `measure_separation`, and p_corrected (Bonferroni: p
        times the number of comparisons, at most 1; NaN for `reference` and `beside`).
    """
    options = {"reference": reference, "resamples": resamples, "seed": seed}
    tables = {text: measure_separation(traces, [*metrics, *beside], **options) for text, traces in texts.items()}
    table = pd.concat(tables, names=["text", None]).reset_index("text").reset_index(drop=True)
    compared = table.metric.isin(metrics) & (table.metric != reference)
    table["p_corrected"] = (table.p * compared.sum()).clip(upper=1).where(compared)
    return table


def judge_reference(table: pd.DataFrame, reference: str = "entropy", level: float = 0.05) -> pd.DataFrame:
    """Verdict per text and depth: does the reference separate best?

    Args:
        table: from `compare_separation`.
        level: significance level for p_corrected.

    Returns:
        One row per text and depth: text, depth, best (`no` if another metric separates better, `yes` if the reference
        separates better than every other, else `undecided`), better (metrics that separate better), rival (the best
        other metric), and the rival's auroc_less_{reference} with _low and _high, and p_corrected.

    Raises:
        InvalidInputError: the table compares nothing with this reference.
    """
    lead = f"auroc_less_{reference}"
    if lead not in table or not table.p_corrected.notna().any():
        raise InvalidInputError(
            f"No metric is compared with {reference!r} here: expected a table of compare_separation."
        )
    rows = []
    for (text, depth), rivals in table[table.p_corrected.notna()].groupby(["text", "depth"], sort=False):
        better = (rivals[lead] > 0) & (rivals.p_corrected < level)
        worse = (rivals[lead] < 0) & (rivals.p_corrected < level)
        first = rivals.loc[rivals.auroc.idxmax()]
        rows.append({
            "text": text, "depth": depth, "best": "no" if better.any() else "yes" if worse.all() else "undecided",
            "better": ", ".join(rivals.metric[better]), "rival": first.metric,
            **first[[lead, f"{lead}_low", f"{lead}_high", "p_corrected"]],
        })  # fmt: skip
    return pd.DataFrame(rows)


def density_table(traces: pd.DataFrame, metrics: Sequence[str] = METRICS, bins: int = 40) -> pd.DataFrame:
    """Score densities of right and wrong tokens, per depth and metric.

    Bins are common to all depths, from the 0.5th to the 99.5th percentile of a metric's scores. Declined tokens have no
    score. Columns: depth, metric, agrees, score (a bin's middle), density. A head that is always right, or always
    wrong, has rows of that kind only.

    Raises:
        InvalidInputError: all heads always decline.
    """
    spoken, rows = _spoken(traces), []
    edges = {metric: np.linspace(*spoken[metric].quantile([0.005, 0.995]), bins + 1) for metric in metrics}
    for (depth, agrees), table in spoken.groupby(["depth", "agrees"]):
        for metric in metrics:
            density, at = np.histogram(table[metric], bins=edges[metric], density=True)
            row = {"depth": depth, "metric": metric, "agrees": agrees, "score": (at[1:] + at[:-1]) / 2}
            rows.append(pd.DataFrame({**row, "density": density}))
    return pd.concat(rows, ignore_index=True)


def roc_table(traces: pd.DataFrame, metrics: Sequence[str] = METRICS, points: int = 101) -> pd.DataFrame:
    """ROC curves per depth and metric, at evenly spaced false-positive rates.

    Left out are declined tokens, and heads that are always right or always wrong. Columns: depth, metric,
    false_positive_rate, true_positive_rate.

    Raises:
        InvalidInputError: nothing is left.
    """
    at, curves = np.linspace(0, 1, points), []
    for depth, table in _spoken(traces).groupby("depth"):
        for metric in metrics if table.agrees.nunique() == 2 else ():
            wrong, right, _ = roc_curve(table.agrees, table[metric])
            rates = {"false_positive_rate": at, "true_positive_rate": np.interp(at, wrong, right)}
            curves.append(pd.DataFrame({"depth": depth, "metric": metric, **rates}))
    return _joined(curves)


def risk_coverage_table(traces: pd.DataFrame, metrics: Sequence[str] = METRICS, points: int = 100) -> pd.DataFrame:
    """Risk-coverage curves per depth and metric, at evenly spaced coverages.

    Coverage is a share of all tokens, declined ones included, so a curve ends where the head declines. Columns: depth,
    metric, coverage, risk. A head that always declines has no rows.

    Raises:
        InvalidInputError: all heads always decline.
    """
    curves = []
    for depth, table in traces.groupby("depth"):
        for metric in metrics:
            curve = risk_coverage(table[metric].to_numpy(), table.agrees.to_numpy())
            if not curve.empty:
                at = np.linspace(0.01, curve.coverage.max(), points)
                risk = np.interp(at, curve.coverage, curve.risk)
                curves.append(pd.DataFrame({"depth": depth, "metric": metric, "coverage": at, "risk": risk}))
    return _joined(curves)


def _spoken(traces: pd.DataFrame) -> pd.DataFrame:
    """Rows where a head does not decline."""
    spoken = traces[traces.head_token >= 0]
    if spoken.empty:
        raise InvalidInputError(_NOTHING)
    return spoken


def _joined(curves: list[pd.DataFrame]) -> pd.DataFrame:
    if not curves:
        raise InvalidInputError(_NOTHING)
    return pd.concat(curves, ignore_index=True)
