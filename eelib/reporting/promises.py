"""Sentences about confidence: what metrics separate, and what thresholds promise."""

import numpy as np
import pandas as pd

from eelib.confidence.separation import judge_reference
from eelib.plotting.style import as_written, with_interval
from eelib.reporting.wording import (
    NOTHING,
    depths,
    holders,
    interval,
    kind_of_text,
    listed,
    numbers,
    of_all,
    placed,
)

OVERLAP = 0.1
"""Share of their area from which two densities are said to overlap."""
WRONG_PASS, COVERAGE = 0.1, 0.5
"""Where ROC and risk-coverage curves are read off."""


def score_densities(table: pd.DataFrame) -> str:
    """Overlap of the densities of right and of wrong tokens.

    Args:
        table: depth, metric, agrees, score, density; and threshold (NaN where none keeps the promise).
    """
    table = as_written(table, "depth", "metric", "agrees", "score", "density")
    shared = {}
    for (metric, depth), part in table.groupby(["metric", "depth"], sort=False):
        pair = part.pivot_table(index="score", columns="agrees", values="density").dropna()
        if pair.shape[1] == 2 and pair.to_numpy().any():  # a head that is always right, or wrong, has one density
            shared[metric, depth] = pair.min(axis=1).sum() / pair.sum().mean()
    if not shared:
        return NOTHING
    by_metric = pd.Series(shared).unstack(level=0)
    metric = by_metric.mean().idxmin()
    least = by_metric[metric].dropna()
    overlapping = least[least > OVERLAP].index
    where = "at every depth" if len(overlapping) == len(least) else f"at {depths(overlapping)}"
    verdict = f"overlap {where}" if len(overlapping) else "hardly overlap"
    said = (
        f"**Scores of right and of wrong tokens {verdict}.** By `{metric}`, where they do least, the two densities "
        f"have {numbers(least, '.0%')} of their area in common at {depths(least.index)}."
    )
    thresholds = table.drop_duplicates(["metric", "depth"]).threshold if "threshold" in table else pd.Series([0.0])
    missing = int(thresholds.isna().sum())
    return f"{said} In {of_all(missing, len(thresholds))} panels no threshold keeps its promise." if missing else said


def roc_curves(table: pd.DataFrame) -> str:
    """Right tokens that pass where a tenth of the wrong ones do.

    Args:
        table: depth, metric, false_positive_rate, true_positive_rate.
    """
    table = as_written(table, "depth", "metric", "false_positive_rate", "true_positive_rate")
    passed = _read_off(table, "false_positive_rate", "true_positive_rate", WRONG_PASS)
    if passed.empty:
        return NOTHING
    said = (
        f"**Where a threshold lets {WRONG_PASS:.0%} of the wrong tokens pass, the best metric "
        f"({holders(passed.idxmax(axis=1))}) lets {numbers(passed.max(axis=1), '.0%')} of the right ones pass at "
        f"{depths(passed.index)}**"
    )
    if passed.shape[1] == 1:
        return f"{said}."
    return f"{said}; the worst ({holders(passed.idxmin(axis=1))}) {numbers(passed.min(axis=1), '.0%')}."


def risk_coverage_curves(table: pd.DataFrame) -> str:
    """Share of exits that are wrong where half of all tokens exit.

    Args:
        table: depth, metric, coverage, risk.
    """
    table = as_written(table, "depth", "metric", "coverage", "risk")
    risk = _read_off(table, "coverage", "risk", COVERAGE)
    silent = sorted({*table.depth} - {*risk.index})
    if risk.empty:
        return f"**At no depth does a head speak for {COVERAGE:.0%} of the tokens.**"
    said = (
        f"**Where {COVERAGE:.0%} of all tokens exit, {numbers(risk.min(axis=1), '.0%')} of the exits are wrong at "
        f"{depths(risk.index)}** by the metric that errs least ({holders(risk.idxmin(axis=1))})"
    )
    if risk.shape[1] > 1:
        said += f"; by the one that errs most ({holders(risk.idxmax(axis=1))}), {numbers(risk.max(axis=1), '.0%')}"
    return f"{said}." + (f" At {depths(silent)} heads speak for fewer tokens." if silent else "")


