"""Draft & Verify (arXiv 2309.08168): drafting stops at an adaptive confidence threshold.

The threshold moves after every round towards a target acceptance rate.
"""

from dataclasses import dataclass

from eelib.confidence.metrics import confidence
from eelib.decoding.policies import FixedExit
from eelib.settings import SHARE, settle


@dataclass(frozen=True)
class DraftVerify(FixedExit):
    """Draft at one depth while max_prob is at least γ.

    After a round with acceptance a: A <- memory · A + (1 - memory) · a; γ goes up by `step` where A < target, else
    down; and γ <- smoothing · γ + (1 - smoothing) · (the moved one). Draft & Verify itself drafts by skipping middle
    blocks found by a search; here an exit drafts, and only the rule is compared.

    Attributes:
        target: acceptance rate.
        start_at: initial γ.
        step: change of γ a round.
        memory: of the acceptance rate.
        smoothing: of γ.
    """

    target: float = 0.9
    start_at: float = 0.6
    step: float = 0.01
    memory: float = 0.5
    smoothing: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        settle(self, **dict.fromkeys(("target", "start_at", "step", "memory", "smoothing"), SHARE))

    def start(self, prompt, head_depths):
        return {"threshold": self.start_at, "acceptance": self.target}

    def exits(self, state, depth, logits, hidden, position):
        score = confidence(logits, ("max_prob",))["max_prob"].item()
        return score >= state["threshold"], score

    def observe(self, state, outcome):
        drafted, accepted = outcome.drafted, outcome.accepted
        if not drafted:
            moved = state["threshold"] - self.step  # nothing drafted shows nothing: try a little looser
        else:
            state["acceptance"] = self.memory * state["acceptance"] + (1 - self.memory) * accepted / drafted
            moved = state["threshold"] + (self.step if state["acceptance"] < self.target else -self.step)
        state["threshold"] = self.smoothing * state["threshold"] + (1 - self.smoothing) * min(max(moved, 0.0), 1.0)
