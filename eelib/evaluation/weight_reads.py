"""Weights read by decoding: a cost independent of machine and run.

The unit is one pass of the whole model: at batch 1 decoding is bound by memory, and a few positions in one call read
the weights once. Measured seconds are reported beside it, never derived from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from eelib.backbone.kv_cache import KVCache
from eelib.backbone.segments import Backbone
from eelib.decoding.output import DecodingOutput, DecodingStats
from eelib.evaluation.replay import Work
from eelib.heads.exit_heads import ExitHeads


@dataclass(frozen=True)
class WeightReads:
    """Weights that one call of each component reads.

    In passes of the whole model.

    Attributes:
        block: one block.
        unembedding: final norm and unembedding.
        heads: each head, by depth.
    """

    block: float
    unembedding: float
    heads: dict[int, float]

    @classmethod
    def of(cls, model: PreTrainedModel, heads: ExitHeads) -> "WeightReads":
        """Of a model and its heads.

        A head that uses the unembedding is charged for it.
        """
        backbone = Backbone.of(model)
        block = _weights(backbone.blocks) / backbone.n_blocks
        unembedding = backbone.unembedding.weight.numel()
        whole = backbone.n_blocks * block + unembedding
        return cls(block / whole, unembedding / whole, {d: heads.weights(d)[1] / whole for d in heads.depths})

    def fixed_exit_round(self, depth: int, n_blocks: int, draft_length: int) -> float:
        """One round of `FixedExit`.

        A pass to `depth` and its head per draft, another pass for the last draft, and one call of the rest and the
        unembedding to verify.
        """
        drafting = (draft_length + 1) * depth * self.block + draft_length * self.heads[depth]
        return drafting + (n_blocks - depth) * self.block + self.unembedding

    def passes(self, work: Work) -> float:
        """Weights read by replayed decoding, in passes of the whole model.

        Plain decoding reads 1 per token, prefill 1.
        """
        shares = {
            "blocks": lambda first, last, _: (last - first) * self.block,
            "head": lambda depth: self.heads[depth],
            "unembedding": lambda _: self.unembedding,
            "prefill": lambda _: 1.0,
            "span": lambda _: 0.0,
        }
        return sum(shares[piece](*of) * times for (piece, *of), times in work.calls.items())

    def passes_of_run(self, stats: DecodingStats) -> float:
        """Weights read by a decoding run, in passes of the whole model.

        Plain decoding reads 1 per token.
        """
        heads = sum(self.heads[depth] * asked for depth, asked in stats.head_positions.items())
        return sum(stats.block_calls) * self.block + heads + stats.block_calls[-1] * self.unembedding


def emitted_depths(output: DecodingOutput) -> Int[np.ndarray, " token"]:
    """Depth at which each new token was decided.

    The number of blocks for the full model, 0 for lookup.
    """
    trace = output.trace
    return trace.depth[~trace.drafted | trace.accepted].to_numpy(int)


def exit_costs(runs: pd.DataFrame, reads: WeightReads) -> pd.DataFrame:
    """Blocks run and weights read per token, mean over all prompts.

    Args:
        runs: from `compare`; the first repeat counts.

    Returns:
        One row per decoder: decoder, generated_blocks (share of all blocks below the exit), passes_per_token (weights
        read, in passes of the whole model) and coverage (share of tokens that exit early).
    """
    rows = []
    for name, outputs in _outputs(runs):
        n_blocks, depths = len(outputs[0].stats.block_calls), np.concatenate([emitted_depths(out) for out in outputs])
        rows.append({
            "decoder": name, "generated_blocks": depths.mean() / n_blocks,
            "passes_per_token": sum(reads.passes_of_run(out.stats) for out in outputs) / len(depths),
            "coverage": (depths < n_blocks).mean(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def exit_shares(runs: pd.DataFrame, depths: Sequence[int]) -> pd.DataFrame:
    """Share of new tokens decided at each depth, over all prompts.

    Args:
        runs: from `compare`; the first repeat counts.
        depths: of the heads, and the number of blocks for the full model.

    Returns:
        One row per decoder: decoder, and share_{depth} for each depth.
    """
    rows = []
    for name, outputs in _outputs(runs):
        found = np.concatenate([emitted_depths(out) for out in outputs])
        rows.append({"decoder": name} | {f"share_{depth}": (found == depth).mean() for depth in depths})
    return pd.DataFrame(rows)


def _outputs(runs: pd.DataFrame) -> list[tuple[str, list[DecodingOutput]]]:
    first = runs[runs.repeat == 0]
    return [(name, list(table.output)) for name, table in first.groupby("decoder", sort=False)]


@torch.no_grad()
def inventory(model: PreTrainedModel, heads: ExitHeads) -> pd.DataFrame:
    """Size and compute of the model's components, one row each.

    Columns: piece (`blocks`, `unembedding`, `head at 6`, ...); parameters (a head's own; rows shared with the
    unembedding count there); bytes (of the weights that one call reads); flops (of one position, by torch's counter:
    matrix products and attention over one key); kv_bytes (kept for every position).
    """
    backbone = Backbone.of(model)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    hidden = torch.zeros(1, 1, backbone.hidden_size, dtype=model.dtype, device=model.device)
    cache, size = KVCache(model.config, 1), model.dtype.itemsize
    span = backbone.capture(token, 0, cache)
    flops = _flops(lambda: backbone.run(0, backbone.n_blocks, span.hidden, span))
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    unembedding = backbone.unembedding.weight.numel()
    rows = [
        ("blocks", _weights(backbone.blocks), _weights(backbone.blocks) * size, flops, kept),
        ("unembedding", unembedding, unembedding * size, _flops(lambda: backbone.unembed(hidden)), 0),
    ]
    previous = backbone.normalise(hidden) if heads.reads_previous else None
    for depth in heads.depths:
        own, read = heads.weights(depth)
        flops = _flops(lambda depth=depth: heads.logits(depth, hidden, previous))
        rows.append((f"head at {depth}", own, read * size, flops, 0))
    return pd.DataFrame(rows, columns=["piece", "parameters", "bytes", "flops", "kv_bytes"])


def _flops(call: Callable) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
