"""What running costs: parameters and weights read per piece of the model, and from them the cost of a round.

The unit is one pass of the whole model over one position, by weights read: at batch 1 decoding waits for memory, and a
few positions in one call read the weights once. It is a count, so it is the same on every machine and in every run;
what the clock says is measured beside it, never derived from it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from eelib.backbone.kv_cache import KVCache
from eelib.backbone.segments import Backbone
from eelib.decoding.session import DecodingStats
from eelib.evaluation.replay import Work
from eelib.heads.exit_heads import ExitHeads


@dataclass(frozen=True)
class Costs:
    """Weights read by one call of each piece, as shares of one pass of the whole model (blocks and unembedding).

    block: one block. unembedding: final norm and unembedding. heads: each head, by depth.
    """

    block: float
    unembedding: float
    heads: dict[int, float]

    def fixed_exit_round(self, depth: int, n_blocks: int, draft_length: int) -> float:
        """One round of `FixedExit`: a pass to `depth` and its head per draft, one more to there for the last draft,
        and one call of the rest and of the unembedding that verifies."""
        drafting = (draft_length + 1) * depth * self.block + draft_length * self.heads[depth]
        return drafting + (n_blocks - depth) * self.block + self.unembedding

    def passes(self, work: Work) -> float:
        """What decoding read, in passes of the whole model; plain decoding costs 1 a token, prefill 1."""
        shares = {
            "blocks": lambda first, last, _: (last - first) * self.block,
            "head": lambda depth: self.heads[depth],
            "unembedding": lambda _: self.unembedding,
            "prefill": lambda _: 1.0,
            "span": lambda _: 0.0,
        }
        return sum(shares[piece](*of) * times for (piece, *of), times in work.calls.items())


def costs(model: PreTrainedModel, heads: ExitHeads) -> Costs:
    """The costs of a model and its heads. A head that reads out through the model's unembedding is charged for it."""
    backbone = Backbone.of(model)
    block = _weights(backbone.blocks) / backbone.n_blocks
    unembedding = backbone.unembedding.weight.numel()
    whole = backbone.n_blocks * block + unembedding
    return Costs(block / whole, unembedding / whole, {d: heads.weights(d)[1] / whole for d in heads.depths})


def decoding_cost(costs: Costs, stats: DecodingStats) -> float:
    """What a decoding run read, in passes of the whole model; plain decoding costs 1 a token."""
    heads = sum(costs.heads[depth] * asked for depth, asked in stats.head_positions.items())
    return sum(stats.block_calls) * costs.block + heads + stats.block_calls[-1] * costs.unembedding


@torch.no_grad()
def inventory(model: PreTrainedModel, heads: ExitHeads) -> pd.DataFrame:
    """What the pieces weigh and compute. One row a piece: piece (`blocks`, `unembedding`, `head at 6`, ...); parameters
    (a head's own; rows that it shares with the unembedding count there); bytes (of the weights that one call reads);
    flops (of one position, by torch's counter: matrix products and attention over one key); kv_bytes (kept for every
    position)."""
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
    for depth in heads.depths:
        own, read = heads.weights(depth)
        flops = _flops(lambda depth=depth: heads.logits(depth, hidden))
        rows.append((f"head at {depth}", own, read * size, flops, 0))
    return pd.DataFrame(rows, columns=["piece", "parameters", "bytes", "flops", "kv_bytes"])


def _flops(call: Callable) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
