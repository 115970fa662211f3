"""Sentences about decoding: acceptance and speed."""

import pandas as pd

from eelib.evaluation.sizes import larger_gain_more
from eelib.plotting.acceptance import PAPERS_RATIO
from eelib.plotting.style import as_written, with_interval
from eelib.reporting.accuracy import TOLD
from eelib.reporting.wording import (
    NOTHING,
    capitalised,
    interval,
    listed,
    nearest,
    numbers,
    of_all,
    pace,
    paragraph,
    placed,
    spoken,
)
from eelib.statistics import on_front

CLAIMED_SPEEDS = (1.5, 3)
"""What popular accounts say of thresholds on max_prob."""


def exits_and_speed(table: pd.DataFrame) -> str:
    """What skipped blocks promise at one ε, and what the clock says.

    Args:
        table: epsilon, generated_blocks, passes_per_token, coverage, speed_ratio with its interval.
    """
    table = as_written(
        table, "epsilon", "generated_blocks", "passes_per_token", "coverage", *with_interval("speed_ratio")
    )
    table = table[table.epsilon < 1].dropna(
        subset=["generated_blocks", "passes_per_token", "coverage", "speed_ratio"], ignore_index=True
    )
    if table.empty:
        return NOTHING
    row = table[table.epsilon == nearest(table.epsilon, TOLD[0])].iloc[0]
    promised, read = 1 / row.generated_blocks, 1 / row.passes_per_token
    verdict = ("less speed than", "the speed that", "more speed than")[placed(row, "speed_ratio", promised) + 1]
    return (
        f"**Early exit brings {verdict} skipped blocks promise.** At ε = {row.epsilon:g}, {row.coverage:.0%} of the "
        f"tokens exit: counted in blocks that makes {promised:.2f} times the full model's speed, in weights read "
        f"{read:.2f}, and by the clock {interval(row, 'speed_ratio')}."
    )


def acceptance_by_exit(table: pd.DataFrame) -> str:
    """Acceptance of fixed exits by depth and number of drafts.

    Args:
        table: `Tuning.grid`; rows with a depth are told: kind, depth, draft_length, acceptance_rate.
    """
    table = as_written(table, "kind", "depth", "draft_length", "acceptance_rate")
    fixed = table.dropna(subset=["depth", "draft_length", "acceptance_rate"], ignore_index=True)
    if fixed.empty:
        return NOTHING
    rises, phrases, n = [], [], fixed.draft_length.min()
    for kind, part in fixed.groupby("kind", sort=False):
        ends = part[part.draft_length == part.draft_length.min()].sort_values("depth").iloc[[0, -1]]
        longest = part[part.depth == ends.depth.iloc[1]].sort_values("draft_length").iloc[-1]
        rises.append(ends.acceptance_rate.is_monotonic_increasing)
        longer = longest.draft_length > ends.draft_length.iloc[1]
        more = f" ({longest.acceptance_rate:.2f} with {longest.draft_length:.0f})" if longer else ""
        rates = " to ".join(f"{row.acceptance_rate:.2f} at depth {row.depth:g}" for row in ends.itertuples())
        phrases.append(f"from {rates} for {spoken(kind)}{more}")
    verdict = "accepted more often" if all(rises) else "not always accepted more often"
    drafts = "one draft" if n == 1 else f"{n:.0f} drafts"
    return f"**Drafts from deeper exits are {verdict}.** With {drafts} a round, acceptance goes {listed(phrases)}."


