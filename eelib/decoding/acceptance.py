"""Acceptance of drafts, greedily or by speculative sampling.

Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): a draft x drawn from q is
accepted with probability min(1, p(x) / q(x)); otherwise a token is drawn from the positive part of p - q. The result is
distributed as p, whatever q, provided that q and the choice to draft at all were fixed before x was.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from eelib.errors import InvalidInputError


@dataclass(frozen=True)
class Draft:
    """Drafted token, for the full model to judge.

    Attributes:
        token: its id.
        depth: of the head that drafted it; 0 for lookup.
        score: confidence at the exit.
        probabilities: distribution it was drawn from, [vocab]; None if it was not drawn but the argmax, or looked up.
        final: the head's prediction of the unembedding's input (`ExitHeads.final`).
        asked: heads that were asked for it.
        ends: whether the text would end with it.
    """

    token: int
    depth: int
    score: float
    probabilities: Tensor | None = None
    final: Tensor | None = None
    asked: int = 0
    ends: bool = False


class Greedy:
    """Greedy decoding: always the token with the highest score."""

    def draw(self, scores: Float[Tensor, "1 vocab"]) -> tuple[int, None]:
        return scores.argmax(-1).item(), None

    def judge(self, draft: Draft, scores: Float[Tensor, "1 vocab"]) -> int:
        """The final token: the draft if accepted, else a correction."""
        return scores.argmax(-1).item()


class Sampling:
    """Sampling from the softmax.

    generator: what it draws with; None for torch's global one, as in transformers.
    """

    def __init__(self, generator: torch.Generator | None = None):
        self.generator = generator

    def draw(self, scores: Float[Tensor, "1 vocab"]) -> tuple[int, Tensor]:
        probabilities = scores.softmax(-1)[0]
        return self._drawn(probabilities), probabilities

    def judge(self, draft: Draft, scores: Float[Tensor, "1 vocab"]) -> int:
        """The final token: the draft if accepted, else a correction."""
        p, q = scores.softmax(-1)[0], draft.probabilities
        if q is None:
            q = F.one_hot(torch.tensor(draft.token, device=p.device), len(p))
        if torch.rand((), device=p.device, generator=self.generator) * q[draft.token] < p[draft.token]:
            return draft.token
        rest = (p - q).clamp(min=0)
        # p = q up to rounding: then nothing is left over, and x was rejected by rounding alone
        return self._drawn(rest if rest.sum() > 0 else p)

    def _drawn(self, weights: Float[Tensor, " vocab"]) -> int:
        try:
            return torch.multinomial(weights, 1, generator=self.generator).item()
        except RuntimeError as error:
            raise InvalidInputError(
                "Nothing to sample from: scores are NaN or infinite, of the model or after the logits processors "
                f"({error})."
            ) from error
