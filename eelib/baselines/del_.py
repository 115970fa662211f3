"""DEL (arXiv 2504.05598): exit and draft length with the best expected throughput."""

from dataclasses import dataclass
from typing import Any

import torch

from eelib.decoding.frontier import Frontier
from eelib.decoding.policies import Policy
from eelib.decoding.session import Session
from eelib.evaluation.weight_reads import WeightReads
from eelib.settings import COUNT, Number, settle


@dataclass(frozen=True)
class DEL(Policy):
    """Choose depth and draft length by expected tokens per cost.

    It maximises TPL = (1 - α^(d+1)) / (1 - α) over the cost of a round of d drafts. α, the probability that an exit's
    token is the model's, is estimated for every exit from shadow tokens: its predictions at the positions just verified
    (`DELSession` computes them), with counts decayed each round. DEL charges blocks only; here heads and unembedding
    count, too. Its second rule, which ends a draft below a confidence threshold, is omitted.

    Attributes:
        reads: cost of each component.
        n_blocks: of the model.
        max_draft: maximum drafts per round.
        memory: decay of the counts per round.
    """

    reads: WeightReads
    n_blocks: int
    max_draft: int = 8
    memory: float = 0.95

    def __post_init__(self):
        settle(self, n_blocks=COUNT, max_draft=COUNT, memory=Number(above=0, most=1))

    def exit_depths(self, head_depths):
        return tuple(head_depths)

    def start(self, prompt, head_depths):
        return {"right": dict.fromkeys(head_depths, 0.5), "seen": dict.fromkeys(head_depths, 1.0)} | {"depth": None}

    def draft_limit(self, state):
        best, state["depth"], length = 1 / (self.n_blocks * self.reads.block + self.reads.unembedding), None, 0
        for depth in state["seen"]:
            alpha = min(state["right"][depth] / state["seen"][depth], 1 - 1e-6)
            for drafts in range(1, self.max_draft + 1):
                tokens = (1 - alpha ** (drafts + 1)) / (1 - alpha)
                value = tokens / self.reads.fixed_exit_round(depth, self.n_blocks, drafts)
                if value > best:
                    best, state["depth"], length = value, depth, drafts
        return length

    def asks(self, state, depth, position):
        return depth == state["depth"]

    def exits(self, state, depth, logits, hidden, position):
        return True, float("nan")

    def shadow(self, state: Any, depth: int, right: int, seen: int) -> None:
        """Record how many of an exit's shadow tokens were the model's."""
        state["right"][depth] = self.memory * state["right"][depth] + right
        state["seen"][depth] = self.memory * state["seen"][depth] + seen


class _Recording(Frontier):
    """Frontier that keeps the states of each segment since the last verification."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.left: list[list[torch.Tensor]] = [[] for _ in range(self.n_segments)]

    def advance(self, segment):
        hidden = super().advance(segment)
        self.left[segment].append(hidden)
        return hidden


class DELSession(Session):
    """Verified decoding with shadow tokens of every exit, at their cost."""

    def make_frontier(self, capacity):
        return _Recording(self.backbone, self.exit_depths, capacity, self.exact)

    def verify(self, prefix):
        logits = super().verify(prefix)
        own = logits.argmax(-1)
        right = prefix[0, self.tokens.shape[1] :][: len(own) - 1] == own[:-1]
        after = int(right.long().cumprod(0).sum()) + 1  # positions behind right drafts only
        for segment, depth in enumerate(self.exit_depths):
            hidden = torch.cat(self.frontier.left[segment], dim=1)[0, -len(own) :][:after]
            tokens = self.heads[depth].drafted_tokens(self.heads[depth].logits(depth, hidden))
            self.head_positions[depth] += after
            self.policy.shadow(self.policy_state, depth, int((tokens == own[:after]).sum()), after)
        self.frontier.left = [[] for _ in self.frontier.left]
        return logits

    def emit_full(self):
        super().emit_full()
        self.frontier.left = [[] for _ in self.frontier.left]