def tuned_speed(table: pd.DataFrame) -> str:
    """DSSD's acceptance over LayerSkip's, their speeds, and the quickest of all.

    Args:
        table: one row a decoder: decoder, speed_ratio with its interval; and in the rows of LayerSkip's
            acceptance_ratio, DSSD's acceptance over theirs, with its interval.
    """
    table = as_written(table, "decoder", *with_interval("speed_ratio"), *with_interval("acceptance_ratio"))
    rows = table.dropna(subset="speed_ratio", ignore_index=True).set_index("decoder", drop=False)
    rivals = rows.dropna(subset="acceptance_ratio")
    ways = rows.drop(index=["plain", "transformers"], errors="ignore")
    if ways.empty:
        return NOTHING
    said, told = [], ["DSSD"] if "DSSD" in ways.index else []
    if len(rivals):
        rival = rivals.loc["LayerSkip, our heads"] if "LayerSkip, our heads" in rivals.index else rivals.iloc[0]
        told.append(rival.decoder)
        paper = ("not", "in line with", "more than")[placed(rival, "acceptance_ratio", PAPERS_RATIO) + 1]
        ratio = f"{interval(rival, 'acceptance_ratio')} times that of {spoken(rival.decoder)}"
        said = [f"**DSSD's acceptance is {ratio}, {paper} the paper's {PAPERS_RATIO}.**"]
    quickest = ways.loc[ways.speed_ratio.idxmax()]
    speeds = [f"{spoken(name)} is {pace(ways.loc[name])}" for name in told if name != quickest.decoder]
    speeds.append(f"the quickest, {spoken(quickest.decoder)}, is {pace(quickest)}")
    return paragraph([*said, f"Beside plain decoding, {listed(speeds)}."])


def acceptance_curve(table: pd.DataFrame) -> str:
    """DSSD over LayerSkip, at the chosen ε and at the strictest.

    Args:
        table: decoder, epsilon, drafts_per_token; against, acceptance_ratio and relative_speed with their intervals.
    """
    table = as_written(table, "decoder", "epsilon", "drafts_per_token", "against", *with_interval("acceptance_ratio"))
    shown = ["against", "epsilon", "acceptance_ratio", "relative_speed", "drafts_per_token"]
    pairs = table.dropna(subset=shown, ignore_index=True).set_index("decoder", drop=False)
    if pairs.empty:
        return NOTHING
    rival = "LayerSkip, our heads" if "LayerSkip, our heads" in set(pairs.against) else pairs.against.iloc[0]
    pairs = pairs[pairs.against == rival]
    chosen = pairs.loc["DSSD"] if "DSSD" in pairs.index else pairs.iloc[0]
    strictest = pairs.iloc[pairs.epsilon.argmax()]
    said = (
        f"**Against {spoken(rival)}, DSSD as tuned (ε = {chosen.epsilon:g}) has {interval(chosen, 'acceptance_ratio')} "
        f"times the acceptance at {interval(chosen, 'relative_speed')} times the speed**"
    )
    if strictest.epsilon > chosen.epsilon:
        said += (
            f"; at ε = {strictest.epsilon:g} it has {interval(strictest, 'acceptance_ratio')} at "
            f"{interval(strictest, 'relative_speed')}, with {strictest.drafts_per_token:.2f} drafts per token in place "
            f"of {chosen.drafts_per_token:.2f}"
        )
    reached = pairs[(pairs.acceptance_ratio >= PAPERS_RATIO) & (pairs.relative_speed >= 1)].epsilon.sort_values()
    verdict = f"reached at ε = {numbers(reached, 'g')}" if len(reached) else "not reached"
    return f"{said}. The paper's {PAPERS_RATIO} at no less speed is {verdict}."


def predicted_speed(table: pd.DataFrame) -> str:
    """Policies whose speed is predicted within 10%, and the worst prediction.

    Args:
        table: `check_predictions`.
    """
    table = as_written(table, "policy", "predicted", "measured", "error")
    table = table.dropna(subset=["predicted", "measured", "error"], ignore_index=True)
    if table.empty:
        return NOTHING
    within, worst = int((table.error.abs() <= 0.1).sum()), table.loc[table.error.abs().idxmax()]
    return (
        f"**Tokens per second are predicted within 10% for {of_all(within, len(table))} policies.** The median error "
        f"is {table.error.abs().median():.1%}, the greatest {worst.error:+.0%} ({worst.policy}: {worst.predicted:.1f} "
        f"predicted, {worst.measured:.1f} measured)."
    )