def _read_off(table: pd.DataFrame, x: str, y: str, at: float) -> pd.DataFrame:
    """Values of the curves at one x, by depth and metric."""
    rows = {}
    for (depth, metric), part in table.dropna(subset=[x, y], ignore_index=True).groupby(
        ["depth", "metric"], sort=False
    ):
        if part[x].min() <= at <= part[x].max():
            part = part.sort_values(x)
            rows[depth, metric] = np.interp(at, part[x], part[y])
    return pd.Series(rows, dtype=float).unstack().dropna() if rows else pd.DataFrame()


def auroc_by_depth(table: pd.DataFrame) -> str:
    """Cases in which the reference metric separates best, and others' lead.

    Args:
        table: of `compare_separation`.
    """
    table = as_written(table, "text", "depth", "metric", *with_interval("auroc"), "p_corrected")
    leads = [name for name in table if name.startswith("auroc_less_") and not name.endswith(("_low", "_high"))]
    table = table.dropna(subset=["auroc", *leads], ignore_index=True)
    if not leads or not table.p_corrected.notna().any():
        return NOTHING
    lead, reference = leads[0], leads[0].removeprefix("auroc_less_")
    verdicts = judge_reference(table, reference)
    counts = {best: int((verdicts.best == best).sum()) for best in ("yes", "no", "undecided")}
    kinds = f"{verdicts.depth.nunique()} depths, {verdicts.text.nunique()} kinds of text"
    said = (
        f"**`{reference}` separates right from wrong best in {of_all(counts['yes'], len(verdicts))} cases** ({kinds})."
    )
    beaten = verdicts[verdicts.best == "no"].sort_values(lead)
    if len(beaten):
        ends = beaten.iloc[[0, -1] if len(beaten) > 1 else [0]].to_dict("records")
        better = beaten.better.str.split(", ").explode().value_counts()
        named = listed(f"`{name}` in {n}" for name, n in better.items())
        gains = " to ".join(interval(row, lead, "+.3f") for row in ends)
        said += f" In {counts['no']} another is better ({named}), the best by {gains} of AUROC."
    if counts["undecided"]:
        said += f" Undecided: {counts['undecided']}."
    if reference != "entropy":
        return said
    half = len(verdicts) / 2
    holds = "holds" if counts["yes"] == len(verdicts) else "fails" if counts["no"] > half else "is not confirmed"
    return f"{said} The paper's claim that entropy is the most reliable metric {holds} here."


def promised_against_achieved(table: pd.DataFrame) -> str:
    """Settings in which each method falls short of what it promises.

    Args:
        table: of `achieved_table`.
    """
    table = as_written(table, "target", "metric", "method", "epsilon", *with_interval("achieved"), "coverage")
    exiting = table.dropna(subset="achieved", ignore_index=True)
    exiting = exiting.assign(short=[placed(row, "achieved", row["epsilon"]) < 0 for row in exiting.to_dict("records")])
    if exiting.empty:
        return "**No method lets any token exit.**"
    sentences = []
    for target, part in exiting.groupby("target", sort=False):
        of_target, name = table[table.target == target], target.replace("_", " ")
        counts = [
            (f"`{method}`", of_all(int(of.short.sum()), len(of)), int((of_target.method == method).sum()) - len(of))
            for method, of in part.groupby("method", sort=False)
        ]
        others = [f"{method} in {n}" + f" ({k} more let nothing exit)" * (k > 0) for method, n, k in counts[1:]]
        if sentences:
            phrases = [f"{counts[0][0]} in {counts[0][1]}", *others]
            sentences.append(f"For {name}{': ' + listed(phrases) if part.short.any() else ' none falls short'}.")
            continue
        worst = part[part.method == part.method.iloc[0]].assign(gap=lambda t: t.epsilon - t.achieved)
        worst = worst.loc[worst.gap.idxmax()]
        lowest = (
            f" (at worst {interval(worst, 'achieved')} for {worst.epsilon:g}, by `{worst.metric}`)"
            if worst.short
            else ""
        )
        paper = ", the paper's rule," if worst.method == "empirical" else ""
        said = f"**`{worst.method}`{paper} falls short of the {name} it promises in {counts[0][1]} settings**{lowest}"
        sentences.append(f"{listed([said, *others])}.")
    return " ".join(sentences)


