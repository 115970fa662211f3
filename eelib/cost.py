"""What running costs: parameters and weights read per piece of the model, and from them the cost of a round.

The unit is one pass of the whole model over one position, by weights read: at batch 1 decoding waits for memory, and a
few positions in one call read the weights once. It is a count, so it is the same on every machine and in every run;
what the clock says is measured beside it, never derived from it.
"""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from eelib.backbone import Backbone
from eelib.decoding import DecodingStats
from eelib.heads import ExitHeads


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


def costs(model: PreTrainedModel, heads: ExitHeads) -> Costs:
    """The costs of a model and its heads. A head that reads out through the model's unembedding is charged for it."""
    backbone = Backbone.of(model)
    block = _weights(backbone.blocks) / backbone.n_blocks
    unembedding = backbone.unembedding.weight.numel()
    whole = backbone.n_blocks * block + unembedding
    shared = 0 if heads.config.kind == "linear" else unembedding
    if heads.draft_tokens is not None:
        shared = len(heads.draft_tokens) * backbone.unembedding.weight.shape[1]
    own = {depth: _weights(heads.maps[str(depth)]) for depth in heads.depths}
    return Costs(block / whole, unembedding / whole, {d: (own[d] + shared) / whole for d in heads.depths})


def decoding_cost(costs: Costs, stats: DecodingStats) -> float:
    """What a decoding run read, in passes of the whole model; plain decoding costs 1 a token."""
    heads = sum(costs.heads[depth] * asked for depth, asked in stats.head_positions.items())
    return sum(stats.block_calls) * costs.block + heads + stats.block_calls[-1] * costs.unembedding


def _weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