def speed_under_attack(table: pd.DataFrame) -> str:
    """Speed of lossless decoding and agreement of early exit under attack.

    Args:
        table: mode, file, prompts, equal, agreement, speed_ratio with its interval.
    """
    table = as_written(table, "mode", "file", "prompts", "equal", "agreement", *with_interval("speed_ratio"))
    lossless = table[table["mode"].str.startswith("lossless")].dropna(
        subset=["equal", "speed_ratio"], ignore_index=True
    )
    sentences, left = [], []
    if len(lossless):
        same = lossless.equal.mean()
        verdict = "Nothing tried here changes" if same == 1 else f"In {1 - same:.0%} of the texts, an attack changes"
        slowest = []
        for mode, part in lossless.groupby("mode", sort=False):
            name = mode.removeprefix("lossless, ").replace("no ", "without ") if mode != "lossless" else ""
            worst = interval(part.loc[part.speed_ratio.idxmin()], "speed_ratio")
            slowest.append(f"{name} {worst}" if slowest else f"{worst} of plain decoding's speed {name}".strip())
        sentences.append(f"**{verdict} what lossless decoding says**; at worst it has {', '.join(slowest)}.")
    early = table[table["mode"] == "early exit"].dropna(subset="agreement", ignore_index=True)
    files = early[early.prompts == "ordinary"].groupby("file", sort=False).agreement.first()
    prompts = early[early.file == "honest"].groupby("prompts", sort=False).agreement.last()
    for values, fair, attacked in (
        (files, "honest", "forged thresholds"),
        (prompts, "ordinary", "prompts found by search"),
    ):
        worst = values.drop(fair, errors="ignore")
        if fair in values and len(worst):
            left.append(f"{worst.min():.0%} with {attacked} ({fair}: {values[fair]:.0%})")
    if left:
        sentences.append(
            f"Of early exit's tokens, the share that the model itself would have chosen is {listed(left)}."
        )
    return paragraph(sentences)


def baselines(table: pd.DataFrame) -> str:
    """The quickest ways, with the output kept and with final exits.

    Args:
        table: decoder, lossless, speed_ratio with its interval, token_agreement.
    """
    table = as_written(table, "decoder", "lossless", *with_interval("speed_ratio"), "token_agreement")
    table = table[table.decoder != "plain"].dropna(subset="speed_ratio", ignore_index=True)
    kept = table[table.lossless.astype(bool)]
    final = table[~table.lossless.astype(bool)].dropna(subset="token_agreement", ignore_index=True)
    sentences = []
    if len(kept):
        faster = int(((kept.speed_ratio_low > 1) & (kept.speed_ratio_high > kept.speed_ratio_low)).sum())
        first, last = kept.loc[kept.speed_ratio.idxmax()], kept.loc[kept.speed_ratio.idxmin()]
        sentences.append(
            f"**Of the ways that keep the output, {of_all(faster, len(kept))} are certainly faster than plain "
            f"decoding.** The quickest, {spoken(first.decoder)}, is {pace(first)}; the last, {spoken(last.decoder)}, "
            f"is {pace(last)}."
        )
    if len(final):
        best = final.loc[final.speed_ratio.idxmax()]
        sentences.append(
            f"Where exits are final, {spoken(best.decoder)} is the quickest, {pace(best)}, with "
            f"{best.token_agreement:.0%} of its tokens the model's own."
        )
    return paragraph(sentences)