def violations(table: pd.DataFrame) -> str:
    """Rate of missed ε of each method, at its worse target.

    Args:
        table: of `violation_rates`, and for each row its text.
    """
    table = as_written(table, "text", "method", "target", "epsilon", "delta", "trials", *with_interval("rate"))
    table = table.dropna(subset="rate", ignore_index=True)
    if table.empty:
        return NOTHING
    delta, epsilon, phrases = table.delta.iloc[0], table.epsilon.iloc[0], []
    for text, part in table.groupby("text", sort=False):
        worst = part.loc[part.groupby("method", sort=False).rate.idxmax()].to_dict("records")
        worst = sorted(worst, key=lambda row: row["method"] != "risk")  # the one that promises δ first
        what = "synthetic data sets" if text == "synthetic" else f"splits of the {text}"
        rates, of = [interval(row, "rate", ".1%") for row in worst], f"{worst[0]['trials']:,.0f} {what}"
        if phrases:
            named = [f"`{row['method']}` in {rate}" for row, rate in zip(worst, rates, strict=True)]
            phrases.append(f"of {of}, {listed(named)}")
            continue
        kept = ("keeps its promise", "may or may not keep its promise", "breaks its promise")
        verdict = kept[placed(worst[0], "rate", delta) + 1] if worst[0]["method"] == "risk" else "promises no rate"
        others = [f"`{row['method']}` in {rate}" for row, rate in list(zip(worst, rates, strict=True))[1:]]
        misses = f"it misses ε = {epsilon:g} in {rates[0]} of {of} ({delta:.0%} allowed)"
        phrases.append(f"**`{worst[0]['method']}` {verdict}**: {', '.join([misses, *others])}")
    return f"{'; '.join(phrases)}. Each at the worse of its kinds of agreement."


def shifted_agreement(table: pd.DataFrame) -> str:
    """Achieved agreement of one calibration, the first, on every kind of text.

    Args:
        table: of `shift_table`.
    """
    table = as_written(table, "method", "calibrated_on", "used_on", *with_interval("achieved"), "missed_by")
    own = table.calibrated_on.iloc[0]
    told = table[table.calibrated_on == own].dropna(subset=["achieved", "missed_by"], ignore_index=True)
    others, phrases = told[told.used_on != own], []
    if others.empty:
        return f"**Calibrated on {kind_of_text(own)}, nothing exits on other text.**"
    promised = (told.achieved + told.missed_by)[told.missed_by > 0]
    fails = [len(promised) > 0 and placed(row, "achieved", promised.iloc[0]) < 0 for row in others.to_dict("records")]
    verdict = "does not hold on other text" if all(fails) else "holds on other text" if not any(fails) else (
        "does not always hold on other text"
    )  # fmt: skip
    for method, part in told.groupby("method", sort=False):
        named = not phrases or list(part.used_on) != list(told.used_on.unique())
        found = []
        for row in part.to_dict("records"):
            where = "that kind" if row["used_on"] == own else kind_of_text(row["used_on"])
            found.append(interval(row, "achieved") + f" on {where}" * named)
        phrases.append(f"`{method}` {'achieves ' * (not phrases)}{listed(found)}")
    aim = f"of a promised {promised.iloc[0]:g}, " if len(promised) else ""
    return f"**A calibration on {kind_of_text(own)} {verdict}**: {aim}{'; '.join(phrases)}."


def alarms_over_time(table: pd.DataFrame) -> str:
    """Rate of the monitor's false alarms, and delay of true ones.

    Args:
        table: text (the first without a shift), sequences, share_of_runs; and false_alarm, the share allowed.
    """
    table = as_written(table, "text", "sequences", "share_of_runs")
    table = table.dropna(subset="share_of_runs", ignore_index=True)
    if table.empty:
        return NOTHING
    rates = table.filter(["false_alarm"]).stack().dropna()
    allowed = f" ({rates.iloc[0]:.0%} allowed)" if len(rates) else ""
    (_, unshifted), *others = table.groupby("text", sort=False)
    last = unshifted.sort_values("sequences").iloc[-1]
    said = (
        f"**Without a shift the monitor raises an alarm in {last.share_of_runs:.1%} of the runs** within "
        f"{last.sequences:,.0f} sequences{allowed}"
    )
    noticed, late = [], []
    for text, part in others:
        half = part[part.share_of_runs >= 0.5].sequences.min()
        (late if pd.isna(half) else noticed).append((kind_of_text(text), half))
    if noticed:
        said += f"; half of the runs have one after {listed(f'{half:.0f} on {text}' for text, half in noticed)}"
    if late:
        said += f"; fewer than half have one on {listed(text for text, _ in late)}"
    return f"{said}."
