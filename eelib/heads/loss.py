"""Distillation loss of heads, over all classes or a sample of them."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from eelib.backbone.teacher import TeacherOutputs
from eelib.heads.exit_heads import ExitHeads

LOSSES = ("kl", "cross_entropy")
LIKELIEST = 8
"""Number of each token's likeliest classes that are always in a sampled loss."""


class DistillationLoss:
    """Loss of all heads on some teacher outputs.

    Args:
        loss: one of LOSSES.
        sampled_classes: number of random classes besides the LIKELIEST of each token, each standing for as many as were
            skipped: an importance-sampling estimate of the normaliser (Bengio & Senecal 2008), in a fraction of the
            time. None for the exact loss.
        seed: of the draw.
    """

    def __init__(
        self,
        heads: ExitHeads,
        outputs: TeacherOutputs,
        loss: str = "kl",
        sampled_classes: int | None = None,
        seed: int = 0,
    ):
        self.heads, self.outputs = heads, outputs
        target = heads.teacher_probabilities(outputs)
        if loss == "cross_entropy":
            target = F.one_hot(target.argmax(-1), target.shape[-1]).float()
        self.tokens, self.weight = None, target.new_zeros(())
        if sampled_classes is not None:
            self.tokens, self.weight, target = _sample(target, heads.draft_tokens is not None, sampled_classes, seed)
        self.target = target
        self._entropy = torch.special.entr(target).sum()

    def of_head(
        self, depth: int, previous: Float[Tensor, "token width"] | None = None, agreement: bool = True
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "token width"]]:
        """Summed loss [nats], number of agreeing tokens, and `final` of a head.

        Args:
            previous: as in `ExitHeads.final`.
            agreement: whether to count agreement, which takes an extra pass with a sampled loss; else it is NaN.
        """
        final = self.heads.final(depth, self.outputs.states[depth], previous)
        logits = self.heads.read(depth, final, self.tokens).float()
        # Cross-entropy less the target's own entropy, which has no gradient, is KL.
        loss = F.cross_entropy(logits + self.weight, self.target, reduction="sum") - self._entropy
        if not agreement:
            return loss, loss.new_tensor(float("nan")), final
        if self.tokens is not None:
            with torch.no_grad():
                logits = self.heads.read(depth, final)
        return loss, (self.heads.drafted_tokens(logits.detach()) == self.outputs.argmax).sum().float(), final


def _sample(
    target: Float[Tensor, "token classes"], other: bool, n: int, seed: int
) -> tuple[Int[Tensor, " chosen"], Float[Tensor, " sampled"], Float[Tensor, "token sampled"]]:
    """Classes in the loss, their log weights, and the target over them.

    A weight is the number of classes that one stands for.

    Args:
        other: whether the last class is "other", which is always included.
    """
    of_tokens = target[:, :-1] if other else target
    likely = torch.zeros(of_tokens.shape[1], dtype=torch.bool, device=target.device)
    likely[of_tokens.topk(min(LIKELIEST, of_tokens.shape[1]), sorted=False).indices.flatten()] = True
    rest = (~likely).nonzero()[:, 0]
    n = min(n, len(rest))
    drawn = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:n].to(rest.device)]
    tokens = torch.cat([likely.nonzero()[:, 0], drawn])
    weight = target.new_zeros(len(tokens) + other)
    weight[len(tokens) - n : len(tokens)] = math.log(len(rest) / n) if n else 0.0
    classes = torch.cat([tokens, tokens.new_tensor([target.shape[1] - 1])]) if other else tokens
    sampled = target[:, classes] * weight.exp()
    return tokens, weight, sampled / sampled.sum(-1, keepdim=True)
