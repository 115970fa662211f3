"""Judges of claims: one number with its interval decides.

Which number that is, is fixed beforehand; the other settings are told beside it.
"""

from collections.abc import Mapping

import pandas as pd

from eelib import reporting
from eelib.confidence.separation import judge_reference
from eelib.errors import InvalidInputError
from eelib.plotting.acceptance import PAPERS_RATIO
from eelib.plotting.style import check_table, with_interval
from eelib.reporting.model_tables import ModelTables
from eelib.reporting.wording import depths, interval, kind_of_text, listed, nearest, of_all, placed

HOLDS, FAILS, OPEN, UNMEASURED = "holds", "does not hold", "not decided", "not measured"

EPSILON = 0.9
"""The ε that is judged, or the one nearest to it."""
ACCURACY_MARGIN = 0.05
"""Accuracy counts as kept where the interval of its change stays above minus this."""
PROMISE_MARGIN = 0.02
"""A promise counts as kept where the interval of what is achieved reaches ε and starts at most this much below."""
SAME_HEADS = "LayerSkip, our heads"


def verdict(row: Mapping[str, float], name: str, bound: float) -> str:
    """Verdict on "at least this much", by an interval."""
    side = placed(row, name, bound)
    return HOLDS if side > 0 else FAILS if side < 0 else OPEN


def _all(verdicts: list[str]) -> str:
    """Verdict on several things that must all hold."""
    return FAILS if FAILS in verdicts else OPEN if OPEN in verdicts else HOLDS


def _any(verdicts: list[str]) -> str:
    """Verdict on several things of which one must hold."""
    return HOLDS if HOLDS in verdicts else OPEN if OPEN in verdicts else FAILS


def _kept(row: Mapping[str, float], name: str, margin: float) -> str:
    """Verdict on whether a change stays within the margin."""
    return HOLDS if row[f"{name}_low"] >= -margin else FAILS if row[f"{name}_high"] < 0 else OPEN


def cost_and_accuracy(tables: ModelTables) -> dict[str, str]:
    """Claim 1: early exit is faster, and accuracy is kept."""
    columns = ("task", "policy", "epsilon", *with_interval("accuracy_less_full"), *with_interval("speed_ratio"))
    name, table = tables.read("04_speed", "04_accuracy", columns=columns)
    early = table[table.policy != "full model"].dropna(subset=list(columns), ignore_index=True)
    check_table(early, "epsilon")
    rows = early[early.epsilon == nearest(early.epsilon, EPSILON)].to_dict("records")
    changes = [f"{row['task']} {interval(row, 'accuracy_less_full', '+.2f')}" for row in rows]
    verdicts = [verdict(rows[0], "speed_ratio", 1), *(_kept(r, "accuracy_less_full", ACCURACY_MARGIN) for r in rows)]
    return {
        "verdict": _all(verdicts), "number": f"speed {interval(rows[0], 'speed_ratio')}; accuracy {', '.join(changes)}",
        "judged_by": f"speed over the full model's, and change of accuracy, at ε = {rows[0]['epsilon']:g}",
        "table": f"{name}.csv", "figure": name, "found": reporting.accuracy_against_cost(table, "speed_ratio"),
    }  # fmt: skip


def larger_gain_more(tables: ModelTables) -> dict[str, str]:
    """Claim 1, second part: of two models, the larger gains more speed."""
    columns = ("model", "parameters", "measure", "at", *with_interval("value"))
    of = tables if (tables.figures / "11_sizes.csv").is_file() else ModelTables(tables.figures.parent / "sizes")
    name, table = of.read("11_sizes", columns=columns)
    if tables.model not in {*table.model, "sizes"}:
        raise InvalidInputError(f"`{name}.csv` compares {listed(table.model.unique())}, not {tables.model}.")
    speed = table[table.measure == "early exit, speed"].astype({"at": float})
    speed = speed.dropna(subset=list(with_interval("value")), ignore_index=True)
    check_table(speed, "at")
    speed = speed[speed["at"] == nearest(speed["at"], EPSILON)].sort_values("parameters")
    smaller, larger = speed.iloc[0], speed.iloc[-1]
    if smaller.model == larger.model:
        raise InvalidInputError(f"`{name}.csv` has the speed of one model only, {larger.model}.")
    decided = larger.value_low > smaller.value_high, larger.value_high < smaller.value_low
    numbers = [f"{interval(row, 'value')} ({row['model']})" for row in (smaller, larger)]
    return {
        "verdict": HOLDS if decided[0] else FAILS if decided[1] else OPEN, "number": " and ".join(numbers),
        "judged_by": f"speed of early exit over the full model's, at ε = {larger['at']:g}", "table": f"{name}.csv",
        "figure": name if of is tables else "", "found": reporting.agreement_and_speed(table),
    }  # fmt: skip


