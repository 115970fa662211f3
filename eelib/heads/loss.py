"""Distillation loss of the heads: to say what the model says, over all their classes or a sample of them."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from eelib.backbone.teacher import TeacherOutputs
from eelib.heads.exit_heads import ExitHeads

LOSSES = ("kl", "cross_entropy")
LIKELIEST = 8
"""So many classes of each token, the likeliest to the model, are always in a sampled loss."""


class DistillationLoss:
    """The loss of all heads on some teacher outputs.

    Args:
        loss: one of LOSSES.
        sampled_classes: None for a loss over all classes. Else it runs over the LIKELIEST of each token
            and so many of the other classes, drawn uniformly, each standing for as many as were passed over: an
            estimate of the normaliser by importance sampling (Bengio & Senecal 2008), in a fraction of the time.
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
        """The loss of the head at `depth`, summed over tokens [nats]; how many tokens it names as the model does (NaN
        without `agreement`: beside a sampled loss that takes a pass of its own); and its `final`.

        Args:
            previous: as in `ExitHeads.final`.
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
    """The tokens in the loss, the logarithm of how many classes each class in it stands for, and the target over them.

    other: whether the last class is "other", which is always in the loss.
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