def speed_against_agreement(table: pd.DataFrame) -> str:
    """Methods on and off the Pareto front of speed and agreement.

    Args:
        table: decoder, method, speed_ratio, token_agreement.
    """
    table = as_written(table, "decoder", "method", "speed_ratio", "token_agreement")
    table = table.dropna(subset=["speed_ratio", "token_agreement"], ignore_index=True)
    if table.empty:
        return NOTHING
    front = table[on_front(table.token_agreement, 1 / table.speed_ratio)].sort_values("speed_ratio")
    ends = [
        f"{spoken(row.decoder)} (speed {row.speed_ratio:.2f}, agreement {row.token_agreement:.0%})"
        for row in front.iloc[[0, -1] if len(front) > 1 else [0]].itertuples()
    ]
    where = f"goes from {' to '.join(ends)}" if len(ends) > 1 else f"is {ends[0]} alone"
    off = [spoken(name) for name in table.method.unique() if name not in set(front.method)]
    if not off:
        return f"**Every method has a place on the front of speed and agreement**, which {where}."
    have, their = ("have", "their") if len(off) > 1 else ("has", "its")
    return (
        f"**{capitalised(listed(off))} {have} no place on the front of speed and agreement**: for each of {their} "
        f"settings another is no slower and agrees no less. The front {where}."
    )


def popular_claims(table: pd.DataFrame) -> str:
    """Speed and accuracy at thresholds on max_prob, beside what is claimed.

    Args:
        table: one row per threshold and task: threshold, speed_ratio with its interval, compute_saved, task,
            value_less_full with its interval.
    """
    table = as_written(table, "threshold", *with_interval("speed_ratio"), "task", *with_interval("value_less_full"))
    rows = (
        table.dropna(subset="speed_ratio", ignore_index=True)
        .drop_duplicates("threshold")
        .sort_values("threshold")
        .to_dict("records")
    )
    if not rows:
        return NOTHING
    least, most = CLAIMED_SPEEDS
    reach = [f"{row['threshold']:g}" for row in rows if placed(row, "speed_ratio", least) >= 0]
    verdict = (
        f": the claimed {least:g} is within reach at {listed(reach)}"
        if reach
        else f", not the claimed {least:g} to {most:g}"
    )
    speeds, tried = listed(interval(row, "speed_ratio") for row in rows), numbers((r["threshold"] for r in rows), "g")
    slower = [f"{row['threshold']:g}" for row in rows if row["speed_ratio"] < 1]
    said = f"**On max_prob, thresholds of {tried} give {speeds} times plain decoding's speed{verdict}**"
    said += f"; at {listed(slower)} that is slower." if slower else "."
    scored = table.dropna(subset=["threshold", "value_less_full"], ignore_index=True)
    if scored.empty:
        return said
    worst = scored.loc[scored.value_less_full.idxmin()]
    return (
        f"{said} Accuracy changes by {interval(worst, 'value_less_full', '+.2f')} at worst "
        f"({worst.task.removeprefix('offline_')} at {worst.threshold:g})."
    )


def agreement_and_speed(table: pd.DataFrame) -> str:
    """Whether the largest of several models gains more than the smallest.

    Args:
        table: `read_sizes`.
    """
    table = as_written(table, "model", "parameters", "measure", "at", *with_interval("value"))
    table = table.dropna(subset="value", ignore_index=True)
    models = table.drop_duplicates("model").sort_values("parameters", kind="stable").model.tolist()
    if len(models) < 2:
        return f"**Only {models[0]} was measured**: there is nothing to compare it with." if models else NOTHING
    verdicts = larger_gain_more(table, models[0], models[-1])
    phrases = []
    for measure, gain, place in (
        ("agreement", "agrees more", "depths"),
        ("blocks saved", "saves more blocks", "ε"),
        ("speed", "gains more speed", "comparisons"),
    ):
        of = verdicts[verdicts.measure.str.endswith(measure)] if len(verdicts) else verdicts
        judged, single = of[of.verdict != "one run"], of[of.verdict == "one run"]
        if len(judged):
            more, less = (int((judged.verdict == name).sum()) for name in ("more", "less"))
            phrases.append(f"{gain} at {of_all(more, len(judged))} {place} and less at {less or 'none'}")
        elif len(single):
            phrases.append(
                f"{gain} at {of_all(int((single.difference > 0).sum()), len(single))} {place} (one run each)"
            )
    if not phrases:
        return NOTHING
    return f"**Against {models[0]}, {models[-1]} {listed(phrases)}**; the rest is undecided."


