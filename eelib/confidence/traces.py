"""Teacher-forced traces: predictions of every head and the model, position by position."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from eelib.backbone.probing import check_mode
from eelib.backbone.segments import Backbone, pad
from eelib.backbone.tokens import masked_sequences
from eelib.confidence.metrics import confidence, known_metrics
from eelib.errors import CorpusError
from eelib.heads.exit_heads import ExitHeads


def record_traces(
    model: PreTrainedModel,
    heads: ExitHeads,
    sequences: Any,
    *,
    loss_mask: Sequence[Tensor] | None = None,
    draft: int = 1,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Record every head's prediction and confidence at every position.

    One row per sequence, position and head, in that order. Columns: sequence; position (of the token read; the head
    predicts position + 1); head; depth; one per metric (-inf where the head declines because "other" leads, which no
    threshold lets pass); agrees (the head's token is the model's); head_token (-1 where it declines); teacher_token.
    `attrs["heads_fingerprint"]` is for a calibration.

    Args:
        sequences: token ids, one document each, as tensors [position], arrays, lists, or a tokenizer's output; teacher
            forced, so drafts never condition on drafts.
        loss_mask: for each sequence a mask of the positions to record (`Corpus.loss_mask`); None for all.
        draft: which of several consecutive drafts `fused` heads make; after the first, their own prediction stands in
            for the unembedding's input. Other heads are unaffected.

    Raises:
        CorpusError: no sequences.
        InvalidInputError: not token ids, or a model in training mode.

    Example:
        >>> traces = record_traces(model, heads, sequences)
        >>> len(traces) == len(heads.depths) * sum(map(len, sequences))
        True
    """
    asked = [(heads, draft)]
    (traces,) = record_traces_of(model, asked, sequences, loss_mask=loss_mask, batch_size=batch_size)
    return traces


@torch.no_grad()
def record_traces_of(
    model: PreTrainedModel,
    asked: Sequence[tuple[ExitHeads, int]],
    sequences: Any,
    *,
    loss_mask: Sequence[Tensor] | None = None,
    batch_size: int = 8,
) -> list[pd.DataFrame]:
    """Traces of several heads in one pass of the model.

    A table for each pair of heads and draft, otherwise as `record_traces`.
    """
    backbone = Backbone.of(model)
    check_mode(backbone.model)
    sequences, loss_mask = masked_sequences(sequences, loss_mask, backbone.n_tokens)
    if not sequences:
        raise CorpusError("No sequences to record traces of: expected at least one.")
    depths = sorted({depth for heads, _ in asked for depth in heads.depths} | {backbone.n_blocks})
    tables: list[list[pd.DataFrame]] = [[] for _ in asked]
    for start in tqdm(range(0, len(sequences), batch_size), desc="recording traces", unit="batch"):
        batch = sequences[start : start + batch_size]
        tokens, real = pad(batch, None if loss_mask is None else loss_mask[start : start + batch_size])
        states = backbone.states(tokens.to(model.device), depths)
        real = real.to(model.device)
        final = states[backbone.n_blocks][real].split(_rows_at_once(backbone))
        teacher_token = torch.cat([backbone.unembed(part).argmax(-1) for part in final])
        row, position = real.nonzero(as_tuple=True)
        shared = {"sequence": row + start, "position": position, "teacher_token": teacher_token}
        for (heads, draft), found in zip(asked, tables, strict=True):
            for head, depth in enumerate(heads.depths):
                columns = _read(heads, depth, states[depth][real], _previous(heads, depth, states, draft, real))
                table = pd.DataFrame({name: column.cpu().numpy() for name, column in (columns | shared).items()})
                found.append(table.assign(head=head, depth=depth))
    return [_in_order(found, heads) for (heads, _), found in zip(asked, tables, strict=True)]


def _in_order(tables: list[pd.DataFrame], heads: ExitHeads) -> pd.DataFrame:
    traces = pd.concat(tables, ignore_index=True)
    traces["agrees"] = traces.head_token == traces.teacher_token
    order = ["sequence", "position", "head", "depth", *known_metrics(), "agrees", "head_token", "teacher_token"]
    traces = traces[order].sort_values(["sequence", "position", "head"], ignore_index=True)
    traces.attrs["heads_fingerprint"] = heads.fingerprint()
    return traces


def _previous(heads: ExitHeads, depth: int, states: dict[int, Tensor], draft: int, real: Tensor) -> Tensor | None:
    """For `fused` heads, the unembedding's input one position back.

    For later drafts, their own prediction of it.
    """
    if not heads.reads_previous:
        return None
    previous = _one_back(heads.backbone.normalise(states[heads.backbone.n_blocks]))
    for _ in range(draft - 1):
        previous = _one_back(heads.final(depth, states[depth], previous))
    return previous[real]


def _one_back(final: Float[Tensor, "batch position width"]) -> Tensor:
    """Each position's predecessor; zeros before the first."""
    return F.pad(final[:, :-1], (0, 0, 1, 0))


def _rows_at_once(backbone: Backbone) -> int:
    """Rows whose logits, with intermediate results, fit into some 300 MB."""
    return max(1, 2**24 // backbone.vocab_size)


def _read(heads: ExitHeads, depth: int, hidden: Tensor, previous: Tensor | None) -> dict[str, Tensor]:
    """Scores and token of one head for states [token, hidden], in chunks."""
    chunks, rows = [], _rows_at_once(heads.backbone)
    parts = hidden.split(rows)
    for part, before in zip(parts, [None] * len(parts) if previous is None else previous.split(rows), strict=True):
        logits = heads.logits(depth, part, before)
        tokens = heads.drafted_tokens(logits)
        scores = {m: s.masked_fill(tokens < 0, float("-inf")).float() for m, s in confidence(logits).items()}
        chunks.append({**scores, "head_token": tokens})
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
