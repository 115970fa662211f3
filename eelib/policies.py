"""Policies: at which exit a token is drafted, and how many drafts are made before the model verifies them.

A policy is frozen; what changes during one call lives in the state that `start` makes. To write one, subclass
`Policy` and give what differs: any rule that reads the prompt, the depth, the head's logits, the hidden state or the
position, or that learns from the rounds so far, fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from eelib.calibration import Calibration
from eelib.confidence import check_metric, confidence
from eelib.errors import HeadsError, InvalidInputError


class Policy:
    """The protocol, and its trivial answers: never exit."""

    max_draft: int = 1
    """Drafts per round at most. Without verification there are no rounds, and this has no effect."""

    def cuts(self, head_depths: Sequence[int]) -> tuple[int, ...]:
        """The depths, ascending, at which a head shall be asked.

        Raises:
            HeadsError: the heads given do not fit the policy.
        """
        return ()

    def start(self, prompt: Int[Tensor, "1 position"], head_depths: Sequence[int]) -> Any:
        """The state of one call."""
        return None

    def exits(
        self,
        state: Any,
        depth: int,
        logits: Float[Tensor, "1 classes"],
        hidden: Float[Tensor, "1 hidden"],
        position: int,
    ) -> tuple[bool, float]:
        """Whether the token after `position` is drafted at `depth`, and the score that decided (NaN where none did).

        `logits` are the head's raw ones. To keep sampling unbiased, decide from the prefix and earlier rounds only.
        """
        return False, float("nan")

    def observe(self, state: Any, drafted: int, accepted: int) -> None:
        """Told after each round how it went."""


@dataclass(frozen=True)
class Never(Policy):
    """The full model speaks every token."""


@dataclass(frozen=True)
class FixedExit(Policy):
    """Every draft comes from one depth, and rounds have one length: LayerSkip's decoding (arXiv 2404.16710).

    Without heads the model's own norm and unembedding read the state there.
    """

    depth: int
    draft_length: int

    def __post_init__(self):
        for name in ("depth", "draft_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInputError(f"{name}={value!r}: expected a positive whole number.")

    @property
    def max_draft(self) -> int:
        return self.draft_length

    def cuts(self, head_depths: Sequence[int]) -> tuple[int, ...]:
        if self.depth not in head_depths:
            raise HeadsError(f"FixedExit(depth={self.depth}): the heads given are at depths {list(head_depths)}.")
        return (self.depth,)

    def exits(self, state, depth, logits, hidden, position):
        return True, float("nan")


@dataclass(frozen=True)
class Confidence(Policy):
    """The first head whose score reaches its threshold speaks: DSSD when verified, plain early exit when not.

    metric: the score.
    thresholds: one a head, in the order of their depths; `None` = that head is never asked.
    max_draft: drafts per round at most. A round ends sooner where no head is sure.
    depths: the heads' depths, where known, so that thresholds cannot be used with other heads.
    """

    metric: str
    thresholds: tuple[float | None, ...]
    max_draft: int = 16
    depths: tuple[int, ...] | None = None

    def __post_init__(self):
        check_metric(self.metric)
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        for threshold in self.thresholds:
            if threshold is not None and (isinstance(threshold, bool) or not threshold == threshold):
                raise InvalidInputError(f"thresholds={list(self.thresholds)}: expected numbers or None.")
        if not isinstance(self.max_draft, int) or self.max_draft < 1:
            raise InvalidInputError(f"max_draft={self.max_draft!r}: expected a positive whole number.")

    @classmethod
    def from_calibration(cls, calibration: Calibration, max_draft: int = 16) -> "Confidence":
        """The policy that uses a calibration's metric and thresholds."""
        return cls(calibration.metric, calibration.thresholds, max_draft, calibration.depths)

    def cuts(self, head_depths: Sequence[int]) -> tuple[int, ...]:
        if len(self.thresholds) != len(head_depths):
            raise HeadsError(
                f"{len(self.thresholds)} thresholds for {len(head_depths)} heads at depths {list(head_depths)}: "
                "expected one threshold (or None) a head."
            )
        if self.depths is not None and tuple(self.depths) != tuple(head_depths):
            raise HeadsError(f"Calibrated for depths {list(self.depths)}, used with heads at {list(head_depths)}.")
        return tuple(d for d, t in zip(head_depths, self.thresholds, strict=True) if t is not None)

    def start(self, prompt, head_depths):
        return dict(zip(head_depths, self.thresholds, strict=True))

    def exits(self, state, depth, logits, hidden, position):
        score = confidence(logits, (self.metric,))[self.metric].item()
        return score >= state[depth], score
