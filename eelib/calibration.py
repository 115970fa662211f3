"""Calibration: from traces and a target ε to a threshold per head."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from eelib.confidence import check_metric
from eelib.errors import CorpusError, InvalidInputError
from eelib.separation import risk_coverage
from eelib.workspace import written_whole

METHODS = ("empirical",)
TARGETS = ("exit_agreement",)


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and what they promise.

    depths, thresholds: one each a head; `None` = that head never exits.
    metric, epsilon, target, method, delta: as given to `calibrate`.
    table: per head its depth, threshold, and coverage and exit_agreement on the calibration text.
    """

    depths: tuple[int, ...]
    thresholds: tuple[float | None, ...]
    metric: str
    epsilon: float
    target: str
    method: str
    delta: float | None
    table: pd.DataFrame

    def to_json(self, path: str | Path) -> None:
        """Writes all of it to one JSON file, whole or not at all."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "table"}
        content["table"] = self.table.astype(object).where(self.table.notna(), None).to_dict("records")
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> "Calibration":
        """Raises InvalidInputError where the file is not a calibration."""
        try:
            content = json.loads(Path(path).read_text())
            table = pd.DataFrame(content.pop("table"))
            lists = {name: tuple(content.pop(name)) for name in ("depths", "thresholds")}
            return cls(**lists, **content, table=table)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"{path} holds no calibration: {error!r}. `Calibration.to_json` writes one.") from (
                error
            )


def calibrate(
    traces: pd.DataFrame,
    metric: str,
    epsilon: float,
    method: str = "empirical",
    delta: float | None = None,
    target: str = "exit_agreement",
) -> Calibration:
    """Thresholds at which each head agrees with the model on at least a share ε of the tokens that exit there.

    `empirical` (the rule of the paper's code, there `max_coverage`): for each head alone, tokens sorted from most to
    least confident, tied ones together, the loosest threshold whose running mean agreement is still at least ε; where
    none qualifies, the head never exits. It bounds nothing outside the calibration text and treats heads as
    independent: a head later in the cascade only sees what those before it declined.

    Args:
        traces: from `record_traces`, on calibration text.
        metric: the score that thresholds are set on.
        epsilon: the target agreement, 0 < ε < 1; higher is stricter.
        target: `exit_agreement`, P(agree | exited).
        delta: for methods with a guarantee; `empirical` has none.

    Raises:
        InvalidInputError: ε outside (0, 1), or an unknown metric, method or target. CorpusError: empty traces.
    """
    check_metric(metric)
    check_epsilon(epsilon)
    if method not in METHODS:
        raise InvalidInputError(f"Unknown calibration method {method!r}: expected one of {', '.join(METHODS)}.")
    if target not in TARGETS:
        raise InvalidInputError(f"Unknown target {target!r}: expected one of {', '.join(TARGETS)}.")
    if delta is not None:
        raise InvalidInputError(f"delta={delta}: the method {method!r} guarantees nothing and takes no delta.")
    if traces.empty:
        raise CorpusError("No traces to calibrate on.")
    rows = [
        {"depth": int(depth), **_empirical(table[metric].to_numpy(), table.agrees.to_numpy(), epsilon)}
        for depth, table in traces.groupby("depth")
    ]
    depths, thresholds = zip(*((row["depth"], row["threshold"]) for row in rows), strict=True)
    return Calibration(depths, thresholds, metric, epsilon, target, method, delta, pd.DataFrame(rows))


def check_epsilon(epsilon: float) -> float:
    """ε, if it is a share strictly between 0 and 1. Raises InvalidInputError otherwise."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise InvalidInputError(f"epsilon={epsilon!r}: expected a target agreement between 0 and 1, such as 0.9.")
    return epsilon


def achieved(traces: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """What the thresholds do on other traces, tokens passing the heads in order as in decoding.

    A token exits at the first head whose score reaches its threshold. One row per sequence and head: sequence, depth,
    tokens (of the sequence), reached (tokens that came to this head), alone (tokens the head would let out if it saw
    all), alone_agreed, exited, agreed.
    """
    metric = calibration.metric
    thresholds = dict(zip(calibration.depths, calibration.thresholds, strict=True))
    unknown = sorted(set(traces.depth.unique()) ^ set(thresholds))
    if unknown:
        raise InvalidInputError(f"Traces and calibration differ in depths: {unknown} is only in one of them.")
    threshold = traces.depth.map({d: np.inf if t is None else t for d, t in thresholds.items()}).to_numpy()
    passes = traces[metric].to_numpy() >= threshold
    n_heads = len(thresholds)
    earlier = np.cumsum(passes.reshape(-1, n_heads), axis=1) - passes.reshape(-1, n_heads)  # traces are in order
    reached = (earlier == 0).ravel()
    exited = passes & reached
    agrees = traces.agrees.to_numpy()
    counted = traces[["sequence", "depth"]].assign(
        tokens=1, reached=reached, alone=passes, alone_agreed=passes & agrees, exited=exited, agreed=exited & agrees
    )
    return counted.groupby(["sequence", "depth"], as_index=False).sum().astype(int)


def _empirical(scores: np.ndarray, agrees: np.ndarray, epsilon: float) -> dict:
    curve = risk_coverage(scores, agrees)
    # compared as counts: 1 - risk loses the last bit, and an agreement of exactly ε qualifies
    exited = np.rint(curve.coverage * len(scores))
    agreed = np.rint((1 - curve.risk) * exited)
    qualifying = np.flatnonzero(agreed >= epsilon * exited - 1e-9)
    if not len(qualifying):
        return {"threshold": None, "coverage": 0.0, "exit_agreement": None}
    best = curve.iloc[qualifying[-1]]
    return {"threshold": float(best.threshold), "coverage": best.coverage, "exit_agreement": 1 - best.risk}
