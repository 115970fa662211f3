"""Promised against achieved: many calibrations at once, on text of the same kind and of other kinds, as tables.

`eelib.plotting.calibration` draws them.
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
    """Agreement that thresholds achieve on new text, for every target, metric, method and ε.

    Args:
        fitting: traces to calibrate on.
        test: traces of other text of the same kind.
        delta: the chance of failure that the method `risk` may take.

    Returns:
        Columns: target, metric, method, epsilon, achieved with its 95% interval over sequences (_low, _high; NaN where
        nothing exits and the target speaks of what exits), coverage, and short (the interval lies below ε).
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
    """Agreement achieved on each kind of text by thresholds calibrated on each.

    Args:
        texts: for each kind of text the traces to calibrate on and those to use the thresholds on.
        delta: the chance of failure that the method `risk` may take.

    Returns:
        Columns: method, calibrated_on, used_on, achieved with its 95% interval over sequences (_low, _high), coverage,
        and missed_by (how far achieved is below ε; NaN where nothing exits).
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
    """Two halves of traces, of the sequences with even and with odd numbers: one to calibrate on, one to test on.

    Raises:
        CorpusError: one of them is empty.
    """
    even = traces.sequence % 2 == 0
    if even.all() or not even.any():
        raise CorpusError("These traces have no two halves: give more texts.")
    return traces[even], traces[~even]


def _calibrate(
    traces: pd.DataFrame, metric: str, epsilon: float, method: str, delta: float, target: str, seed: int
) -> Calibration:
    return calibrate(traces, metric, epsilon, method, delta if method == "risk" else None, target, seed=seed)
