"""Decoders side by side on the same prompts: speed, acceptance, equality.

Interleaved, after a warm-up.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from eelib.backbone.segments import Backbone
from eelib.decoding.batches.output import BatchOutput
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


BatchDecoder = Callable[[list[Tensor]], BatchOutput | DecodingOutput | Tensor]
"""From prompts [1, position] to the result of `eelib.generate` or `model.generate`."""


def compare_batches(
    decoders: Mapping[tuple[str, str], BatchDecoder],
    prompts: Sequence[Tensor],
    sizes: Sequence[int] = (1, 2, 4, 8),
    *,
    reference: tuple[str, str] = ("plain", ""),
    repeats: int = 3,
) -> pd.DataFrame:
    """Decode prompts together, so many at once, with every decoder, interleaved.

    Args:
        decoders: by kind and gathering rule, ("early exit", "wait").
        sizes: numbers of rows.

    Returns:
        One row per size, decoder and repeat: rows, kind, gather, repeat, seconds, emitted, tokens_per_second (of all
        rows), speed_ratio (to the reference at the same size and repeat), equal (share of rows with the reference's
        tokens), latency_seconds and latency_seconds_95 (median and 95% quantile over rows), exits (share of tokens that
        left before the last block), exits_lost (share of these that passed blocks above their exit with other rows),
        block_calls, block_positions, head_calls, head_positions (sums), tokens (emitted or drafted). NaN where a
        decoder does not count.

    Raises:
        InvalidInputError: fewer prompts than rows, or the reference is not among the decoders.
    """
    if not sizes or max(sizes) > len(prompts) or reference not in decoders:
        raise InvalidInputError(
            f"{len(prompts)} prompts for batches of {list(sizes)}, decoders {list(decoders)}: expected as many, and "
            f"{reference} among the decoders."
        )
    tables = []
    for number, size in enumerate(sizes):
        calls = {key: (lambda decode=decode, size=size: decode(prompts[:size])) for key, decode in decoders.items()}
        timed = interleaved(calls, repeats=repeats, warm_up=int(number == 0), description=f"{size} rows")
        timed["kind"], timed["gather"] = zip(*timed.pop("candidate"), strict=True)
        base = timed[(timed.kind == reference[0]) & (timed.gather == reference[1])].set_index("repeat")
        own = [text[-n:] for text, n in _texts(base.result.iloc[0], prompts[:size])]
        found = [_of_batch(run, prompts[:size], own) for run in timed.itertuples()]
        timed = pd.concat([timed.drop(columns="result"), pd.DataFrame(found)], axis=1).assign(rows=size)
        timed["tokens_per_second"] = timed.emitted / timed.seconds
        plain = sum(len(text) for text in own) / base.seconds
        timed["speed_ratio"] = timed.tokens_per_second / timed["repeat"].map(plain)
        tables.append(timed)
    return pd.concat(tables, ignore_index=True)


def _texts(output: BatchOutput | DecodingOutput | Tensor, prompts: Sequence[Tensor]) -> list[tuple[list[int], int]]:
    """Each row's text and number of new tokens."""
    if isinstance(output, Tensor):
        n = output.shape[1] - max(prompt.shape[1] for prompt in prompts)
        return [(row.tolist(), n) for row in output]
    rows = output.rows if isinstance(output, BatchOutput) else [output]
    return [(row.sequences[0].tolist(), row.stats.emitted) for row in rows]


def _of_batch(run: Any, prompts: Sequence[Tensor], own: Sequence[list[int]]) -> dict[str, float]:
    """Measurements of one batch, from its output and seconds."""
    output, texts = run.result, _texts(run.result, prompts)
    found = {
        "emitted": sum(n for _, n in texts),
        "equal": np.mean([text[-n:] == theirs for (text, n), theirs in zip(texts, own, strict=True)]),
    }
    if isinstance(output, Tensor):
        return found | {"latency_seconds": run.seconds, "latency_seconds_95": run.seconds}
    rows = output.rows if isinstance(output, BatchOutput) else [output]
    seconds, stats = [row.stats.seconds for row in rows], output.stats
    settled = output.trace[~output.trace.drafted | output.trace.accepted]
    exits = int((settled.depth < len(stats.block_calls)).sum())
    return found | {
        "latency_seconds": np.median(seconds), "latency_seconds_95": np.quantile(seconds, 0.95),
        "exits": exits / len(settled), "exits_lost": getattr(stats, "exits_lost", 0) / exits if exits else 0.0,
        "block_calls": sum(stats.block_calls), "block_positions": sum(stats.block_positions),
        "head_calls": getattr(stats, "head_calls", sum(stats.head_positions.values())),
        "head_positions": sum(stats.head_positions.values()), "tokens": stats.emitted + stats.drafted,
    }  # fmt: skip


def summarise_batches(runs: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Medians over repeats of `compare_batches`, one row per size and decoder.

    With 95% intervals of speed_ratio, from a bootstrap over repeats.
    """
    rows = []
    for (size, kind, gather), table in runs.groupby(["rows", "kind", "gather"], sort=False):
        row = {"rows": size, "kind": kind, "gather": gather}
        row |= table.drop(columns=["rows", "kind", "gather", "repeat"]).median().to_dict()
        ratio = median_interval(table.speed_ratio, seed=seed)
        rows.append(row | dict(zip(("speed_ratio", "speed_ratio_low", "speed_ratio_high"), ratio, strict=True)))
    return pd.DataFrame(rows)


def left_padded(model: PreTrainedModel, padding: int = 0, **generate_kwargs: Any) -> BatchDecoder:
    """Transformers' own `generate` for prompts of different lengths, padded on the left."""

    def decode(prompts: list[Tensor]) -> Tensor:
        longest = max(prompt.shape[1] for prompt in prompts)
        ids = torch.cat([F.pad(prompt, (longest - prompt.shape[1], 0), value=padding) for prompt in prompts])
        mask = torch.cat([F.pad(torch.ones_like(prompt), (longest - prompt.shape[1], 0)) for prompt in prompts])
        ids, mask = ids.to(model.device), mask.to(model.device)
        return model.generate(ids, attention_mask=mask, **generate_kwargs | {"pad_token_id": padding})

    return decode


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
