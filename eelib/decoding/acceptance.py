"""Accepting drafts: how a token is drawn from scores, and a draft judged, greedily or by speculative sampling.

Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): a draft x drawn from q is
accepted with probability min(1, p(x) / q(x)); where it is not, the token is drawn from the positive part of p - q. What
stands then is distributed as p, whatever q was, provided that q and the choice to draft at all were fixed before x was.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Draft:
    """A token that the full model is to judge.

    depth: of the head that drafted it; 0 where it was looked up in the text.
    score: of the exit.
    probabilities: what it was drawn from, [vocab]; None where it was not drawn: the likeliest, or looked up.
    final: the head's guess at what the unembedding will read (`ExitHeads.final`).
    """

    token: int
    depth: int
    score: float
    probabilities: Tensor | None = None
    final: Tensor | None = None


class Greedy:
    """The token with the highest score, always."""

    def draw(self, scores: Float[Tensor, "1 vocab"]) -> tuple[int, None]:
        return scores.argmax(-1).item(), None

    def judge(self, draft: Draft, scores: Float[Tensor, "1 vocab"]) -> int:
        """The token that stands where `draft` was: the draft's own if it is accepted, else a correction."""
        return scores.argmax(-1).item()


class Sampling:
    """Draws from the softmax of the scores, with torch's global generator, as transformers does: seed it there."""

    def draw(self, scores: Float[Tensor, "1 vocab"]) -> tuple[int, Tensor]:
        probabilities = scores.softmax(-1)[0]
        return torch.multinomial(probabilities, 1).item(), probabilities

    def judge(self, draft: Draft, scores: Float[Tensor, "1 vocab"]) -> int:
        """The token that stands where `draft` was: the draft's own if it is accepted, else a correction."""
        p, q = scores.softmax(-1)[0], draft.probabilities
        if q is None:
            q = F.one_hot(torch.tensor(draft.token, device=p.device), len(p))
        if torch.rand((), device=p.device) * q[draft.token] < p[draft.token]:
            return draft.token
        rest = (p - q).clamp(min=0)
        # p = q up to rounding: then nothing is left over, and x was rejected by rounding alone
        return torch.multinomial(rest if rest.sum() > 0 else p, 1).item()
