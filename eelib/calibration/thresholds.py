"""Calibration: from traces and a target ε to a threshold per head."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from eelib.calibration.cascade import TARGETS, HeadScores
from eelib.calibration.risk_control import control_risk
from eelib.confidence.metrics import check_thresholds
from eelib.confidence.separation import curve_of
from eelib.display import shown, table_html
from eelib.errors import InvalidInputError
from eelib.settings import COUNT, Number, check_known, settle
from eelib.statistics import mean_interval, ratio_interval
from eelib.workspace import expanded, read_json, recorded, write_whole

METHODS = ("empirical", "cascade", "risk")
"""The methods of `calibrate`."""
_CHANCE = Number(above=0, below=1)


@dataclass(frozen=True)
class Calibration:
    """Thresholds with the target they were calibrated for.

    Attributes:
        depths: of the heads.
        thresholds: one per head; None for a head that never exits.
        metric, epsilon, target, method, delta: as passed to `calibrate`.
        table: per head its depth, threshold, and on the calibration text coverage (share of tokens that exit there) and
            exit_agreement; for `empirical`, which treats heads as independent, as if each were the only one.
        p_value: for `risk`, of the last accepted thresholds, else of the first tried.
        tested_on: for `risk`, the number of testing sequences.
        heads_fingerprint: of the traced heads, which covers their backbone; decoding with others is refused. None where
            the traces do not have it.

    Raises:
        InvalidInputError: inconsistent or non-finite values.

    Example:
        >>> calibration = calibrate(traces, "max_prob", epsilon=0.7)
        >>> calibration.depths, len(calibration.thresholds)
        ((1, 3, 5), 3)
    """

    depths: tuple[int, ...]
    thresholds: tuple[float | None, ...]
    metric: str
    epsilon: float
    target: str
    method: str
    delta: float | None
    table: pd.DataFrame
    p_value: float | None = None
    tested_on: int | None = None
    heads_fingerprint: str | None = None

    def __post_init__(self):
        settle(self, epsilon=_CHANCE, delta=replace(_CHANCE, optional=True))
        _check_promise(self.method, self.target)
        for depth in self.depths:
            COUNT("depths", depth)
        if self.heads_fingerprint is not None and not isinstance(self.heads_fingerprint, str):
            raise InvalidInputError(f"heads_fingerprint={self.heads_fingerprint!r}: expected text, or None.")
        if len(self.thresholds) != len(self.depths):
            raise InvalidInputError(
                f"{len(self.thresholds)} thresholds for heads at depths {list(self.depths)}: expected one, or None, "
                "a head."
            )
        if not all(t is None or (isinstance(t, float) and math.isfinite(t)) for t in self.thresholds):
            raise InvalidInputError(f"thresholds={list(self.thresholds)}: expected finite numbers or None.")

    @property
    def digest(self) -> str:
        """SHA-256 of the calibration, to detect tampering.

        Keep it where whoever can change the file cannot.
        """
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        thresholds = ", ".join(f"{d}: {shown(t)}" for d, t in zip(self.depths, self.thresholds, strict=True))
        return f"Calibration({self._promise()}, thresholds {{{thresholds}}})"

    def _repr_html_(self) -> str:
        columns = [str(name).replace("_", " ") for name in self.table]
        return table_html(f"Calibration: {self._promise()}", self.table.values.tolist(), columns)

    def _promise(self) -> str:
        risk = "" if self.delta is None else f", δ = {self.delta:g}"
        return f"{self.metric}, {self.target.replace('_', ' ')} ε = {self.epsilon:g}, {self.method}{risk}"

    def to_json(self, path: str | Path) -> None:
        """Write the calibration and its digest to a JSON file, atomically."""
        content = self._content() | {"digest": self.digest}
        path = expanded(path)
        with recorded(path.parent) as temporary:
            write_whole(temporary / path.name, json.dumps(content, indent=2) + "\n")

    @classmethod
    def from_json(cls, path: str | Path, digest: str | None = None) -> "Calibration":
        """Read what `to_json` wrote.

        Args:
            digest: the expected one, from a trusted source. The digest inside the file reveals accidents only: whoever
                changes the thresholds can change it, too.

        Raises:
            InvalidInputError: not a calibration, a modified or unexpected one, or thresholds outside the metric's
                range.
        """
        try:
            content = read_json(path, digest=False)
        except InvalidInputError as error:
            raise InvalidInputError(f"{path} holds no calibration: {error}") from error
        try:
            inside, table = content.pop("digest"), pd.DataFrame(content.pop("table"))
            lists = {name: tuple(content.pop(name)) for name in ("depths", "thresholds")}
            found = cls(**lists, **content, table=table)
            check_thresholds(found.metric, found.thresholds)
            matches = found.digest == inside
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InvalidInputError(f"{path} holds no calibration: {error!r}. `Calibration.to_json` writes one.") from (
                error
            )
        if not matches:
            raise InvalidInputError(
                f"{path} was changed after it was written: its digest does not match. Calibrate anew."
            )
        if digest is not None and found.digest != digest:
            raise InvalidInputError(
                f"{path} is another calibration than expected: its digest is {found.digest[:12]}, not {digest[:12]}."
            )
        return found

    def _content(self) -> dict:
        content = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "table"}
        table = self.table.astype(object).where(self.table.notna(), None).to_dict("records")
        return content | {"table": table}


def calibrate(
    traces: pd.DataFrame,
    metric: str,
    epsilon: float,
    method: str = "empirical",
    delta: float | None = None,
    target: str = "exit_agreement",
    *,
    path: npt.ArrayLike | None = None,
    p_value: str = "betting",
    seed: int = 0,
) -> Calibration:
    """Calibrate one threshold per head for a target agreement ε.

    Methods:

    - `empirical` (the paper's code: `max_coverage`): for each head alone, the loosest threshold at which the running
      mean agreement, from most to least confident token with ties together, is at least ε; if there is none, the head
      never exits. No bound outside the calibration text; treats heads as independent, though later ones see only what
      earlier ones declined.
    - `cascade`: the same, each head on the tokens that earlier ones declined. No bound outside the calibration text
      either.
    - `risk`: thresholds that meet the target in the mean over new sequences, counted equally, with probability at least
      1 - δ over the draw of the calibration sequences (`control_risk`); for teacher-forced text of the same kind, and
      for one ε, metric and target chosen without looking at these sequences.

    Args:
        traces: from `record_traces`, on calibration text.
        metric: score to threshold.
        epsilon: target agreement, 0 < ε < 1; higher is stricter.
        target: `exit_agreement`, P(agree | exited), or `output_agreement`, 1 - P(exited and disagreed), of which
            `empirical` and `cascade` grant each head an even share.
        delta: failure probability of `risk`, 0 < δ < 1; None for the others.
        path, p_value, seed: for `risk`, as in `control_risk`.

    Raises:
        InvalidInputError: ε or δ outside (0, 1), an unknown metric, method or target, or not traces.
        CorpusError: empty traces, or for `risk` without a path fewer than two sequences.

    Example:
        >>> calibrate(traces, "max_prob", epsilon=0.7, method="cascade").target
        'exit_agreement'
    """
    epsilon, delta = _CHANCE("epsilon", epsilon), replace(_CHANCE, optional=True)("delta", delta)
    _check_promise(method, target)
    if method != "risk" and (delta is not None or path is not None):
        raise InvalidInputError(
            f"delta={delta}: the method {method!r} guarantees nothing and takes no delta or path. Omit them, or use "
            "the method 'risk'."
        )
    if method == "risk" and delta is None:
        raise InvalidInputError(f"delta={delta!r}: the method 'risk' needs a failure probability, such as 0.05.")
    tokens, options = HeadScores.of(traces, metric), {}
    if method == "risk":
        options = {"delta": delta, "path": path, "p_value": p_value, "seed": seed}
    thresholds, *evidence = find_thresholds(tokens, target, epsilon, method, **options)
    left = tokens.passed(thresholds) if method == "empirical" else tokens.exits(thresholds)
    exited, agreed = left.sum(axis=0), (left & tokens.agrees).sum(axis=0)
    table = pd.DataFrame({
        "depth": tokens.depths, "threshold": thresholds, "coverage": exited / len(left),
        "exit_agreement": [a / n if n else None for a, n in zip(agreed, exited, strict=True)],
    })  # fmt: skip
    fields = tokens.depths, thresholds, metric, epsilon, target, method, delta, table, *evidence
    return Calibration(*fields, heads_fingerprint=traces.attrs.get("heads_fingerprint"))


def find_thresholds(
    tokens: HeadScores, target: str, epsilon: float, method: str, **options
) -> tuple[tuple[float | None, ...], float | None, int | None]:
    """Thresholds for valid arguments; for `risk` also p-value and sample size.

    `options` are those of `control_risk`.
    """
    if method == "risk":
        return control_risk(tokens, target, epsilon, **options)
    return tuple(_fitted(tokens, target, epsilon, in_order=method == "cascade")), None, None


def _check_promise(method: str, target: str) -> None:
    check_known("calibration method", method, METHODS)
    check_known("target", target, TARGETS)


def achieved(traces: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """What the thresholds do on other traces, per sequence and head.

    A token exits at the first head whose score reaches its threshold. Columns: sequence, depth, tokens (of the
    sequence), reached (tokens that got to this head), alone (tokens that would exit here if the head saw all),
    alone_agreed, exited, agreed.
    """
    tokens = HeadScores.of(traces, calibration.metric)
    unknown = sorted(set(tokens.depths) ^ set(calibration.depths))
    if unknown:
        raise InvalidInputError(
            f"Traces and calibration differ in depths: {unknown} is only in one of them. Calibrate on traces of these "
            "heads."
        )
    passed, exits = tokens.passed(calibration.thresholds), tokens.exits(calibration.thresholds)
    counts = {
        "tokens": np.ones_like(passed), "reached": passed.cumsum(axis=1) - passed == 0, "alone": passed,
        "alone_agreed": passed & tokens.agrees, "exited": exits, "agreed": exits & tokens.agrees,
    }  # fmt: skip
    names = traces.sequence.unique()  # in the order of the numbers
    rows = pd.MultiIndex.from_product([np.sort(names), tokens.depths], names=["sequence", "depth"])
    return pd.DataFrame(
        {
            name: np.stack([np.bincount(tokens.sequence, column) for column in values.T], axis=1).astype(int).ravel()
            for name, values in counts.items()
        },
        index=rows,
    ).reset_index()


def achieved_agreement(traces: pd.DataFrame, calibration: Calibration, *, seed: int = 0) -> dict[str, float]:
    """Agreement achieved on other traces, by the calibration's target.

    Returns:
        achieved with its 95% interval over sequences (achieved_low, achieved_high; NaN where nothing exits and the
        target is about exits), and coverage. Sequences count equally, as in `risk`.
    """
    counts = achieved(traces, calibration).groupby("sequence")[["tokens", "exited", "agreed"]]
    tokens, exited, agreed = counts.agg({"tokens": "first", "exited": "sum", "agreed": "sum"}).to_numpy(float).T
    if calibration.target == "exit_agreement":
        found = ratio_interval(agreed / tokens, exited / tokens, seed=seed)
    else:
        found = mean_interval(1 - (exited - agreed) / tokens, seed=seed)
    names = ("achieved", "achieved_low", "achieved_high")
    return dict(zip(names, found, strict=True)) | {"coverage": float(np.mean(exited / tokens))}


def _fitted(tokens: HeadScores, target: str, epsilon: float, in_order: bool) -> list[float | None]:
    """Loosest threshold of each head that meets the target on all tokens.

    With `in_order`, on those that reach the head.
    """
    thresholds, reach = [], np.ones(len(tokens.scores), dtype=bool)
    share = (1 - epsilon) * len(reach) / len(tokens.depths)  # tokens that may exit wrongly, a head
    allowed = 0.0
    for scores, agrees in zip(tokens.scores.T, tokens.agrees.T, strict=True):
        if not reach.any():
            thresholds.append(None)
            continue
        allowed = allowed + share if in_order else share
        curve = curve_of(scores[reach], agrees[reach])
        # Compared as counts: 1 - risk loses the last bit, and an agreement of exactly ε qualifies.
        exited = np.rint(curve.coverage * reach.sum())
        wrong = np.rint(curve.risk * exited)
        most = (1 - epsilon) * exited if target == "exit_agreement" else allowed
        qualifying = np.flatnonzero(wrong <= most + 1e-9)
        best = qualifying[-1] if len(qualifying) else None
        thresholds.append(None if best is None else float(curve.threshold[best]))
        if in_order and best is not None:
            allowed -= wrong[best]
            reach &= scores < thresholds[-1]
    return thresholds
