"""Effects of LayerSkip's training: exits, full model, answers, and drafting.

Copies trained by `eelib.baselines.layerskip` are compared with the original on the same text.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.backbone.segments import Backbone
from eelib.baselines.layerskip import positions_with_a_next, read_exits
from eelib.confidence.traces import record_traces
from eelib.decoding.lossless import first_mismatch
from eelib.errors import InvalidInputError
from eelib.evaluation.tuning import OwnTexts, count_work, layerskip_settings
from eelib.evaluation.weight_reads import WeightReads
from eelib.heads.exit_heads import ExitHeads
from eelib.statistics import ratio_interval


def loss_by_band(report: pd.DataFrame, n_blocks: int) -> pd.DataFrame:
    """Mean exit loss early and late in training, by depth.

    Args:
        report: from `finetune`.

    Returns:
        Index: up_to_depth, the end of a band of a sixth of the blocks; the model's end is a band of its own. Columns:
            first fifth, last fifth [nats].
    """
    fifth = np.ceil(5 * report.step / report.step.max()).map({1: "first fifth", 5: "last fifth"})
    width = max(1, n_blocks // 6)
    band = np.minimum(width * np.ceil(report.depth / width), n_blocks - 1)
    band = np.where(report.depth == n_blocks, n_blocks, band).astype(int)
    table = report.assign(up_to_depth=band, fifth=fifth)
    return table.pivot_table(index="up_to_depth", columns="fifth", values="loss")


def read_heads(
    model: PreTrainedModel, heads: ExitHeads, sequences: Sequence[Tensor], *, loss_mask: Sequence[Tensor] | None = None
) -> pd.DataFrame:
    """As `read_exits`, for trained heads on a frozen model.

    nats are NaN, since heads may draft only a part of the vocabulary.
    """
    traces = record_traces(model, heads, sequences, loss_mask=positions_with_a_next(sequences, loss_mask))
    table = traces.groupby(["sequence", "depth"]).agg(tokens=("agrees", "size"), agreed=("agrees", "sum"))
    return table.reset_index().assign(nats=np.nan)


def exit_quality(reads: Mapping[str, pd.DataFrame], *, seed: int = 0) -> pd.DataFrame:
    """Agreement and perplexity of exits by depth.

    Args:
        reads: by whose exits they are, from `read_exits` or `read_heads`.
        seed: of the bootstrap over sequences.

    Returns:
        One row per name and depth: exits (the name), depth, agreement (with the last block of the same model) with its
        interval, and perplexity (NaN for heads).
    """
    rows = []
    for name, read in reads.items():
        for depth, part in read.groupby("depth"):
            agreement, low, high = ratio_interval(part.agreed, part.tokens, seed=seed)
            rows.append({
                "exits": name, "depth": depth, "agreement": agreement, "agreement_low": low, "agreement_high": high,
                "perplexity": np.exp(part.nats.sum(min_count=1) / part.tokens.sum()),
            })  # fmt: skip
    return pd.DataFrame(rows)


def compare_perplexity(
    models: Mapping[str, PreTrainedModel],
    texts: Mapping[str, tuple[Sequence[Tensor], Sequence[Tensor] | None]],
    *,
    reference: str = "original",
    seed: int = 0,
) -> pd.DataFrame:
    """Perplexity of full models on kinds of text, relative to the reference.

    Args:
        models: by name, with the reference among them.
        texts: by kind, sequences [position] and their loss masks (None: every position counts).
        seed: of the bootstrap over sequences.

    Returns:
        One row per kind and model: text, model, perplexity, and ratio (to the reference's, paired by sequence) with its
        interval.

    Raises:
        InvalidInputError: the reference is not among the models.
    """
    if reference not in models:
        raise InvalidInputError(f"No model {reference!r}, to compare with, among {list(models)}.")
    rows = []
    for kind, (sequences, loss_mask) in texts.items():
        read = {
            name: read_exits(model, sequences, loss_mask=loss_mask, depths=[Backbone.of(model).n_blocks])
            for name, model in models.items()
        }
        for name, table in read.items():
            more = ratio_interval(table.nats - read[reference].nats, table.tokens, seed=seed)
            ratio = dict(zip(("ratio", "ratio_low", "ratio_high"), np.exp(more), strict=True))
            perplexity = np.exp(table.nats.sum() / table.tokens.sum())
            rows.append({"text": kind, "model": name, "perplexity": perplexity, **ratio})
    return pd.DataFrame(rows)


def compare_accuracy(
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None = None,
    *,
    reference: str = "original",
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy of full models on packaged multiple-choice cases, beside the reference.

    Needs the extra `bench`.

    Args:
        models: by name, with the reference among them.
        limit: maximum cases of each task.
        seed: of the bootstrap over cases.

    Returns:
        One row per task and model: task, model, cases, accuracy and difference (to the reference's, paired by case)
        with their intervals, and changed (share of cases with another answer).
    """
    from eelib.evaluation import harness

    settings = {name: harness.EarlyExitLM(model, tokenizer, batch_size=16) for name, model in models.items()}
    found = harness.multiple_choice_accuracy(settings, limit, reference=reference, seed=seed)
    found.columns = found.columns.str.replace(f"accuracy_less_{reference}", "difference")
    names = [value + end for value in ("accuracy", "difference") for end in ("", "_low", "_high")]
    found = found.rename(columns={"setting": "model", "changed_answers": "changed"})
    return found[["task", "model", "cases", *names, "changed"]]


@torch.no_grad()
def compare_answers(model: PreTrainedModel, tuned: PreTrainedModel, own: OwnTexts, theirs: OwnTexts) -> pd.DataFrame:
    """Differences between greedy answers of the model and a tuned copy.

    Args:
        own, theirs: the model's answers and the copy's, to the same prompts.

    Returns:
        One row per prompt: different (tokens of the model's answer that the copy would choose otherwise), and of the
        two answers the columns of `verify_lossless`: tokens, equal, first_mismatch, gap, rounding, near_tie.
    """
    rows = []
    for length, text, other in zip(own.prompt_lengths, own.sequences, theirs.sequences, strict=True):
        text, other = text.to(model.device), other.to(model.device)
        choices = tuned(input_ids=text[None]).logits[0, length - 1 : -1].argmax(-1)
        found = first_mismatch(model, length, other, text)
        rows.append({"different": int((choices != text[length:]).sum()), **found})
    return pd.DataFrame(rows)


def fixed_exit_grid(
    model: PreTrainedModel, exits: ExitHeads, draft_lengths: Sequence[int], texts: OwnTexts
) -> pd.DataFrame:
    """LayerSkip's decoding at every depth and draft length, by replay.

    Args:
        exits: heads, or the logit lens (kind `none`).
        texts: the model's own.

    Returns:
        One row per depth and draft length: depth, draft_length, the counts and rates of `count_work`, and
        tokens_per_pass (emitted over passes of the whole model by weights read; plain decoding has 1).
    """
    settings = layerskip_settings(exits, draft_lengths, "fixed exit")
    policies = {str(number): setting.policy for number, setting in enumerate(settings)}
    n_blocks = Backbone.of(model).n_blocks
    table = count_work(policies, texts.traces(model, exits), n_blocks, texts.prompt_lengths)
    table["tokens_per_pass"] = table.emitted / table.work.map(WeightReads.of(model, exits).passes)
    parameters = pd.DataFrame([dict(setting.parameters) for setting in settings])
    return pd.concat([parameters, table.drop(columns=["policy", "work"])], axis=1)
