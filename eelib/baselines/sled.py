"""SLED (arXiv 2411.02433): final logits evolved by contrast with early layers.

For factuality.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.backbone.segments import Backbone
from eelib.decoding.policies import Policy
from eelib.decoding.session import Session
from eelib.errors import InvalidInputError
from eelib.heads.exit_heads import ExitHeads

if TYPE_CHECKING:
    from eelib.evaluation.harness_model import LogitsLM

FLOOR = -1000.0
"""Logit of tokens outside the most likely ones."""


def evolve_logits(
    final: Float[Tensor, "... vocab"],
    early: Sequence[Float[Tensor, "... vocab"]],
    *,
    rate: float = 2.0,
    k: int = 10,
    steps: int = 1,
) -> Float[Tensor, "... vocab"]:
    """Evolved logits, float32, over the k most likely tokens; FLOOR elsewhere.

    Of an early layer's logits z_n and the final ones z_N, max(0, cos(softmax(z_n) - e_i, z_n - z_N))² is the layer's
    support for token i; normalised within each layer, and with layers weighed by their sums, this is a distribution P,
    and z <- z - rate (1 - t / T) (softmax(z) - P) for t = 0, ..., T - 1.

    Args:
        early: logits of each early layer, over the whole vocabulary.
        rate: α.
        k: number of tokens.
        steps: T (10 for TruthfulQA, else 1).
    """
    if not early:
        raise InvalidInputError("early=[]: expected the logits of at least one earlier layer.")
    final = final.float()
    top = final.topk(k, dim=-1).indices
    votes = []
    for logits in early:
        logits = logits.float()
        p, difference = logits.softmax(-1), logits - final
        p_top = p.gather(-1, top)
        dot = (p * difference).sum(-1, keepdim=True) - difference.gather(-1, top)
        length = ((p * p).sum(-1, keepdim=True) - 2 * p_top + 1).sqrt() * difference.norm(dim=-1, keepdim=True)
        votes.append((dot / length.clamp_min(1e-12)).clamp_min(0) ** 2)
    votes = torch.stack(votes)  # [layer, ..., k]
    strength = votes.sum(-1, keepdim=True)
    weight = strength / strength.sum(0, keepdim=True).clamp_min(1e-12)
    latent = (weight * votes / strength.clamp_min(1e-12)).sum(0)
    heard = latent.sum(-1, keepdim=True) > 0  # layers that hold nothing against the last change nothing
    evolved = final.clone()
    for step in range(steps):
        p_top = evolved.softmax(-1).gather(-1, top)
        move = rate * (1 - step / steps) * (p_top - latent)
        evolved.scatter_(-1, top, evolved.gather(-1, top) - torch.where(heard, move, torch.zeros_like(move)))
    return torch.full_like(final, FLOOR).scatter(-1, top, evolved.gather(-1, top))


@dataclass(frozen=True)
class SLED(Policy):
    """Policy of SLED: never exits; `SLEDSession` reads the exits.

    Attributes:
        depths: of the exits to read; None for all of the heads (without heads, all).
        rate, k, steps: as in `evolve_logits`.
    """

    depths: tuple[int, ...] | None = None
    rate: float = 2.0
    k: int = 10
    steps: int = 1

    def exit_depths(self, head_depths):
        return tuple(head_depths) if self.depths is None else self.depths


class SLEDSession(Session):
    """Decoding by evolved logits.

    `eelib.generate(..., policy=SLED(), verify=False, session=SLEDSession)`. Every exit is read over the whole
    vocabulary for every token.
    """

    def draft(self, prefix):
        return None

    def emit_full(self):
        early = []
        for segment, depth in enumerate(self.exit_depths):
            hidden = self.frontier.advance(segment)[:, -1]
            early.append(self.heads[depth].full_logits(depth, hidden))
            self.head_positions[depth] += 1
        final = self.frontier.unembed(self.frontier.complete()[:, -1:])[0]
        settings = {"rate": self.policy.rate, "k": self.policy.k, "steps": self.policy.steps}
        self.emit(self.rule.draw(self.scores(self.tokens, evolve_logits(final, early, **settings)))[0])


def sled_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    exits: ExitHeads,
    *,
    rate: float = 2.0,
    k: int = 10,
    steps: int = 10,
    **settings,
) -> "LogitsLM":
    """Model for lm-evaluation-harness that scores texts by evolved logits.

    Needs the extra `bench`.

    Args:
        exits: layers to read; heads of kind `none` use the model's logit lens, as SLED does.
        rate, k, steps: as in `evolve_logits`; the paper takes 10 steps for TruthfulQA.
        settings: the harness's own (`batch_size`, `max_length`).
    """
    from eelib.evaluation.harness_model import LogitsLM

    backbone = Backbone.of(model)

    def logits(tokens: Tensor) -> Tensor:
        states = backbone.states(tokens, [*exits.depths, backbone.n_blocks])
        early = [exits.full_logits(depth, states[depth]) for depth in exits.depths]
        return evolve_logits(backbone.unembed(states[backbone.n_blocks]), early, rate=rate, k=k, steps=steps)

    return LogitsLM(model, tokenizer, logits, **settings)
