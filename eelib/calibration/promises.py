"""Promised against achieved agreement, on text of the same and other kinds.

`eelib.plotting.calibration` draws these tables.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from eelib.calibration.cascade import TARGETS
from eelib.calibration.thresholds import METHODS, Calibration, achieved_agreement, calibrate
from eelib.errors import CorpusError


def achieved_table(
    fitting: pd.DataFrame,
    test: pd.DataFrame,
    metrics: Sequence[str],
    epsilons: Sequence[float],
    *,
    delta: float = 0.1,
    methods: Sequence[str] = METHODS,
    targets: Sequence[str] = TARGETS,
    seed: int = 0,
) -> pd.DataFrame:
    """Agreement achieved on new text, per target, metric, method and ε.

    Args:
        fitting: traces to calibrate on.
        test: traces of other text of the same kind.
        delta: failure probability of the method `risk`.

    Returns:
        Columns: target, metric, method, epsilon, achieved with its 95% interval over sequences (_low, _high; NaN where
            nothing exits and the target is about exits), coverage, and short (the interval lies below ε).
    """
    rows = []
    for target in targets:
        for metric in metrics:
            for method in methods:
                for epsilon in epsilons:
                    calibration = _calibrate(fitting, metric, epsilon, method, delta, target, seed)
                    row = {"target": target, "metric": metric, "method": method, "epsilon": epsilon}
                    rows.append(row | achieved_agreement(test, calibration, seed=seed))
    table = pd.DataFrame(rows)
    return table.assign(short=table.achieved_high < table.epsilon)


def shift_table(
    texts: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]],
    metric: str,
    epsilon: float,
    *,
    delta: float = 0.1,
    methods: Sequence[str] = ("cascade", "risk"),
    target: str = "exit_agreement",
    seed: int = 0,
) -> pd.DataFrame:
    """Agreement under shift: thresholds of each kind of text, used on each.

    Args:
        texts: per kind of text, traces to calibrate on and traces to use the thresholds on.
        delta: failure probability of the method `risk`.

    Returns:
        Columns: method, calibrated_on, used_on, achieved with its 95% interval over sequences (_low, _high), coverage,
            and missed_by (ε less achieved where positive; NaN where nothing exits).
    """
    rows = []
    for method in methods:
        for source, (fitting, _) in texts.items():
            calibration = _calibrate(fitting, metric, epsilon, method, delta, target, seed)
            for to, (_, used) in texts.items():
                row = {"method": method, "calibrated_on": source, "used_on": to}
                rows.append(row | achieved_agreement(used, calibration, seed=seed))
    table = pd.DataFrame(rows)
    return table.assign(missed_by=(epsilon - table.achieved).clip(lower=0))


def halves(traces: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sequences with even and odd numbers, to calibrate and to test on.

    Raises:
        CorpusError: one half is empty.
    """
    even = traces.sequence % 2 == 0
    if even.all() or not even.any():
        raise CorpusError("These traces have too few sequences to halve: use at least two.")
    return traces[even], traces[~even]


def _calibrate(
    traces: pd.DataFrame, metric: str, epsilon: float, method: str, delta: float, target: str, seed: int
) -> Calibration:
    return calibrate(traces, metric, epsilon, method, delta if method == "risk" else None, target, seed=seed)