def claims_by_size(table: pd.DataFrame) -> str:
    """Which popular claims hold on which of several models.

    A speed, saving or gain is within reach where the interval, or the count, reaches the least that is claimed.

    Args:
        table: `read_claims`.
    """
    table = as_written(table, "model", "measure", "claim", "claimed_low", *with_interval("value"))
    table = table.dropna(subset=["value", "claimed_low"], ignore_index=True)
    if table.empty:
        return NOTHING
    table["reached"] = [placed(row, "value", row["claimed_low"]) >= 0 for row in table.to_dict("records")]
    models, phrases = list(table.model.unique()), []
    for measure, name in (("speed", "speeds"), ("compute saved", "savings of compute"), ("accuracy", "accuracies")):
        of = table[table.measure == measure]
        if len(of):
            phrases.append(f"{of_all(int(of.reached.sum()), len(of))} {name}")
    said = f"**Of what popular accounts claim, {listed(phrases)} are within reach on {listed(models)}.**"
    fast = table[table.measure == "speed"]
    if fast.empty:
        return said
    best = fast.loc[fast.value.idxmax()]
    return f"{said} The quickest is {best.model} at {interval(best, 'value')} ({best.claim} claimed)."


def speed_in_batches(table: pd.DataFrame) -> str:
    """Gains in batches, exits lost to other rows, and why.

    Args:
        table: rows, kind, gather, tokens_per_second, speed_ratio with its interval, exits_lost; and, to say why, what
            `predict_batches` returns.
    """
    table = as_written(
        table, "rows", "kind", "gather", "tokens_per_second", *with_interval("speed_ratio"), "exits_lost"
    )
    timed = table.dropna(subset=["speed_ratio"]).assign(gather=table.gather.fillna(""))
    if timed.empty:
        return NOTHING
    largest = timed[timed.rows == timed.rows.max()]
    told = []
    for kind, part in largest[~largest.kind.isin(["plain", "transformers"])].groupby("kind", sort=False):
        best = part.loc[part.speed_ratio == part.speed_ratio.max()].iloc[0]
        told.append(f"{kind} ({best.gather}) is {pace(best)}")
    others = largest[largest.kind == "transformers"].speed_ratio
    if len(others):
        told.append(f"transformers is at {others.iloc[0]:.2f}")
    said = [f"**At {largest.rows.iloc[0]:g} rows, beside plain decoding, {listed(told)}.**"] if told else []
    lost = largest.dropna(subset=["exits_lost"])
    lost = lost[lost.exits_lost > 0]
    if len(lost):
        worst = lost.loc[lost.exits_lost == lost.exits_lost.max()].iloc[0]
        said.append(f'With "{worst.gather}", {worst.exits_lost:.0%} of its exits are lost.')
    if "share_calls" in timed:
        said += _prices_of_batches(timed.dropna(subset=["share_calls"]))
    return paragraph(said)


def _prices_of_batches(table: pd.DataFrame) -> list[str]:
    """What calls take, which rows share, and how well that is predicted."""
    plain = table[table.kind == "plain"].sort_values("rows")
    said = []
    if len(plain) > 1:
        few, many = plain.iloc[0], plain.iloc[-1]
        said.append(
            f"Calls of blocks, which rows share and exits save, take {few.share_calls:.0%} of plain decoding's time at "
            f"{few.rows:g} {'row' if few.rows == 1 else 'rows'} and {many.share_calls:.0%} at {many.rows:g}."
        )
    others = table[~table.fitted.astype(bool)]
    if len(others):
        within = int(((others.predicted / others.tokens_per_second - 1).abs() <= 0.1).sum())
        sizes = listed(f"{size:g}" for size in sorted(set(table.rows[table.fitted.astype(bool)])))
        said.append(f"Prices fitted to batches of {sizes} predict {of_all(within, len(others))} others within 10%.")
    return said