def entropy_is_best(tables: ModelTables) -> dict[str, str]:
    """Claim 2: entropy separates right from wrong better than every other metric."""
    columns = ("text", "depth", "metric", "auroc", *with_interval("auroc_less_entropy"), "p_corrected")
    name, table = tables.read("02_auroc", columns=columns)
    cases, compared = judge_reference(table), int(table.p_corrected.notna().sum())
    best, beaten = int((cases.best == "yes").sum()), int((cases.best == "no").sum())
    told = cases.loc[cases.p_corrected.idxmin()]
    difference = interval(told, "auroc_less_entropy", "+.3f")
    where = f"{depths([told.depth])} on {kind_of_text(told.text)}"
    return {
        "verdict": HOLDS if best == len(cases) else FAILS if beaten > len(cases) / 2 else OPEN,
        "number": f"best in {of_all(best, len(cases))} cases, beaten in {beaten or 'none'}; "
        f"{told.rival} less entropy {difference} ({where})",
        "judged_by": "cases (depth and kind of text) where entropy is best, and where another metric is better; "
        "AUROC of the best rival less entropy's where the two differ most certainly",
        "test": f"paired bootstrap over texts, two-sided; p {_p(told.p_corrected)} there, after Bonferroni's "
        f"correction for {compared} comparisons, and below 0.05 wherever a metric counts as better",
        "table": f"{name}.csv", "figure": name, "found": reporting.auroc_by_depth(table),
    }  # fmt: skip


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def threshold_keeps_promise(tables: ModelTables) -> dict[str, str]:
    """Claim 3: the paper's rule keeps its promise of ε."""
    columns = ("target", "metric", "method", "epsilon", *with_interval("achieved"), "coverage")
    name, table = tables.read("03_calibration", columns=columns)
    rule = table[(table.target == "exit_agreement") & (table.metric == "entropy")]
    rule = rule.dropna(subset=list(with_interval("achieved")), ignore_index=True)
    cascade, rule = (rule[rule.method == method] for method in ("cascade", "empirical"))
    check_table(rule, "epsilon")
    row = rule[rule.epsilon == nearest(rule.epsilon, EPSILON)].iloc[0]
    reached = row.achieved_high >= row.epsilon
    kept = reached and row.achieved_low >= row.epsilon - PROMISE_MARGIN
    short = int((rule.achieved_high < rule.epsilon).sum())
    found = f"By the paper's rule, {of_all(short, len(rule))} settings by entropy fall short."
    for other in cascade[cascade.epsilon == row.epsilon].to_dict("records"):
        found += " `cascade`, which calibrates each head on what those before it declined, achieves "
        found += f"{interval(other, 'achieved', '.3f')} at the same ε."
    return {
        "verdict": HOLDS if kept else OPEN if reached else FAILS,
        "number": f"{interval(row, 'achieved', '.3f')} of {row.epsilon:g} promised",
        "judged_by": f"agreement with the full model of the tokens that exit, by entropy and the paper's rule, at ε = "
        f"{row.epsilon:g}; coverage {row.coverage:.2f}",
        "table": f"{name}.csv", "figure": name, "found": f"{found} {reporting.promised_against_achieved(table)}",
    }  # fmt: skip


def acceptance_over_layerskip(tables: ModelTables) -> dict[str, str]:
    """Claim 4: DSSD's acceptance over that of LayerSkip with the same heads."""
    ratio = with_interval("acceptance_ratio")
    try:
        name, table = tables.read("05_curve_full", "05_curve", columns=("decoder", "against", *ratio))
        rows = table[(table.decoder == "DSSD") & (table.against == SAME_HEADS)].dropna(subset=list(ratio))
        check_table(rows, "decoder")
        told = reporting.acceptance_curve(table) + _other_run(tables)
    except InvalidInputError:
        name, table = tables.read("05_speed_full", "05_speed", columns=("decoder", *ratio))
        rows, told = table[table.decoder == SAME_HEADS].dropna(subset=list(ratio)), reporting.tuned_speed(table)
        if rows.empty:
            raise InvalidInputError(f"`{name}.csv` does not compare DSSD with {SAME_HEADS}.") from None
    row = rows.iloc[0]
    return {
        "verdict": verdict(row, ratio[0], PAPERS_RATIO), "number": f"{interval(row, ratio[0])} times",
        "table": f"{name}.csv", "figure": name, "found": told,
    }  # fmt: skip


def _other_run(tables: ModelTables) -> str:
    """What the run without a curve found, if it is there."""
    try:
        name, table = tables.read("05_speed", columns=("decoder", *with_interval("acceptance_ratio")))
    except InvalidInputError:
        return ""
    rows = table[table.decoder == SAME_HEADS].dropna(subset="acceptance_ratio")
    return "".join(f" The run of `{name}.csv` found {interval(row, 'acceptance_ratio')}." for _, row in rows.iterrows())


