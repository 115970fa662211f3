"""Decoders side by side on the same prompts: speed, acceptance, equality.

Interleaved, after a warm-up.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from eelib.backbone.segments import Backbone
from eelib.decoding.lossless import first_mismatch
from eelib.decoding.output import DecodingOutput
from eelib.errors import InvalidInputError
from eelib.statistics import median_interval, ratio_interval, ratio_of_ratios_interval
from eelib.timing import interleaved

Decoder = Callable[[Tensor], DecodingOutput | Tensor]
"""From a prompt [1, position] to the result of `eelib.generate` or `model.generate`."""


def compare(
    decoders: Mapping[str, Decoder], prompts: Sequence[Tensor], *, reference: str, repeats: int = 1
) -> pd.DataFrame:
    """Decode every prompt with every decoder, interleaved; the first warms up.

    Returns:
        One row per prompt, decoder and repeat: prompt, decoder, repeat, seconds, emitted, tokens_per_second,
        speed_ratio (to `reference` at the same prompt and repeat), equal (tokens equal the reference's), drafted,
        accepted, rounds (NaN for decoders without counts), output (the return value).

    Raises:
        InvalidInputError: no prompts, or the reference is not among the decoders.
    """
    if not prompts or reference not in decoders:
        raise InvalidInputError(
            f"{len(prompts)} prompts, decoders {list(decoders)}: expected at least one prompt, and {reference!r} among "
            "the decoders."
        )
    tables = []
    for number, prompt in enumerate(prompts):
        calls = {name: (lambda decode=decode, prompt=prompt: decode(prompt)) for name, decode in decoders.items()}
        timed = interleaved(
            calls, repeats=repeats, warm_up=int(number == 0), description=f"prompt {number + 1} of {len(prompts)}"
        )
        timed = timed.rename(columns={"candidate": "decoder", "result": "output"}).assign(prompt=number)
        sequences = [getattr(output, "sequences", output) for output in timed.output]
        own = sequences[timed.decoder.tolist().index(reference)]
        timed["equal"] = [torch.equal(sequence, own) for sequence in sequences]
        timed["emitted"] = [sequence.shape[1] - prompt.shape[1] for sequence in sequences]
        tables.append(timed)
    runs = pd.concat(tables, ignore_index=True)
    for name in ("drafted", "accepted", "rounds"):
        runs[name] = [getattr(getattr(output, "stats", None), name, np.nan) for output in runs.output]
    runs["tokens_per_second"] = runs.emitted / runs.seconds
    base = runs[runs.decoder == reference][["prompt", "repeat", "tokens_per_second"]]
    base = runs[["prompt", "repeat"]].merge(base, how="left").tokens_per_second
    return runs.assign(speed_ratio=runs.tokens_per_second / base)


def token_agreement(model: PreTrainedModel, output: DecodingOutput | Tensor, prompt_length: int) -> float:
    """Share of new tokens that the full model would choose.

    NaN without new tokens.
    """
    tokens = getattr(output, "sequences", output)
    positions = Backbone.of(model).position_arguments(0, tokens.shape[1])
    with torch.no_grad():
        choices = model(input_ids=tokens, **positions).logits[0, prompt_length - 1 : -1].argmax(-1)
    return (choices == tokens[0, prompt_length:]).float().mean().item()


def token_agreements(model: PreTrainedModel, runs: pd.DataFrame, prompts: Sequence[Tensor]) -> pd.Series:
    """`token_agreement` by decoder, mean over prompts, from `compare`."""
    first = runs[runs.repeat == 0]
    each = [token_agreement(model, run.output, prompts[run.prompt].shape[1]) for run in first.itertuples()]
    return first.assign(token_agreement=each).groupby("decoder", sort=False).token_agreement.mean()


def block_shares(runs: pd.DataFrame, prompts: Sequence[Tensor]) -> pd.Series:
    """Block positions over those of plain decoding, by decoder, from `compare`.

    Mean over prompts and blocks; NaN for decoders without counts.
    """
    first = runs[runs.repeat == 0]
    each = [
        np.mean(run.output.stats.block_positions) / (prompts[run.prompt].shape[1] + run.emitted - 1)
        if hasattr(run.output, "stats")
        else np.nan
        for run in first.itertuples()
    ]
    return first.assign(blocks=each).groupby("decoder", sort=False).blocks.mean()


def mismatches(
    model: PreTrainedModel, runs: pd.DataFrame, prompts: Sequence[Tensor], *, reference: str = "plain"
) -> pd.DataFrame:
    """First mismatches with the reference's text, one row each, from `compare`.

    Columns: decoder, prompt, first_mismatch, gap, rounding and near_tie, as in `eelib.verify_lossless`. Lossless
    decoding has near-ties only.
    """
    first = runs[runs.repeat == 0]
    texts = first[first.decoder == reference].set_index("prompt").output
    rows = []
    for run in first[~first.equal].itertuples():
        own, theirs = (getattr(output, "sequences", output)[0] for output in (run.output, texts[run.prompt]))
        prompt_length = prompts[run.prompt].shape[1]
        longest = max(len(own), len(theirs)) - prompt_length  # said, so that transformers need not guess and warn
        found = first_mismatch(model, prompt_length, own, theirs, max_new_tokens=longest)
        rows.append({"decoder": run.decoder, "prompt": run.prompt, **found})
    columns = ["decoder", "prompt", "first_mismatch", "gap", "rounding", "near_tie"]
    return pd.DataFrame(rows, columns=columns).astype({"near_tie": bool})


def summarise(runs: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Summary of `compare`, one row per decoder.

    Share of prompts with equal output, tokens_per_round, drafts_per_token, acceptance_rate, accepted_per_round, and
    medians over prompts of tokens_per_second and speed_ratio; 95% intervals from a bootstrap over prompts; and
    speed_ratio_deviation, the standard deviation of the median ratio from repeat to repeat. Acceptance is NaN where
    nothing was drafted.
    """
    rows = []
    for name, table in runs.groupby("decoder", sort=False):
        counts = table[table.repeat == 0].fillna({"drafted": 0, "accepted": 0, "rounds": 0})
        total = counts[["emitted", "drafted", "accepted", "rounds"]].sum()
        row = {
            "decoder": name,
            "equal": counts.equal.mean(),
            "tokens_per_round": (total.emitted - len(counts)) / total.rounds if total.rounds else np.nan,
            "drafts_per_token": total.drafted / total.emitted,
        }
        for key, over, under in (
            ("acceptance_rate", "accepted", "drafted"),
            ("accepted_per_round", "accepted", "rounds"),
        ):
            row[key], row[f"{key}_low"], row[f"{key}_high"] = ratio_interval(counts[over], counts[under], seed=seed)
        by_prompt = table.groupby("prompt")[["tokens_per_second", "speed_ratio"]].median()
        row["tokens_per_second"] = by_prompt.tokens_per_second.median()
        ratio = median_interval(by_prompt.speed_ratio, seed=seed)
        row["speed_ratio"], row["speed_ratio_low"], row["speed_ratio_high"] = ratio
        row["speed_ratio_deviation"] = table.groupby("repeat").speed_ratio.median().std()
        rows.append(row)
    return pd.DataFrame(rows)


def working(decoders: Mapping[str, Decoder], prompt: Tensor) -> tuple[dict[str, Decoder], pd.DataFrame]:
    """Decoders that work on a prompt, and the errors of the others.

    Columns of the table: decoder, error. A method that fails on a model thus gets a row, and does not end the
    comparison.
    """
    fine, failed = {}, []
    for name, decode in decoders.items():
        try:
            decode(prompt)
            fine[name] = decode
        except Exception as error:  # whatever a method's own code raises is its result here
            failed.append({"decoder": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]})
    return fine, pd.DataFrame(failed, columns=["decoder", "error"])


