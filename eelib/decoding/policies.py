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

from eelib.calibration.thresholds import Calibration
from eelib.confidence.metrics import check_metric, confidence
from eelib.errors import HeadsError, InvalidInputError
from eelib.heads.exit_heads import ExitHeads


class Policy:
    """The protocol, and its trivial answers: never exit.

    Sampling stays unbiased as long as every answer depends on the prefix and on earlier rounds only.
    """

    def exit_depths(self, head_depths: Sequence[int]) -> tuple[int, ...]:
        """The depths, ascending, at which a head may be asked. Where the heads given have none, the model's own norm
        and unembedding read the state. The number of blocks may be among them: the full model speaks there.

        Raises:
            HeadsError: the heads given do not fit the policy.
        """
        return ()

    def check(self, heads: ExitHeads | None) -> None:
        """Raises HeadsError where these are not the heads that the policy was made for."""

    def start(self, prompt: Int[Tensor, "1 position"], head_depths: Sequence[int]) -> Any:
        """The state of one call."""
        return None

    def draft_limit(self, state: Any) -> int:
        """Most drafts in the round that begins; 0: the full model speaks. Not asked without verification."""
        return 1

    def asks(self, state: Any, depth: int, position: int) -> bool:
        """Whether the head at `depth` is run for the token after `position`."""
        return True

    def exits(
        self,
        state: Any,
        depth: int,
        logits: Float[Tensor, "1 classes"],
        hidden: Float[Tensor, "1 hidden"],
        position: int,
    ) -> tuple[bool, float]:
        """Whether the token after `position` is drafted at `depth`, and the score that decided (NaN where none did).

        `logits` are the head's raw ones, before any logits processor.
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
        check_positive("depth", self.depth)
        check_positive("draft_length", self.draft_length)

    def exit_depths(self, head_depths: Sequence[int]) -> tuple[int, ...]:
        if self.depth not in head_depths:
            raise HeadsError(f"FixedExit(depth={self.depth}): the heads given are at depths {list(head_depths)}.")
        return (self.depth,)

    def draft_limit(self, state):
        return self.draft_length

    def exits(self, state, depth, logits, hidden, position):
        return True, float("nan")


@dataclass
class _Rounds:
    """What `Confidence` knows of the rounds so far. limit: drafts in the next one. pause: rounds to sit out."""

    thresholds: dict[int, float | None]
    limit: int
    misses: int = 0
    pause: int = 0


@dataclass(frozen=True)
class Confidence(Policy):
    """The first head whose score reaches its threshold speaks: DSSD when verified, plain early exit when not.

    metric: the score.
    thresholds: one a head, in the order of their depths; `None` = that head is never asked.
    max_draft: drafts per round at most. A round ends sooner where no head is sure.
    depths: the heads' depths, where known, so that thresholds cannot be used at others.
    heads_fingerprint: of the heads that the thresholds were calibrated for, where known; others are refused.
    back_off: whether rounds begin short, double while all drafts are accepted, and stop for 1, 3, 7, ... rounds after
        the second, third, fourth, ... round in a row of which nothing was accepted. Confident heads that are wrong then
        cost little. Without it every round may draft `max_draft` tokens, as in the paper.
    """

    metric: str
    thresholds: tuple[float | None, ...]
    max_draft: int = 16
    depths: tuple[int, ...] | None = None
    back_off: bool = True
    heads_fingerprint: str | None = None

    def __post_init__(self):
        check_metric(self.metric)
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        for threshold in self.thresholds:
            if threshold is not None and (isinstance(threshold, bool) or not threshold == threshold):
                raise InvalidInputError(f"thresholds={list(self.thresholds)}: expected numbers or None.")
        check_positive("max_draft", self.max_draft)

    @classmethod
    def from_calibration(
        cls, calibration: Calibration, max_draft: int = 16, back_off: bool = True, deepest: int | None = None
    ) -> "Confidence":
        """The policy that uses a calibration's metric and thresholds; with `deepest`, heads at greater depths are not
        asked."""
        thresholds = calibration.thresholds
        if deepest is not None:
            asked = zip(calibration.depths, thresholds, strict=True)
            thresholds = tuple(threshold if depth <= deepest else None for depth, threshold in asked)
        given = calibration.metric, thresholds, max_draft, calibration.depths, back_off
        return cls(*given, heads_fingerprint=calibration.heads_fingerprint)

    def check(self, heads):
        if self.heads_fingerprint is None:
            return
        found = None if heads is None else heads.fingerprint()
        if found != self.heads_fingerprint:
            raise HeadsError(
                f"These thresholds were calibrated for the heads {self.heads_fingerprint[:12]} (fingerprint), not for "
                f"{'a model without heads' if found is None else found[:12]}: calibrate anew on traces of these heads."
            )

    def exit_depths(self, head_depths):
        if len(self.thresholds) != len(head_depths):
            raise HeadsError(
                f"{len(self.thresholds)} thresholds for {len(head_depths)} heads at depths {list(head_depths)}: "
                "expected one threshold (or None) a head."
            )
        if self.depths is not None and tuple(self.depths) != tuple(head_depths):
            raise HeadsError(f"Calibrated for depths {list(self.depths)}, used with heads at {list(head_depths)}.")
        return tuple(d for d, t in zip(head_depths, self.thresholds, strict=True) if t is not None)

    def start(self, prompt, head_depths):
        thresholds = dict(zip(head_depths, self.thresholds, strict=True))
        return _Rounds(thresholds, limit=1 if self.back_off else self.max_draft)

    def draft_limit(self, state):
        return 0 if state.pause else state.limit

    def exits(self, state, depth, logits, hidden, position):
        score = confidence(logits, (self.metric,))[self.metric].item()
        return score >= state.thresholds[depth], score

    def observe(self, state, drafted, accepted):
        if not self.back_off:
            return
        if state.pause:
            state.pause -= 1
        elif accepted:
            state.misses = 0
            state.limit = min(2 * state.limit, self.max_draft) if accepted == drafted else accepted
        elif drafted:
            state.misses += 1
            state.limit, state.pause = 1, 2 ** (state.misses - 1) - 1


def check_positive(name: str, value: Any) -> None:
    """Raises InvalidInputError for anything but a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{name}={value!r}: expected a positive whole number.")
