"""Tuning: replay settings, predict their speed, and time the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from eelib.calibration.thresholds import calibrate
from eelib.confidence.traces import record_traces_of
from eelib.decoding.engine import generate
from eelib.decoding.policies import Confidence, FixedExit, Lookup, Never, Policy
from eelib.errors import InvalidInputError
from eelib.evaluation.comparison import Decoder, compare, summarise
from eelib.evaluation.latency import Timings
from eelib.evaluation.replay import Work, replay_policy
from eelib.heads.exit_heads import ExitHeads


@dataclass(frozen=True)
class Setting:
    """A policy with its heads, and its parameters as table columns.

    Attributes:
        kind: group in which it is tuned ("DSSD"); the best of each is chosen.
        policy: as `generate` takes it.
        heads: as `generate` takes them; None for the logit lens.
        parameters: by column: epsilon, max_draft, deepest; or depth, draft_length.
    """

    kind: str
    policy: Policy
    heads: ExitHeads | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)

    def decoder(self, model: PreTrainedModel, **generate_kwargs) -> Decoder:
        """Decoder for `compare`: verified, greedy by default."""
        options = {"do_sample": False, **generate_kwargs}
        return lambda prompt: generate(model, prompt, heads=self.heads, policy=self.policy, **options)


PLAIN = Setting("plain", Never())
"""Plain decoding: the full model, token by token."""


def dssd_settings(
    traces: pd.DataFrame,
    heads: ExitHeads,
    metric: str,
    epsilons: Sequence[float],
    max_drafts: Sequence[int],
    deepest: Sequence[int] | None = None,
    *,
    lookup: Lookup | None = None,
    kind: str = "DSSD",
) -> list[Setting]:
    """DSSD settings: every ε, `max_draft` and deepest head.

    With empirical thresholds, without back-off.

    Args:
        traces: of calibration text.
        deepest: depths; None for each head's.
        lookup: of every policy; None for none.
        kind: group of the settings.
    """
    settings = []
    for epsilon in epsilons:
        calibration = calibrate(traces, metric, epsilon)
        for max_draft in max_drafts:
            for depth in heads.depths if deepest is None else deepest:
                policy = Confidence.from_calibration(
                    calibration, max_draft, back_off=False, deepest=depth, lookup=lookup
                )
                parameters = {"epsilon": epsilon, "max_draft": max_draft, "deepest": depth}
                if lookup is not None:
                    parameters["lookup"] = lookup.max_draft
                settings.append(Setting(kind, policy, heads, parameters))
    return settings


def lookup_settings(max_drafts: Sequence[int], kind: str = "lookup") -> list[Setting]:
    """Settings of lookup alone, without heads: every `max_draft`."""
    return [Setting(kind, Lookup(n), parameters={"lookup": n}) for n in max_drafts]


def layerskip_settings(heads: ExitHeads, draft_lengths: Sequence[int], kind: str) -> list[Setting]:
    """Settings of LayerSkip's decoding: every head's depth and draft length.

    Heads of kind `none` are the logit lens.
    """
    return [
        Setting(kind, FixedExit(depth, n), heads, {"depth": depth, "draft_length": n})
        for depth in heads.depths
        for n in draft_lengths
    ]


@dataclass(frozen=True)
class OwnTexts:
    """Greedy texts of the model, on which policies are replayed.

    Attributes:
        prompts: [1, position] each.
        sequences: prompt and new tokens, [position] each.
        loss_mask: for each sequence the positions whose next token is the model's.
    """

    prompts: list[Tensor]
    sequences: list[Tensor]
    loss_mask: list[Tensor]

    @classmethod
    def write(cls, model: PreTrainedModel, prompts: Sequence[Tensor], **generate_kwargs) -> "OwnTexts":
        """Generate the model's greedy answers to prompts."""
        decode = PLAIN.decoder(model, **generate_kwargs)
        return cls.of(prompts, [decode(prompt).sequences for prompt in prompts])

    @classmethod
    def of(cls, prompts: Sequence[Tensor], sequences: Sequence[Tensor]) -> "OwnTexts":
        """From texts already generated: prompt and answer, [1, position] each."""
        sequences, masks = [text[0].cpu() for text in sequences], []
        for text, prompt in zip(sequences, prompts, strict=True):
            place = torch.arange(len(text))
            masks.append((place >= prompt.shape[1] - 1) & (place < len(text) - 1))  # what follows the text is not in it
        return cls(list(prompts), sequences, masks)

    @classmethod
    def of_runs(cls, prompts: Sequence[Tensor], runs: pd.DataFrame) -> "OwnTexts":
        """From the texts of the decoder "plain" in `compare`."""
        plain = runs[(runs.decoder == "plain") & (runs.repeat == 0)].sort_values("prompt")
        return cls.of(prompts, [output.sequences for output in plain.output])

    @property
    def prompt_lengths(self) -> list[int]:
        return [prompt.shape[1] for prompt in self.prompts]

    def first(self, n: int) -> "OwnTexts":
        """The first n texts."""
        return OwnTexts(self.prompts[:n], self.sequences[:n], self.loss_mask[:n])

    def traces(self, model: PreTrainedModel, heads: ExitHeads | None) -> pd.DataFrame:
        """Traces of the texts, as from `record_traces`.

        For `fused` heads of three drafts in a row, distinguished by `draft`. Without heads those of the logit lens in
        the middle, for policies that ask none.
        """
        if heads is None:
            heads = ExitHeads.init(model, [max(1, model.config.get_text_config().num_hidden_layers // 2)], "none")
        asked = [(heads, draft) for draft in ((1, 2, 3) if heads.reads_previous else (1,))]
        recorded = record_traces_of(model, asked, self.sequences, loss_mask=self.loss_mask)
        each = [traces.assign(draft=draft) for traces, (_, draft) in zip(recorded, asked, strict=True)]
        return pd.concat(each, ignore_index=True)


def count_work(
    policies: Mapping[str, Policy],
    traces: pd.DataFrame,
    n_blocks: int,
    prompt_lengths: Sequence[int],
    sequences: Sequence[Tensor] | None = None,
) -> pd.DataFrame:
    """Replayed work of each policy, summed over the texts.

    Columns: policy (its name), emitted, rounds, drafted, accepted, acceptance_rate, accepted_per_round,
    drafts_per_token, tokens_per_round, work (a `Work`, which `Timings` converts to seconds and `WeightReads` to weights
    read). Rates are NaN where nothing was drafted.
    """
    rows = []
    for name, policy in policies.items():
        work = replay_policy(policy, traces, n_blocks, prompt_lengths, sequences)
        rows.append({
            "policy": name, "emitted": work.emitted, "rounds": work.rounds, "drafted": work.drafted,
            "accepted": work.accepted,
            "acceptance_rate": work.accepted / work.drafted if work.drafted else float("nan"),
            "accepted_per_round": work.accepted / work.rounds, "drafts_per_token": work.drafted / work.emitted,
            "tokens_per_round": (work.emitted - len(prompt_lengths)) / work.rounds, "work": work,
        })  # fmt: skip
    return pd.DataFrame(rows)


def predict(
    model: PreTrainedModel, settings: Sequence[Setting], texts: OwnTexts, timings: Mapping[str, Timings]
) -> pd.DataFrame:
    """Replayed counts and predicted speed of settings.

    Args:
        timings: by kind; settings of one kind ask the same heads.

    Returns:
        One row per setting, in their order: counts and rates of `count_work`, tokens_per_second (predicted), a column
        for each parameter, and kind.
    """
    tables, n_blocks, traces_of = [], model.config.get_text_config().num_hidden_layers, {}
    for kind in dict.fromkeys(setting.kind for setting in settings):
        own = [setting for setting in settings if setting.kind == kind]
        heads = own[0].heads
        if heads not in traces_of:
            traces_of[heads] = texts.traces(model, heads)
        traces = traces_of[heads]
        policies = {str(number): setting.policy for number, setting in enumerate(own)}
        table = count_work(policies, traces, n_blocks, texts.prompt_lengths, texts.sequences)
        table["tokens_per_second"] = table.work.map(timings[kind].tokens_per_second)
        parameters = pd.DataFrame([dict(setting.parameters) for setting in own])
        tables.append(pd.concat([table.drop(columns=["policy", "work"]), parameters], axis=1).assign(kind=kind))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Tuning:
    """Result of `tune`.

    Attributes:
        grid: every setting with its predicted speed, from `predict`.
        runs: measured runs of the finalists and of the settings beside them, from `compare`.
        finalists: one row per finalist: kind, its parameters, `summarise` of its runs, and whether it is chosen.
        chosen: the fastest setting of each kind, as measured.
        best: the fastest of all; plain decoding where none is faster.
    """

    grid: pd.DataFrame
    runs: pd.DataFrame
    finalists: pd.DataFrame
    chosen: dict[str, Setting]
    best: Setting


def tune(
    model: PreTrainedModel,
    settings: Sequence[Setting],
    texts: OwnTexts,
    timings: Mapping[str, Timings],
    *,
    finalists: int = 2,
    decoded: int = 4,
    beside: Mapping[str, Setting] | None = None,
    repeats: int = 1,
    seed: int = 0,
    **generate_kwargs,
) -> Tuning:
    """Choose the fastest setting of each kind: all predicted, the best timed.

    Args:
        settings: to choose from.
        texts: of tuning prompts, not used for any reported result.
        timings: by kind, of this model and these heads (`time_pieces`).
        finalists: number of each kind that are timed.
        decoded: number of prompts for that, at least one.
        beside: other settings to time with them, by name.
        generate_kwargs: as for `generate`.

    Raises:
        InvalidInputError: no settings, or fewer prompts than `decoded`.
    """
    if not settings or not 1 <= decoded <= len(texts.prompts) or finalists < 1:
        raise InvalidInputError(
            f"{len(settings)} settings, {len(texts.prompts)} prompts, decoded={decoded}, finalists={finalists}: "
            "expected settings, at least one finalist, and at least `decoded` prompts."
        )
    grid = predict(model, settings, texts, timings)
    best = grid.sort_values("tokens_per_second", ascending=False).groupby("kind", sort=False).head(finalists)
    named = {"plain": PLAIN, **(beside or {})}
    named |= {f"finalist {number}": settings[number] for number in best.index}
    decoders = {name: setting.decoder(model, **generate_kwargs) for name, setting in named.items()}
    runs = compare(decoders, texts.prompts[:decoded], reference="plain", repeats=repeats)
    measured = summarise(runs, seed=seed).set_index("decoder")
    rows = [
        {"kind": grid.kind[number], **settings[number].parameters, **measured.loc[f"finalist {number}"]}
        for number in best.index
    ]
    table = pd.DataFrame(rows, index=best.index)
    winners = table.groupby("kind", sort=False).speed_ratio.idxmax()
    table["chosen"] = table.index.isin(winners)
    quickest = table.speed_ratio.idxmax()
    best = settings[quickest] if table.speed_ratio[quickest] > 1 else PLAIN
    return Tuning(grid, runs, table, {kind: settings[number] for kind, number in winners.items()}, best)


def chosen_settings(
    table: pd.DataFrame,
    traces: pd.DataFrame,
    heads: ExitHeads,
    metric: str,
    *,
    fused: tuple[pd.DataFrame, ExitHeads] | None = None,
) -> dict[str, Setting]:
    """Settings that an earlier `tune` chose, from their table.

    Args:
        table: columns decoder, kind, epsilon, max_draft and deepest (DSSD), depth and draft_length (LayerSkip), lookup
            (where drafts are looked up), as from `settings_table`; rows without any (plain decoding) are skipped.
        traces: of the calibration text that DSSD was tuned with, by these heads.
        heads: of DSSD, and of the kinds that do not name the logit lens.
        metric: of DSSD.
        fused: traces and heads of the kinds whose names begin with "fused"; None skips such rows.
    """
    found, own = {}, (traces, heads)
    for row in table.to_dict("records"):
        by_fused = str(row["kind"]).startswith("fused")
        if by_fused and fused is None:
            continue
        traces, heads = fused if by_fused else own
        longest = row.get("lookup", float("nan"))
        lookup = None if pd.isna(longest) else Lookup(int(longest))
        if not pd.isna(row["epsilon"]):
            grid = [row["epsilon"]], [int(row["max_draft"])], [int(row["deepest"])]
            (setting,) = dssd_settings(traces, heads, metric, *grid, lookup=lookup, kind=row["kind"])
            found[row["decoder"]] = setting
        elif lookup is not None:
            (found[row["decoder"]],) = lookup_settings([lookup.max_draft], row["kind"])
        elif not pd.isna(row["depth"]):
            depth, n = int(row["depth"]), int(row["draft_length"])
            reads = None if row["kind"].endswith("logit lens") else heads
            parameters = {"depth": depth, "draft_length": n}
            found[row["decoder"]] = Setting(row["kind"], FixedExit(depth, n), reads, parameters)
    return found


def curve_settings(
    chosen: Mapping[str, Setting],
    traces: pd.DataFrame,
    heads: ExitHeads,
    metric: str,
    epsilons: Sequence[float],
    draft_lengths: Sequence[int],
    rival: str,
) -> dict[str, Setting]:
    """Neighbours of chosen settings: other ε, or other draft lengths."""
    dssd, other = chosen["DSSD"].parameters, chosen[rival].parameters
    others = sorted(set(epsilons) - {dssd["epsilon"]})
    settings = dssd_settings(traces, heads, metric, others, [dssd["max_draft"]], [dssd["deepest"]])
    found = {f"DSSD, ε = {setting.parameters['epsilon']:g}": setting for setting in settings}
    for n in sorted(set(draft_lengths) - {other["draft_length"]}):
        parameters = {"depth": other["depth"], "draft_length": n}
        found[f"{rival}, {other['depth']} x {n}"] = Setting(rival, FixedExit(other["depth"], n), heads, parameters)
    return found


def settings_table(settings: Mapping[str, Setting]) -> pd.DataFrame:
    """Names and parameters of settings: decoder, kind, one column per parameter."""
    rows = [{"decoder": name, "kind": setting.kind, **setting.parameters} for name, setting in settings.items()]
    return pd.DataFrame(rows)


def check_predictions(
    model: PreTrainedModel,
    settings: Mapping[str, Setting],
    texts: OwnTexts,
    timings: Mapping[str, Timings],
    runs: pd.DataFrame,
) -> pd.DataFrame:
    """Predicted beside measured speed of some settings.

    Predictions are scaled by what plain decoding took in the runs over what is predicted for it, so that the relative
    costs of the components are tested.

    Args:
        settings: by name, each among the decoders of `runs`.
        texts: of the prompts of `runs`.
        timings: by kind.
        runs: from `compare`, with the decoder "plain".

    Returns:
        One row per setting: policy (its name), predicted and measured (tokens per second), error, drafted and
        drafted_measured, scale. measured is a median over prompts; error is that of predicted over measured on each
        prompt, less 1; predicted is measured with this error.
    """
    n_blocks = model.config.get_text_config().num_hidden_layers
    traces_of, rows = {}, []

    def counted(policy: Policy, heads: ExitHeads | None) -> list[Work]:
        if heads not in traces_of:
            traces_of[heads] = [table for _, table in texts.traces(model, heads).groupby("sequence")]
        each = zip(traces_of[heads], texts.prompt_lengths, texts.sequences, strict=True)
        return [replay_policy(policy, own, n_blocks, [n], [text]) for own, n, text in each]

    plain = runs[runs.decoder == "plain"].groupby("prompt").seconds.median()
    measured = runs.groupby(["decoder", "prompt"]).tokens_per_second.median()
    drafted = runs[runs.repeat == 0].groupby("decoder").drafted.sum()
    for name, setting in settings.items():
        timed = timings[setting.kind]
        expected = [timed.seconds(work) for work in counted(Never(), setting.heads)]
        scaled = timed.scaled(float(np.median(plain.to_numpy() / expected)))
        work = counted(setting.policy, setting.heads)
        own = measured[name].to_numpy()
        ratio = np.median([scaled.tokens_per_second(one) for one in work] / own)
        rows.append({
            "policy": name, "predicted": ratio * np.median(own), "measured": np.median(own), "error": ratio - 1,
            "drafted": sum(one.drafted for one in work), "drafted_measured": drafted[name], "scale": scaled.scale,
        })  # fmt: skip
    return pd.DataFrame(rows)
