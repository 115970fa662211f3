"""LayerSkip's training recipe (arXiv 2404.16710, section 4.1): layer dropout, exit losses.

The paper counts layers l from 0 to L - 1; the exit behind layer l is at depth l + 1 here, and depth L is the model's
end. Every exit uses the model's own final norm and unembedding, so nothing is added to the model.
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from eelib.backbone.segments import Backbone, pad
from eelib.errors import CorpusError, TrainingError
from eelib.heads.training import Report
from eelib.settings import COUNT, POSITIVE, SEED, SHARE, Number, check_known, flag, settle

CURRICULA = ("rotational", "gradual")


@dataclass(frozen=True)
class LayerSkipConfig:
    """Settings of fine-tuning; plain with p_max=0 and e_scale=0.

    Attributes:
        steps: of the optimizer; text is reused in another order when exhausted.
        batch_size: sequences per step.
        learning_rate: peak rate of AdamW, after a linear warm-up and before a cosine decay to zero.
        warmup: share of steps for the warm-up.
        max_grad_norm: clipping norm of gradients.
        p_max: dropout probability of the last block, per sequence; earlier blocks have less.
        from_scratch: whether that probability grows over the steps, as in the paper without pretraining.
        e_scale: weight of the exits' losses, from 0 (only the model's end counts) to 1.
        curriculum: which exits have a loss at a step. `rotational`: every `rotation`-th, shifted by one block per step;
            `gradual`: from the last one down, one more every steps / 2L steps. The model's end always has one.
        rotation: the paper's R, in blocks.
        seed: of the order of the sequences and of the dropout.
    """

    steps: int = 100
    batch_size: int = 4
    learning_rate: float = 1e-4
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    p_max: float = 0.1
    from_scratch: bool = False
    e_scale: float = 0.2
    curriculum: str = "rotational"
    rotation: int = 8
    seed: int = 0

    def __post_init__(self):
        check_known("curriculum", self.curriculum, CURRICULA)
        below_1 = Number(least=0, below=1)
        settle(self, steps=COUNT, batch_size=COUNT, rotation=COUNT, seed=SEED, from_scratch=flag)
        settle(self, learning_rate=POSITIVE, max_grad_norm=POSITIVE, warmup=below_1, p_max=below_1, e_scale=SHARE)


def dropout_rates(config: LayerSkipConfig, n_blocks: int, step: int) -> Float[np.ndarray, " block"]:
    """Dropout probability of each block at `step` (equations 2 to 4).

    S(t) D(l) p_max, with D(l) = exp(l ln2 / (L - 1)) - 1, from 0 for the first block to 1 for the last. S(t) is 1, or,
    from scratch, grows over the steps in the same way.
    """
    over_blocks = 2 ** (np.arange(n_blocks) / max(n_blocks - 1, 1)) - 1
    over_steps = 2 ** (step / max(config.steps - 1, 1)) - 1 if config.from_scratch else 1.0
    return over_steps * over_blocks * config.p_max


def loss_scales(n_blocks: int, e_scale: float) -> Float[np.ndarray, " block"]:
    """Relative weight e(l) of the loss behind each block, not normalised.

    The equation after 6: e_scale (0 + 1 + ... + l), and for the last block L - 1 + e_scale (0 + ... + L - 2). The first
    block's is 0.
    """
    scales = e_scale * np.cumsum(np.arange(n_blocks, dtype=float))
    scales[-1] = n_blocks - 1 + e_scale * sum(range(n_blocks - 1))
    return scales


def active_exits(config: LayerSkipConfig, n_blocks: int, step: int) -> Bool[np.ndarray, " block"]:
    """C(t, l): blocks with a loss at `step` (from 0).

    The last block always has one. The paper does not say so of the rotational curriculum; its authors' recipe in
    torchtune does it by default, and without it some steps would leave the model's end unconstrained.
    """
    blocks = np.arange(n_blocks)
    if config.curriculum == "rotational":
        active = (blocks - step) % config.rotation == 0
    else:
        active = blocks >= n_blocks - 1 - 2 * n_blocks * step // config.steps
    active[-1] = True
    return active


def loss_weights(config: LayerSkipConfig, n_blocks: int, step: int) -> Float[np.ndarray, " block"]:
    """Weights of the exits' losses at `step`, summing to 1 (equation 6).

    C(t, l) e(l), normalised.
    """
    scales = active_exits(config, n_blocks, step) * loss_scales(n_blocks, config.e_scale)
    return scales / scales.sum()


def finetune(
    model: PreTrainedModel,
    sequences: Sequence[Tensor],
    config: LayerSkipConfig,
    *,
    loss_mask: Sequence[Tensor] | None = None,
    log: str | Path | None = None,
) -> tuple[PreTrainedModel, pd.DataFrame]:
    """Fine-tune a copy of the model, all weights, on next tokens.

    The copy is trained in float32 (float64 stays), without the model's own dropout, and returned frozen in the model's
    dtype. A run takes minutes and is not resumed; a failed one leaves only its log.

    Args:
        sequences: 1-D LongTensors, one per document.
        loss_mask: for each a mask of the positions to train on (`Corpus.loss_mask`); None for all. A position stands
            for the next token, so the last one of a sequence never counts.
        log: file for the rows of the report as they come, one JSON object a line.

    Returns:
        The tuned copy, and one row per step and exit with a loss: step (from 1), tokens (so far), depth, loss [nats,
        mean over the tokens of the step, before the update], weight, learning_rate, tokens_per_second.

    Raises:
        CorpusError: no sequences, or none with a position to train on.
        ModelError: the model cannot be split into blocks.
        TrainingError: the loss or its gradient is not finite.
    """
    masks = positions_with_a_next(sequences, loss_mask)
    usable = [i for i, mask in enumerate(masks) if mask.any()]
    if not usable:
        raise CorpusError(f"Nothing to learn from in {len(sequences)} sequences: no position that counts has a next.")
    tuned = copy.deepcopy(model).to(torch.promote_types(model.dtype, torch.float32)).eval().requires_grad_(True)
    backbone, rows, tokens = Backbone.of(tuned), [], 0
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=config.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(config.warmup * config.steps), config.steps)
    generator, started = torch.Generator().manual_seed(config.seed), time.perf_counter()
    with Report(rows, log, None, writes=True) as report, tqdm(total=config.steps, desc="fine-tuning") as bar:
        for step, numbers in enumerate(_batches(len(usable), config, generator)):
            batch, counts = pad([sequences[usable[i]] for i in numbers], [masks[usable[i]] for i in numbers])
            rates = torch.from_numpy(dropout_rates(config, backbone.n_blocks, step))
            kept = torch.rand(backbone.n_blocks, len(batch), generator=generator, dtype=rates.dtype) >= rates[:, None]
            weights = loss_weights(config, backbone.n_blocks, step)
            losses = exit_losses(backbone, batch.to(tuned.device), counts.to(tuned.device), weights, kept)
            total = sum(float(weights[depth - 1]) * loss for depth, loss in losses.items())
            rate = schedule.get_last_lr()[0]
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(tuned.parameters(), config.max_grad_norm)
            if not torch.isfinite(total) or not torch.isfinite(norm):
                raise TrainingError(
                    f"The loss is {total.item()} at step {step + 1}, its gradient {norm.item()}. The original model is "
                    f"unchanged; lower learning_rate ({config.learning_rate}) or check the text."
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            tokens += int(counts.sum())
            speed = tokens / (time.perf_counter() - started)
            shared = {"step": step + 1, "tokens": tokens, "learning_rate": rate, "tokens_per_second": speed}
            report.add([
                {**shared, "depth": depth, "loss": loss.item(), "weight": float(weights[depth - 1])}
                for depth, loss in losses.items()
            ])  # fmt: skip
            bar.update()
            bar.set_postfix_str(f"loss {rows[-1]['loss']:.2f} at the end, {speed:.0f} tokens/s")
    order = ["step", "tokens", "depth", "loss", "weight", "learning_rate", "tokens_per_second"]
    return tuned.to(model.dtype).requires_grad_(False), pd.DataFrame(rows)[order]


def exit_losses(
    backbone: Backbone,
    tokens: Int[Tensor, "batch position"],
    loss_mask: Bool[Tensor, "batch position"],
    weights: Float[np.ndarray, " block"],
    kept: Bool[Tensor, "block batch"],
) -> dict[int, Float[Tensor, ""]]:
    """Next-token cross-entropy by depth, where the weight is not 0.

    In nats, mean over the positions that count.

    Args:
        loss_mask: never with a sequence's last position, which has no next token.
        kept: which blocks each sequence passes. A dropped one passes the state on (equation 1). It is computed all the
            same: a block's arguments differ between architectures, and cannot be split into rows.
    """
    span, losses, real = backbone.capture(tokens), {}, loss_mask[:, :-1]
    hidden, target = span.hidden, tokens[:, 1:][real]
    for block in range(backbone.n_blocks):
        passed, stays = backbone.run(block, block + 1, hidden, span), kept[block].to(hidden.device)
        hidden = passed if stays.all() else torch.where(stays[:, None, None], passed, hidden)
        if weights[block] > 0:
            losses[block + 1] = F.cross_entropy(backbone.unembed(hidden[:, :-1][real]).float(), target)
    return losses


@torch.no_grad()
def read_exits(
    model: PreTrainedModel,
    sequences: Sequence[Tensor],
    *,
    loss_mask: Sequence[Tensor] | None = None,
    depths: Sequence[int] | None = None,
    batch_size: int = 4,
) -> pd.DataFrame:
    """Agreement and log-likelihood of the logit lens at each depth of texts.

    Args:
        depths: None for all, the model's end (the number of blocks) included.

    Returns:
        One row per sequence and depth: sequence, depth, tokens (positions that count and have a next), agreed (with the
        argmax of the last block), nats (summed -log probability of the next tokens). exp(Σ nats / Σ tokens) is the
        perplexity.
    """
    backbone, masks, rows = Backbone.of(model), positions_with_a_next(sequences, loss_mask), []
    depths = range(1, backbone.n_blocks + 1) if depths is None else depths
    for start in tqdm(range(0, len(sequences), batch_size), desc="reading exits", unit="batch"):
        tokens, real = pad(sequences[start : start + batch_size], masks[start : start + batch_size])
        tokens, real = tokens.to(model.device), real[:, :-1].to(model.device)
        states = backbone.states(tokens, sorted({*depths, backbone.n_blocks}))
        target, row = tokens[:, 1:][real], real.nonzero()[:, 0].cpu().numpy() + start
        choice = backbone.unembed(states[backbone.n_blocks][:, :-1][real]).argmax(-1)
        for depth in depths:
            logits = backbone.unembed(states[depth][:, :-1][real]).float()
            nats = F.cross_entropy(logits, target, reduction="none").cpu().numpy()
            agreed = (logits.argmax(-1) == choice).cpu().numpy()
            table = pd.DataFrame({"sequence": row, "depth": depth, "tokens": 1, "agreed": agreed, "nats": nats})
            rows.append(table.groupby(["sequence", "depth"], as_index=False).sum())
    if not rows:
        raise CorpusError("No sequences to read the exits on: expected at least one.")
    return pd.concat(rows, ignore_index=True).sort_values(["sequence", "depth"], ignore_index=True)


def positions_with_a_next(sequences: Sequence[Tensor], loss_mask: Sequence[Tensor] | None) -> list[Tensor]:
    """Masks of the positions that count and have a next token."""
    masks = [torch.ones(len(s), dtype=torch.bool) for s in sequences] if loss_mask is None else loss_mask
    return [mask & (torch.arange(len(mask)) < len(mask) - 1) for mask in masks]


def _batches(n: int, config: LayerSkipConfig, generator: torch.Generator) -> list[list[int]]:
    """Sequence numbers of each step: all in turn, each time reordered."""
    needed = config.steps * config.batch_size
    orders = [torch.randperm(n, generator=generator) for _ in range(math.ceil(needed / n))]
    return torch.cat(orders)[:needed].view(config.steps, config.batch_size).tolist()