def acceptance_ratio(runs: pd.DataFrame, ours: str, theirs: str, *, seed: int = 0) -> dict[str, float]:
    """Acceptance rate of one decoder over another's, with its 95% interval.

    On the same prompts, by a bootstrap over them.
    """
    counts = runs[runs.repeat == 0].pivot(index="prompt", columns="decoder", values=["accepted", "drafted"])
    pairs = [(counts["accepted", name], counts["drafted", name]) for name in (ours, theirs)]
    value, low, high = ratio_of_ratios_interval(*pairs, seed=seed)
    return {"acceptance_ratio": value, "acceptance_ratio_low": low, "acceptance_ratio_high": high}


def relative_speed(runs: pd.DataFrame, ours: str, theirs: str, *, seed: int = 0) -> dict[str, float]:
    """Tokens per second of one decoder over another's, with its 95% interval.

    On the same prompts: median over prompts of medians over repeats.
    """
    speeds = runs.groupby(["prompt", "decoder"]).tokens_per_second.median().unstack()
    value, low, high = median_interval(speeds[ours] / speeds[theirs], seed=seed)
    return {"relative_speed": value, "relative_speed_low": low, "relative_speed_high": high}


def acceptance_ratios(runs: pd.DataFrame, ours: Sequence[str], rivals: Sequence[str], *, seed: int = 0) -> pd.DataFrame:
    """`acceptance_ratio` and `relative_speed` of each pair, one row each.

    Columns name the pair as decoder and against.
    """
    return pd.DataFrame([
        {
            "decoder": name, "against": rival, **acceptance_ratio(runs, name, rival, seed=seed),
            **relative_speed(runs, name, rival, seed=seed),
        }
        for name in ours
        for rival in rivals
    ])  # fmt: skip


def speed_in_words(runs: pd.DataFrame, names: Sequence[str], reference: str = "plain") -> str:
    """What drafts gained on one prompt, as a sentence.

    Args:
        names: decoders; the fastest is told of, of those that wrote the same text no slower if there are such.
        reference: the one that they are compared with.
    """
    ratios = runs[runs.decoder.isin(names)].groupby("decoder").agg({"speed_ratio": "median", "equal": "all"})
    ratios["gain"] = ratios.equal & (ratios.speed_ratio >= 1)
    row = ratios.sort_values(["gain", "speed_ratio"]).iloc[-1]
    first = runs[runs.decoder == row.name].iloc[0]
    text = f"{row.name} wrote {'the same ' if row.equal else ''}{first.emitted:.0f} tokens"
    if abs(row.speed_ratio - 1) < 0.05:
        text += f" as fast as {reference} decoding"
    else:
        text += f" {row.speed_ratio:.1f} times as fast as {reference} decoding"
    if not row.equal:
        other = runs[runs.decoder == reference].iloc[0]
        ours, theirs = (getattr(output, "sequences", output)[0].tolist() for output in (first.output, other.output))
        shorter = min(len(ours), len(theirs))
        same = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
        text += f", the first {same - (len(ours) - first.emitted)} of them the same"
    if row.speed_ratio < 1.05 and first.rounds > 0:
        a_round = (first.emitted - 1) / first.rounds
        text += f": {a_round:.1f} tokens a round do not pay for drafts and verification on this machine"
    return text + "."
