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
from eelib.settings import Number, check_known, settle
from eelib.statistics import mean_interval, ratio_interval
from eelib.workspace import atomic_write, expanded

METHODS = ("empirical", "cascade", "risk")
_CHANCE = Number(above=0, below=1)


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and what they promise.

    depths, thresholds: one each a head; `None` = that head never exits.
    metric, epsilon, target, method, delta: as given to `calibrate`.
    table: per head its depth, threshold, and on the calibration text coverage (share of tokens that exit there) and
        exit_agreement; for `empirical`, which takes heads as independent, as if each were the only one.
    p_value, tested_on: for `risk`, of the last thresholds accepted (else the first tried), and on how many sequences.
    heads_fingerprint: of the heads, and with them of the backbone, that the traces are of; decoding with others is
        refused. None where the traces do not say.

    Raises:
        InvalidInputError: values that no calibration can have.
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
        if len(self.thresholds) != len(self.depths):
            raise InvalidInputError(
                f"{len(self.thresholds)} thresholds for heads at depths {list(self.depths)}: expected one, or None, "
                "a head."
            )
        if not all(t is None or (isinstance(t, float) and math.isfinite(t)) for t in self.thresholds):
            raise InvalidInputError(f"thresholds={list(self.thresholds)}: expected finite numbers or None.")

    @property
    def digest(self) -> str:
        """SHA-256 over all that the calibration says. To be kept where whoever can change the file cannot change it."""
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
        """Writes all of it and its digest to one JSON file, whole or not at all."""
        with atomic_write(path) as temporary:
            content = self._content() | {"digest": self.digest}
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path, digest: str | None = None) -> "Calibration":
        """What `to_json` wrote.

        Args:
            digest: the one expected, from a source that is trusted. The digest inside the file shows accidents only:
                whoever changes the thresholds can change it, too.

        Raises:
            InvalidInputError: no calibration, one that was changed, another one than expected, or thresholds that the
                metric's scores cannot reach.
        """
        try:
            content = json.loads(expanded(path).read_text(encoding="utf-8"))
            inside, table = content.pop("digest"), pd.DataFrame(content.pop("table"))
            lists = {name: tuple(content.pop(name)) for name in ("depths", "thresholds")}
            found = cls(**lists, **content, table=table)
            check_thresholds(found.metric, found.thresholds)
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(f"{path} holds no calibration: {error!r}. `Calibration.to_json` writes one.") from (
                error
            )
        if found.digest != inside:
            raise InvalidInputError(
                f"{path} was changed after it was written: its digest does not fit. Calibrate anew."
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
    """Thresholds that keep a promise ε: on the calibration text, or with `risk` on new text.

    `empirical` (the rule of the paper's code, there `max_coverage`): for each head alone, tokens sorted from most to
    least confident, tied ones together, the loosest threshold whose running mean agreement is still at least ε; where
    none qualifies, the head never exits. It bounds nothing outside the calibration text and treats heads as
    independent: a head later in the cascade only sees what those before it declined.
    `cascade`: the same, each head on the tokens that those before it declined. It bounds nothing outside the
    calibration text either.
    `risk`: thresholds that meet the target in the mean over new sequences, each counting as one, with a probability of
    at least 1 - δ over the draw of the calibration sequences (`control_risk`); for teacher-forced text of the same
    kind, and for one ε, metric and target chosen without looking at these sequences.

    Args:
        traces: from `record_traces`, on calibration text.
        metric: the score that thresholds are set on.
        epsilon: the target agreement, 0 < ε < 1; higher is stricter.
        target: `exit_agreement`, P(agree | exited), or `output_agreement`, 1 - P(exited and disagreed), of which
            `empirical` and `cascade` grant each head an even share.
        delta: for `risk`, the chance of failure, 0 < δ < 1; the others take none.
        path, p_value, seed: for `risk`, as `control_risk` takes them.

    Raises:
        InvalidInputError: ε or δ outside (0, 1), an unknown metric, method or target, or traces that are none.
        CorpusError: empty traces, or for `risk` without a path fewer than two sequences.
    """
    epsilon, delta = _CHANCE("epsilon", epsilon), replace(_CHANCE, optional=True)("delta", delta)
    _check_promise(method, target)
    if method != "risk" and (delta is not None or path is not None):
        raise InvalidInputError(f"delta={delta}: the method {method!r} guarantees nothing and takes no delta or path.")
    if method == "risk" and delta is None:
        raise InvalidInputError(f"delta={delta!r}: the method 'risk' takes a chance of failure, such as 0.05.")
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
    given = tokens.depths, thresholds, metric, epsilon, target, method, delta, table, *evidence
    return Calibration(*given, heads_fingerprint=traces.attrs.get("heads_fingerprint"))


def find_thresholds(
    tokens: HeadScores, target: str, epsilon: float, method: str, **options
) -> tuple[tuple[float | None, ...], float | None, int | None]:
    """The thresholds alone, for callers that have checked what they give, and for `risk` (with the options of
    `control_risk`) the p-value and the number of sequences behind it."""
    if method == "risk":
        return control_risk(tokens, target, epsilon, **options)
    return tuple(_fitted(tokens, target, epsilon, in_order=method == "cascade")), None, None


def _check_promise(method: str, target: str) -> None:
    check_known("calibration method", method, METHODS)
    check_known("target", target, TARGETS)


def achieved(traces: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """What the thresholds do on other traces, tokens passing the heads in order as in decoding.

    A token exits at the first head whose score reaches its threshold. One row per sequence and head: sequence, depth,
    tokens (of the sequence), reached (tokens that came to this head), alone (tokens the head would let out if it saw
    all), alone_agreed, exited, agreed.
    """
    tokens = HeadScores.of(traces, calibration.metric)
    unknown = sorted(set(tokens.depths) ^ set(calibration.depths))
    if unknown:
        raise InvalidInputError(f"Traces and calibration differ in depths: {unknown} is only in one of them.")
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
    """What became of the promise on other traces: the agreement that the calibration's target names.

    Returns:
        achieved with its 95% interval over sequences (achieved_low, achieved_high; NaN where nothing exits and the
        target speaks of what exits), and coverage. Every sequence weighs the same, as in `risk`.
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
    """Each head's loosest threshold that keeps the promise on all tokens or, `in_order`, on those that reach it."""
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
