"""Draft & Verify's adaptive threshold (arXiv 2309.08168): drafting stops where confidence falls below a threshold that
is moved after every round so that a given share of drafts is accepted."""

from dataclasses import dataclass

from eelib.confidence.metrics import confidence
from eelib.decoding.policies import FixedExit
from eelib.settings import SHARE, settle


@dataclass(frozen=True)
class DraftVerify(FixedExit):
    """Drafts at one depth while max_prob is at least γ, up to `draft_length` tokens a round.

    After a round with acceptance a: A <- memory · A + (1 - memory) · a; γ goes up by `step` where A < target, else
    down; and γ <- smoothing · γ + (1 - smoothing) · (the moved one). Draft & Verify itself drafts by leaving out blocks
    in the middle that it searches for; here an exit drafts, and the rule is what is compared.
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

    def observe(self, state, drafted, accepted):
        if not drafted:
            moved = state["threshold"] - self.step  # nothing drafted shows nothing: try a little looser
        else:
            state["acceptance"] = self.memory * state["acceptance"] + (1 - self.memory) * accepted / drafted
            moved = state["threshold"] + (self.step if state["acceptance"] < self.target else -self.step)
        state["threshold"] = self.smoothing * state["threshold"] + (1 - self.smoothing) * min(max(moved, 0.0), 1.0)
