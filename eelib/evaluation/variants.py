"""Head variants side by side: same documents, recipe and test set."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.backbone.teacher import Teacher
from eelib.confidence.traces import record_traces
from eelib.corpus.corpus import Corpus
from eelib.errors import InvalidInputError
from eelib.evaluation.weight_reads import WeightReads
from eelib.heads.exit_heads import ExitHeads
from eelib.heads.training import TrainConfig, evaluate_heads, train_heads
from eelib.statistics import mean_interval


@dataclass(frozen=True)
class HeadVariant:
    """Heads to train for a comparison.

    Attributes:
        kind: as in `HeadConfig`; `none`, the logit lens, is not trained.
        draft_vocab_size: number of tokens that a head may draft; None for all.
        documents: number of training documents, the first of the corpus.
    """

    kind: str
    draft_vocab_size: int | None
    documents: int


def train_variants(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    variants: Sequence[HeadVariant],
    training: TrainConfig,
    teacher: Teacher,
    *,
    tested: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Train and measure heads of each variant, at the teacher's depths.

    Args:
        corpus: its splits train and test.
        teacher: its cached outputs are shared by all.
        tested: number of test documents.
        seed: of the initial weights and the bootstrap.

    Returns:
        One row per variant and depth: training_seconds, and the columns of `measure_heads`.
    """
    tables = []
    for variant in variants:
        heads = ExitHeads.init(
            model, teacher.depths, variant.kind, variant.draft_vocab_size, seed=seed, sequences=corpus.train,
            tokenizer=tokenizer,
        )  # fmt: skip
        trained = 0 if variant.kind == "none" else variant.documents
        started = time.perf_counter()
        if trained:
            masks = corpus.loss_mask["train"][:trained]
            train_heads(model, heads, corpus.train[:trained], training, loss_mask=masks, teacher=teacher)
        seconds = time.perf_counter() - started
        table = measure_heads(model, heads, corpus, trained, tested=tested, seed=seed)
        table.insert(0, "training_seconds", seconds)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def measure_heads(
    model: PreTrainedModel, heads: ExitHeads, corpus: Corpus, documents: int, *, tested: int, seed: int = 0
) -> pd.DataFrame:
    """Cost and agreement of heads on held-out documents.

    Args:
        documents: number of training documents.
        tested: number of test documents.
        seed: of the bootstrap over documents.

    Returns:
        One row per depth: kind, drafted (size of the draft vocabulary, or "all"), tokens (trained on), own_parameters,
        depth, cost_in_blocks (weights that one draft reads, in blocks of the model), loss (KL, nats), and agreement
        with its interval.

    Raises:
        InvalidInputError: no documents to test on.
    """
    sequences, masks = corpus.test[:tested], corpus.loss_mask["test"][:tested]
    if not sequences:
        raise InvalidInputError(f"tested={tested} of {len(corpus.test)} test documents: expected at least one.")
    row = {
        "kind": heads.config.kind, "drafted": heads.config.draft_vocab_size or "all",
        "tokens": sum(int(mask.sum()) for mask in corpus.loss_mask["train"][:documents]),
        "own_parameters": heads.parameter_count()["own"],
    }  # fmt: skip
    loss = evaluate_heads(model, heads, sequences, masks).set_index("depth").loss
    reads, rows = WeightReads.of(model, heads), []
    for depth, table in record_traces(model, heads, sequences, loss_mask=masks).groupby("depth"):
        low, high = mean_interval(table.groupby("sequence").agrees.mean(), seed=seed)[1:]
        rows.append({
            **row, "depth": depth, "cost_in_blocks": reads.heads[depth] / reads.block, "loss": loss[depth],
            "agreement": table.agrees.mean(), "agreement_low": low, "agreement_high": high,
        })  # fmt: skip
    return pd.DataFrame(rows)
