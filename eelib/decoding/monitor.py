"""Monitoring: does a calibration still hold? Tested sequence by sequence."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from eelib.calibration.cascade import HeadScores
from eelib.calibration.p_values import AgreementSequence, SequentialTest
from eelib.calibration.thresholds import Calibration, calibrate
from eelib.decoding.output import DecodingOutput
from eelib.errors import CorpusError, InvalidInputError
from eelib.statistics import ratio_difference_interval, ratio_interval
from eelib.workspace import expanded

POPULATIONS = ("verified", "audited")
"""Two populations of evidence.

- `verified`: drafts of lossless decoding, among all new tokens of a sequence. Where no draft was made (after a full
  round of accepted ones), nothing is known, and the token counts as not exited.
- `audited`: all tokens of randomly drawn sequences, teacher-forced, as in calibration.
"""
_COLUMNS = [
    "population", "tokens", "exited", "agreed", "loss", "evidence", "agreement_low", "agreement_high", "drafted",
    "accepted", "seconds",
]  # fmt: skip
_PROMISE = ["epsilon", "target", "false_alarm"]


class ExitMonitor:
    """Watches a calibration in use, and raises an alarm when it fails.

    Every sequence has one loss, as in calibration (`HeadScores.losses`). The alarm is raised when the evidence that
    their mean exceeds 1 - ε reaches 1 / false_alarm. While the calibration holds, that **ever** happens, over any
    number of sequences, with probability at most `false_alarm`, in each of the two populations.

    Args:
        calibration: the one to watch.
        false_alarm: probability of a false alarm, in (0, 1).
        audit_share: share of sequences, drawn by `seed`, that `due` selects for an audit.

    Attributes:
        table: one row per sequence: population, tokens, exited, agreed, loss, evidence and limits of the agreement
            after it (agreement_low, agreement_high: a confidence sequence, each ever wrong with probability at most
            `false_alarm`), drafted, accepted, seconds, and the new tokens settled by the full model (settled_full) and
            at each depth (settled_6; settled_0 by lookup). In early exit without verification agreement is unknown:
            agreed, loss, evidence and limits are NaN.

    Example:
        >>> monitor = ExitMonitor(calibrate(traces, "max_prob", epsilon=0.7), audit_share=1)
        >>> if monitor.due():
        ...     monitor.audit(traces)
        >>> monitor.alarm
        False
    """

    def __init__(self, calibration: Calibration, *, false_alarm: float = 0.01, audit_share: float = 0.0, seed: int = 0):
        if not 0 < false_alarm < 1:
            raise InvalidInputError(f"false_alarm={false_alarm}: expected a probability between 0 and 1, such as 0.01.")
        if not 0 <= audit_share <= 1:
            raise InvalidInputError(f"audit_share={audit_share}: expected a share from 0 to 1.")
        self.calibration, self.false_alarm, self.audit_share = calibration, false_alarm, audit_share
        self._draw = np.random.default_rng(seed)
        epsilon = calibration.epsilon
        self._tests = {population: SequentialTest(1 - epsilon) for population in POPULATIONS}
        self._limits = {population: AgreementSequence(false_alarm, epsilon) for population in POPULATIONS}
        self._rows: list[dict] = []
        self._followers: list[Callable[[], None]] = []
        self._audited: list[pd.DataFrame] = []
        self._n_audited = 0

    @property
    def table(self) -> pd.DataFrame:
        table = pd.DataFrame(self._rows)
        depths = sorted(int(name[8:]) for name in table if name.startswith("settled_") and name != "settled_full")
        settled = [*(f"settled_{depth}" for depth in depths), "settled_full"]
        table = table.reindex(columns=[*_COLUMNS, *settled])
        return table.assign(**{name: table[name].fillna(0).astype(int) for name in settled})

    def to_frame(self) -> pd.DataFrame:
        """Export: the table, and in every row epsilon, target and false_alarm.

        Written by `to_csv` or `to_parquet`, it is all that `eelib.explorer.MonitorView` and `compare_monitors` need.
        """
        promise = self.calibration.epsilon, self.calibration.target, self.false_alarm
        return self.table.assign(**dict(zip(_PROMISE, promise, strict=True)))

    @property
    def alarm(self) -> bool:
        """Whether the evidence ever reached 1 / false_alarm, in either population."""
        return any(row["evidence"] >= 1 / self.false_alarm for row in self._rows)

    def due(self) -> bool:
        """Whether to audit this sequence; call it once per sequence."""
        return bool(self._draw.random() < self.audit_share)

    def follow(self, follower: Callable[[], None]) -> Callable[[], None]:
        """Call `follower` after everything that is recorded; what is returned ends that."""
        self._followers.append(follower)
        return lambda: self._followers.remove(follower) if follower in self._followers else None

    def observe(self, output: DecodingOutput) -> None:
        """Record one greedy call of `generate`."""
        trace, stats, n = output.trace, output.stats, output.stats.emitted
        n_blocks = len(stats.block_positions)
        depths = trace.depth[trace.accepted | ~trace.drafted].value_counts()  # of the new tokens
        counts = {
            "drafted": stats.drafted, "accepted": stats.accepted, "seconds": stats.seconds,
            **{f"settled_{'full' if depth == n_blocks else depth}": int(count) for depth, count in depths.items()},
        }  # fmt: skip
        if not stats.rounds:  # nothing was verified
            self._note("unverified", n, int((trace.depth < n_blocks).sum()), math.nan, math.nan, counts)
            return self._tell()
        # A rejected draft was compared where the model's own token stands in its place; those behind it were not.
        own = trace[~trace.drafted].set_index(["round", "position"]).index
        compared = trace.drafted & (trace.accepted | pd.MultiIndex.from_frame(trace[["round", "position"]]).isin(own))
        exited, agreed = int(compared.sum()), int((compared & trace.accepted).sum())
        allowed, wrong = 1 - self.calibration.epsilon, exited - agreed
        loss = wrong / n
        if self.calibration.target == "exit_agreement":
            loss = allowed + (wrong - allowed * exited) / n
        self._note("verified", n, exited, agreed, loss, counts)
        self._tell()

    def audit(self, traces: pd.DataFrame) -> None:
        """Record sequences in full, from their `record_traces`."""
        tokens, calibration = HeadScores.of(traces, self.calibration.metric), self.calibration
        exits = tokens.exits(calibration.thresholds)
        counts = [
            np.bincount(tokens.sequence, values).astype(int).tolist()
            for values in (np.ones(len(exits)), exits.any(axis=1), (exits & tokens.agrees).any(axis=1), *exits.T)
        ]
        losses = tokens.losses(calibration.thresholds, calibration.target, calibration.epsilon)
        for n, exited, agreed, *by_head, loss in zip(*counts, losses.tolist(), strict=True):
            settled = {f"settled_{depth}": count for depth, count in zip(tokens.depths, by_head, strict=True)}
            idle = {"drafted": 0, "accepted": 0, "seconds": math.nan, "settled_full": n - exited}
            self._note("audited", n, exited, agreed, loss, idle | settled)
        self._audited.append(traces.assign(sequence=pd.factorize(traces.sequence)[0] + self._n_audited))
        self._n_audited += tokens.n_sequences
        self._tell()

    def recalibrate(self) -> Calibration:
        """Calibrate anew on the audited sequences; monitor the result separately.

        Raises:
            CorpusError: nothing was audited.
        """
        if not self._audited:
            raise CorpusError("Nothing to recalibrate on: no sequence was audited. Pass `audit` traces of some.")
        old = self.calibration
        return calibrate(pd.concat(self._audited), old.metric, old.epsilon, old.method, old.delta, old.target)

    def summary(self) -> pd.DataFrame:
        """Summary, one row per population.

        Columns: sequences, tokens, coverage and agreement (of what exited) with 95% intervals over sequences, evidence,
        the number of the sequence that raised the alarm, and seconds per token.
        """
        rows = []
        for population, table in self.table.groupby("population", sort=False):
            coverage = ratio_interval(table.exited, table.tokens)
            agreement = ratio_interval(table.agreed, table.exited)
            alarmed = np.flatnonzero(table.evidence >= 1 / self.false_alarm)
            rows.append({
                "population": population, "sequences": len(table), "tokens": table.tokens.sum(),
                **dict(zip(("coverage", "coverage_low", "coverage_high"), coverage, strict=True)),
                **dict(zip(("agreement", "agreement_low", "agreement_high"), agreement, strict=True)),
                "evidence": table.evidence.iloc[-1], "alarm_at": alarmed[0] + 1 if len(alarmed) else None,
                "seconds_per_token": table.seconds.sum(min_count=1) / table.tokens.sum(),
            })  # fmt: skip
        return pd.DataFrame(rows)

    def _note(self, population: str, tokens: int, exited: int, agreed: float, loss: float, counts: dict) -> None:
        evidence = low = high = math.nan
        if population in self._tests:
            evidence = float(self._tests[population].add(loss))
            among = exited / tokens if self.calibration.target == "exit_agreement" else 1.0
            low, high = self._limits[population].add((exited - agreed) / tokens, among)
        self._rows.append({
            "population": population, "tokens": tokens, "exited": exited, "agreed": agreed, "loss": loss,
            "evidence": evidence, "agreement_low": low, "agreement_high": high, **counts,
        })  # fmt: skip

    def _tell(self) -> None:
        for follower in [*self._followers]:
            follower()


def read_export(source: ExitMonitor | pd.DataFrame | str | Path) -> pd.DataFrame:
    """Export of a monitor, from `to_frame`, its file, or the monitor itself.

    Raises:
        InvalidInputError: it is none, or several monitors' in one.
    """
    if isinstance(source, ExitMonitor):
        return source.to_frame()
    table = source
    if isinstance(source, str | Path):
        read = {".csv": pd.read_csv, ".parquet": pd.read_parquet}.get(Path(source).suffix)
        if read is None:
            raise InvalidInputError(f"{source}: expected an export in a file that ends in .csv or .parquet.")
        try:
            table = read(expanded(source))
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{source} cannot be read: {error}") from error
    if not isinstance(table, pd.DataFrame):
        raise InvalidInputError(f"{table!r}: expected an ExitMonitor, what its `to_frame` returned, or a file of that.")
    missing = [name for name in [*_COLUMNS, "settled_full", *_PROMISE] if name not in table]
    if missing:
        raise InvalidInputError(f"No export of a monitor: {', '.join(missing)} is missing. `to_frame` returns one.")
    if len(table[_PROMISE].drop_duplicates()) > 1:
        raise InvalidInputError("Rows of different promises in one export: pass the export of one monitor at a time.")
    return table


def agreement_so_far(export: pd.DataFrame) -> pd.Series:
    """Agreement up to each sequence of one population.

    Of an export, as its target counts it.

    Sequences count equally, as they do in the promise; NaN where nothing exited so far.
    """
    shares = export[["exited", "agreed"]].div(export.tokens, axis=0)
    wrong = (shares.exited - shares.agreed).cumsum()
    among = shares.exited.cumsum() if export.target.iloc[0] == "exit_agreement" else np.arange(1, len(export) + 1)
    return 1 - (wrong / among)


def compare_monitors(
    first: ExitMonitor | pd.DataFrame | str | Path,
    second: ExitMonitor | pd.DataFrame | str | Path,
    population: str = "verified",
) -> pd.DataFrame:
    """A/B comparison of two policies, observed on different sequences.

    Coverage, agreement, acceptance and seconds per token of each, and the second less the first with a 95% interval
    (bootstrap over the sequences of both). Takes monitors or their exports, as `read_export` does.

    Raises:
        CorpusError: one has fewer than two sequences of this population.
    """
    tables = [table[table.population == population] for table in map(read_export, (first, second))]
    if min(map(len, tables)) < 2:
        raise CorpusError(
            f"Fewer than two {population} sequences in one of the monitors: observe more before comparing."
        )
    rows = []
    for measure, (above, below) in {
        "coverage": ("exited", "tokens"), "agreement": ("agreed", "exited"), "acceptance": ("accepted", "drafted"),
        "seconds_per_token": ("seconds", "tokens"),
    }.items():  # fmt: skip
        pairs = [(table[above].to_numpy(float), table[below].to_numpy(float)) for table in tables]
        values = [n.sum() / d.sum() if d.sum() else float("nan") for n, d in pairs]
        difference = ratio_difference_interval(*pairs)
        names = ("difference", "difference_low", "difference_high")
        rows.append(
            {"measure": measure, "first": values[0], "second": values[1], **dict(zip(names, difference, strict=True))}
        )
    return pd.DataFrame(rows)


_FAMILIES = {
    "calibration": ("info", "What is watched."),
    "sequences": ("counter", "Sequences recorded."),
    "tokens": ("counter", "New tokens."),
    "settled_tokens": ("counter", "New tokens by the depth at which each was settled."),
    "exited_tokens": ("counter", "Tokens at which a head was confident."),
    "agreed_tokens": ("counter", "Tokens at which a confident head agreed with the full model."),
    "drafted_tokens": ("counter", "Drafts made."),
    "accepted_tokens": ("counter", "Drafts accepted."),
    "decoding_seconds": ("counter", "Wall-clock time of decoding, with prefill."),
    "token_seconds": ("histogram", "Seconds per new token, of each sequence."),
    "agreement_ratio": ("gauge", "Agreement so far, sequences counted equally."),
    "agreement_low_ratio": ("gauge", "Lower limit of the confidence sequence of the agreement."),
    "agreement_high_ratio": ("gauge", "Upper limit of the confidence sequence of the agreement."),
    "promised_agreement_ratio": ("gauge", "The agreement that the calibration promises."),
    "evidence": ("gauge", "Evidence that the promise is broken."),
    "alarm_evidence": ("gauge", "Evidence at which the alarm is raised."),
    "alarm": ("gauge", "1 once the alarm was raised."),
}
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, math.inf)  # seconds per token


def openmetrics(monitors: ExitMonitor | Mapping[str, ExitMonitor], labels: Mapping[str, str] | None = None) -> str:
    """Monitors as OpenMetrics text, which Prometheus and others scrape.

    Counters, gauges and a histogram, all named `eelib_...`, by population and depth. Serve it as
    `application/openmetrics-text; version=1.0.0; charset=utf-8`.

    Args:
        monitors: one, or several by name, which becomes the label `monitor`.
        labels: further labels of every sample, such as the model's name.

    Raises:
        InvalidInputError: no name of a label, or one that is taken.
    """
    own = {"monitor", "population", "depth", "le", "metric", "target", "method", "digest"}
    for name in labels or {}:
        if not re.fullmatch(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", str(name)) or name in own:
            raise InvalidInputError(f"labels: {name!r} is no name, or taken: expected letters, digits and underscores.")
    found: dict[str, list[str]] = {name: [] for name in _FAMILIES}
    for name, monitor in (monitors if isinstance(monitors, Mapping) else {None: monitors}).items():
        if not isinstance(monitor, ExitMonitor):
            raise InvalidInputError(f"{monitor!r}: expected an ExitMonitor.")
        common = dict(labels or {}) | ({} if name is None else {"monitor": name})
        for family, suffix, special, value in _samples(monitor):
            inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in (common | special).items())
            found[family].append(f"eelib_{family}{suffix}{{{inside}}} {_number(value)}")
    lines = []
    for family, (kind, meaning) in _FAMILIES.items():
        unit = family.rpartition("_")[2]
        lines += [f"# TYPE eelib_{family} {kind}"]
        lines += [f"# UNIT eelib_{family} {unit}"] if unit in ("seconds", "ratio") else []
        lines += [f"# HELP eelib_{family} {meaning}", *found[family]]
    return "\n".join([*lines, "# EOF", ""])


def _samples(monitor: ExitMonitor) -> Iterator[tuple[str, str, dict[str, str], float]]:
    """Family, suffix, labels and value of each known sample."""
    calibration = monitor.calibration
    names = {"metric": calibration.metric, "target": calibration.target, "method": calibration.method}
    yield "calibration", "_info", names | {"digest": calibration.digest}, 1
    yield "promised_agreement_ratio", "", {}, calibration.epsilon
    yield "alarm_evidence", "", {}, 1 / monitor.false_alarm
    yield "alarm", "", {}, int(monitor.alarm)
    for population, table in monitor.to_frame().groupby("population", sort=False):
        of, last = {"population": population}, table.iloc[-1]
        yield "sequences", "_total", of, len(table)
        for column in ("tokens", "exited", "agreed", "drafted", "accepted"):
            name = column if column == "tokens" else f"{column}_tokens"
            if table[column].notna().all():
                yield name, "_total", of, int(table[column].sum())
        for column in (name for name in table if name.startswith("settled_")):
            yield "settled_tokens", "_total", of | {"depth": column[8:]}, int(table[column].sum())
        if table.seconds.notna().all():
            pace = table.seconds / table.tokens.clip(lower=1)
            yield "decoding_seconds", "_total", of, float(table.seconds.sum())
            for most in _BUCKETS:
                yield "token_seconds", "_bucket", of | {"le": _number(most)}, int((pace <= most).sum())
            yield "token_seconds", "_count", of, len(pace)
            yield "token_seconds", "_sum", of, float(pace.sum())
        if table.agreed.notna().all():
            agreement = agreement_so_far(table).iloc[-1]
            if not math.isnan(agreement):
                yield "agreement_ratio", "", of, agreement
            yield "agreement_low_ratio", "", of, last.agreement_low
            yield "agreement_high_ratio", "", of, last.agreement_high
            yield "evidence", "", of, last.evidence


def _escaped(text: object) -> str:
    return str(text).replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return "+Inf" if value == math.inf else str(value) if isinstance(value, int) else repr(float(value))
