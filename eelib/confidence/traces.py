"""Traces: what every head would have said at every position of a text, beside what the model says."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from eelib.backbone.segments import Backbone, pad
from eelib.confidence.metrics import confidence, known_metrics
from eelib.errors import CorpusError
from eelib.heads.exit_heads import ExitHeads


@torch.no_grad()
def record_traces(
    model: PreTrainedModel,
    heads: ExitHeads,
    sequences: Sequence[Tensor],
    *,
    loss_mask: Sequence[Tensor] | None = None,
    draft: int = 1,
    batch_size: int = 8,
) -> pd.DataFrame:
    """One row per sequence, position and head, in that order.

    Columns: sequence; position (the token read there; the head predicts position + 1); head; depth; one per metric
    (where "other" leads, the head declines: -inf, which no threshold lets pass); agrees (the head's token is the
    model's); head_token (-1 where it declines); teacher_token. A calibration takes over `attrs["heads_fingerprint"]`.

    Args:
        sequences: 1-D LongTensors, one a document; fed as they are, so drafts never condition on drafts.
        loss_mask: for each sequence a mask [position] of the positions to record (`Corpus.loss_mask`); None for all.
        draft: heads of kind `fused` answer as when this is the first, second, ... draft in a row: behind the first one
            with their own guess in place of what the unembedding read. The others always answer alike.

    Raises:
        CorpusError: no sequences.
    """
    if not sequences:
        raise CorpusError("No sequences to record traces of.")
    backbone, tables = Backbone.of(model), []
    for start in tqdm(range(0, len(sequences), batch_size), desc="recording traces", unit="batch"):
        batch = sequences[start : start + batch_size]
        tokens, real = pad(batch, None if loss_mask is None else loss_mask[start : start + batch_size])
        states = backbone.states(tokens.to(model.device), [*heads.depths, backbone.n_blocks])
        real = real.to(model.device)
        teacher_token = backbone.unembed(states[backbone.n_blocks][real]).argmax(-1)
        row, position = real.nonzero(as_tuple=True)
        for head, depth in enumerate(heads.depths):
            previous = None
            if heads.reads_previous:
                previous = _one_back(backbone.normalise(states[backbone.n_blocks]))
                for _ in range(draft - 1):
                    previous = _one_back(heads.final(depth, states[depth], previous))
                previous = previous[real]
            columns = _read(heads, depth, states[depth][real], previous)
            columns |= {"sequence": row + start, "position": position, "teacher_token": teacher_token}
            table = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
            tables.append(table.assign(head=head, depth=depth))
    traces = pd.concat(tables, ignore_index=True)
    traces["agrees"] = traces.head_token == traces.teacher_token
    order = ["sequence", "position", "head", "depth", *known_metrics(), "agrees", "head_token", "teacher_token"]
    traces = traces[order].sort_values(["sequence", "position", "head"], ignore_index=True)
    traces.attrs["heads_fingerprint"] = heads.fingerprint()
    return traces


def _one_back(final: Float[Tensor, "batch position width"]) -> Tensor:
    """For each position what is at the one before it; nothing at all before the first."""
    return F.pad(final[:, :-1], (0, 0, 1, 0))


def _read(
    heads: ExitHeads, depth: int, hidden: Tensor, previous: Tensor | None, logits_at_once: int = 2**26
) -> dict[str, Tensor]:
    """Scores and token of one head for states [token, hidden], a chunk at a time to bound the memory."""
    chunks, rows = [], max(1, logits_at_once // heads.backbone.vocab_size)
    parts = hidden.split(rows)
    for part, before in zip(parts, [None] * len(parts) if previous is None else previous.split(rows), strict=True):
        logits = heads.logits(depth, part, before)
        tokens = heads.drafted_tokens(logits)
        scores = {m: s.masked_fill(tokens < 0, float("-inf")).float() for m, s in confidence(logits).items()}
        chunks.append({**scores, "head_token": tokens})
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