def drafting_is_faster(tables: ModelTables) -> dict[str, str]:
    """Claim 4 in seconds: DSSD decodes faster than plain decoding."""
    name, table = tables.read("05_speed_full", "05_speed", columns=("decoder", *with_interval("speed_ratio")))
    rows = table[table.decoder == "DSSD"].dropna(subset=list(with_interval("speed_ratio")))
    if rows.empty:
        raise InvalidInputError(f"`{name}.csv` has no row of DSSD.")
    row, found = rows.iloc[0], []
    others = table[table.decoder.isin(["fused", "fused + lookup", SAME_HEADS])].to_dict("records")
    if others:
        speeds = [f"{other['decoder']} {interval(other, 'speed_ratio')}" for other in others]
        found.append(f"Other ways as tuned: {listed(speeds)}.")
    if "equal" in table and pd.notna(row.equal):
        found.append(
            f"{row.equal:.0%} of DSSD's texts are plain decoding's token for token; where one parts from it, the two "
            "tokens nearly tie."
        )
    return {
        "verdict": verdict(row, "speed_ratio", 1), "number": f"{interval(row, 'speed_ratio')} times",
        "table": f"{name}.csv", "figure": name, "found": " ".join(found),
    }  # fmt: skip


POPULAR = ("threshold", *with_interval("speed_ratio"), "task", "value", *with_interval("value_less_full"))


def _popular(tables: ModelTables, *more: str) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Rows by threshold and task, rows by threshold, their source."""
    name, table = tables.read("10_claims", columns=(*POPULAR, *more))
    table = table.dropna(subset=[*POPULAR, *more], ignore_index=True)
    check_table(table, "threshold")
    told = {"table": f"{name}.csv", "figure": name}
    return table, table.drop_duplicates("threshold"), told


def three_times_as_fast(tables: ModelTables) -> dict[str, str]:
    """Popular: up to 3 times as fast by thresholds on max_prob."""
    table, speeds, told = _popular(tables)
    quickest = speeds.loc[speeds.speed_ratio.idxmax()]
    return told | {
        "verdict": _any([verdict(row, "speed_ratio", 3) for row in speeds.to_dict("records")]),
        "number": f"{interval(quickest, 'speed_ratio')} times",
        "judged_by": f"speed over plain decoding's, at the quickest threshold ({quickest.threshold:g})",
        "found": reporting.popular_claims(table),
    }  # fmt: skip


def fast_at_kept_accuracy(tables: ModelTables) -> dict[str, str]:
    """Popular: 1.5 times as fast at 99% of the accuracy."""
    table, speeds, told = _popular(tables)
    verdicts, quickest = [], speeds.loc[speeds.speed_ratio.idxmax()]
    for _, rows in table.groupby("threshold"):
        parts = [verdict(rows.iloc[0], "speed_ratio", 1.5)]
        for row in rows.assign(full=rows.value - rows.value_less_full).to_dict("records"):
            parts.append(_kept(row, "value_less_full", 0.01 * row["full"]))
        verdicts.append(_all(parts))
    changes = [
        f"{row['task'].removeprefix('offline_')} {interval(row, 'value_less_full', '+.2f')}"
        for row in table[table.threshold == quickest.threshold].to_dict("records")
    ]
    return told | {
        "verdict": _any(verdicts),
        "number": f"speed {interval(quickest, 'speed_ratio')}; accuracy {', '.join(changes)}",
        "judged_by": f"speed over plain decoding's, and change of accuracy, at the quickest threshold "
        f"({quickest.threshold:g})",
    }  # fmt: skip


def less_compute(tables: ModelTables) -> dict[str, str]:
    """Popular: 30 to 60% less compute."""
    _, rows, told = _popular(tables, "compute_saved")
    most = rows.loc[rows.compute_saved.idxmax()]
    return told | {
        "verdict": HOLDS if most.compute_saved >= 0.3 else FAILS, "number": f"{most.compute_saved:.0%}",
        "judged_by": f"share of the weights' reading that is saved, heads charged, at the threshold that saves most "
        f"({most.threshold:g})",
    }  # fmt: skip


def factual_layers(tables: ModelTables) -> dict[str, str]:
    """Popular: listening to earlier layers (SLED) makes answers more factual."""
    change = with_interval("value_less_full")
    name, table = tables.result("claims", "table", "setting", "task", "value", *change)
    rows = table[(table.table == "sled") & (table.setting == "SLED")].dropna(subset=list(change))
    if rows.empty:
        raise InvalidInputError(f"`{name}` has no row of SLED.")
    row = rows.iloc[0]
    return {"verdict": verdict(row, change[0], 0), "number": interval(row, change[0], "+.2f"), "table": name}
