"""Monitoring: does a calibration still hold? Tested sequence by sequence."""

import numpy as np
import pandas as pd

from eelib.calibration.cascade import HeadScores
from eelib.calibration.p_values import SequentialTest
from eelib.calibration.thresholds import Calibration, calibrate
from eelib.decoding.output import DecodingOutput
from eelib.errors import CorpusError, InvalidInputError
from eelib.statistics import ratio_difference_interval, ratio_interval

POPULATIONS = ("verified", "audited")
"""Two populations of evidence.

- `verified`: drafts of lossless decoding, among all new tokens of a sequence. Where no draft was made (after a full
  round of accepted ones), nothing is known, and the token counts as not exited.
- `audited`: all tokens of randomly drawn sequences, teacher-forced, as in calibration.
"""


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
        table: one row per sequence: population, tokens, exited, agreed, loss, evidence (after it), seconds. In early
            exit without verification agreement is unknown: agreed, loss and evidence are NaN.

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
        self._tests = {population: SequentialTest(1 - calibration.epsilon) for population in POPULATIONS}
        self._rows: list[dict] = []
        self._audited: list[pd.DataFrame] = []
        self._n_audited = 0

    @property
    def table(self) -> pd.DataFrame:
        columns = ["population", "tokens", "exited", "agreed", "loss", "evidence", "seconds"]
        return pd.DataFrame(self._rows, columns=columns)

    @property
    def alarm(self) -> bool:
        """Whether the evidence ever reached 1 / false_alarm, in either population."""
        return any(row["evidence"] >= 1 / self.false_alarm for row in self._rows)

    def due(self) -> bool:
        """Whether to audit this sequence; call it once per sequence."""
        return bool(self._draw.random() < self.audit_share)

    def observe(self, output: DecodingOutput) -> None:
        """Record one greedy call of `generate`."""
        trace, seconds, n = output.trace, output.stats.seconds, output.stats.emitted
        if not output.stats.rounds:  # nothing was verified
            exited = int((trace.depth < len(output.stats.block_positions)).sum())
            self._note("unverified", n, exited, float("nan"), float("nan"), seconds)
            return
        # A rejected draft was compared where the model's own token stands in its place; those behind it were not.
        own = trace[~trace.drafted].set_index(["round", "position"]).index
        compared = trace.drafted & (trace.accepted | pd.MultiIndex.from_frame(trace[["round", "position"]]).isin(own))
        exited, agreed = int(compared.sum()), int((compared & trace.accepted).sum())
        allowed, wrong = 1 - self.calibration.epsilon, exited - agreed
        loss = wrong / n
        if self.calibration.target == "exit_agreement":
            loss = allowed + (wrong - allowed * exited) / n
        self._note("verified", n, exited, agreed, loss, seconds)

    def audit(self, traces: pd.DataFrame) -> None:
        """Record sequences in full, from their `record_traces`."""
        tokens, calibration = HeadScores.of(traces, self.calibration.metric), self.calibration
        exits = tokens.exits(calibration.thresholds)
        counts = [
            np.bincount(tokens.sequence, values)
            for values in (np.ones(len(exits)), exits.any(axis=1), (exits & tokens.agrees).any(axis=1))
        ]
        losses = tokens.losses(calibration.thresholds, calibration.target, calibration.epsilon)
        for n, exited, agreed, loss in zip(*counts, losses, strict=True):
            self._note("audited", int(n), int(exited), int(agreed), float(loss), float("nan"))
        self._audited.append(traces.assign(sequence=pd.factorize(traces.sequence)[0] + self._n_audited))
        self._n_audited += tokens.n_sequences

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

    def _note(self, population: str, tokens: int, exited: int, agreed: float, loss: float, seconds: float) -> None:
        evidence = self._tests[population].add(loss) if population in self._tests else float("nan")
        self._rows.append({
            "population": population, "tokens": tokens, "exited": exited, "agreed": agreed, "loss": loss,
            "evidence": evidence, "seconds": seconds,
        })  # fmt: skip


def compare_monitors(first: ExitMonitor, second: ExitMonitor, population: str = "verified") -> pd.DataFrame:
    """A/B comparison of two policies, observed on different sequences.

    Coverage, agreement and seconds per token of each, and the second less the first with a 95% interval (bootstrap over
    the sequences of both).

    Raises:
        CorpusError: one has fewer than two sequences of this population.
    """
    tables = [monitor.table[monitor.table.population == population] for monitor in (first, second)]
    if min(map(len, tables)) < 2:
        raise CorpusError(
            f"Fewer than two {population} sequences in one of the monitors: observe more before comparing."
        )
    rows = []
    for measure, (above, below) in {
        "coverage": ("exited", "tokens"), "agreement": ("agreed", "exited"), "seconds_per_token": ("seconds", "tokens"),
    }.items():  # fmt: skip
        pairs = [(table[above].to_numpy(float), table[below].to_numpy(float)) for table in tables]
        values = [n.sum() / d.sum() if d.sum() else float("nan") for n, d in pairs]
        difference = ratio_difference_interval(*pairs)
        names = ("difference", "difference_low", "difference_high")
        rows.append(
            {"measure": measure, "first": values[0], "second": values[1], **dict(zip(names, difference, strict=True))}
        )
    return pd.DataFrame(rows)
