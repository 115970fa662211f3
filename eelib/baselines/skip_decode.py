"""SkipDecode (arXiv 2307.02628): one exit depth per position, decreasing along the text.

So a batch never waits.
"""

from dataclasses import dataclass

from eelib.decoding.policies import Policy
from eelib.errors import InvalidInputError
from eelib.settings import COUNT, settle


@dataclass(frozen=True)
class SkipDecode(Policy):
    """One exit depth per position, independent of confidence.

    New token t exits after round(max_depth - (max_depth - min_depth) * t / length) blocks, from t = length on after
    min_depth.

    Attributes:
        max_depth: of the first token; may be the number of blocks.
        min_depth: of tokens from `length` on.
        length: tokens until then.
        max_draft: maximum drafts per round.
    """

    max_depth: int
    min_depth: int
    length: int
    max_draft: int = 4

    def __post_init__(self):
        settle(self, **dict.fromkeys(("max_depth", "min_depth", "length", "max_draft"), COUNT))
        if self.min_depth > self.max_depth:
            raise InvalidInputError(
                f"min_depth={self.min_depth} is more than max_depth={self.max_depth}: expected at most that."
            )

    def depth_of(self, index: int) -> int:
        """Exit depth of the new token with this index."""
        return round(self.max_depth - (self.max_depth - self.min_depth) * min(index, self.length) / self.length)

    def exit_depths(self, head_depths):
        return tuple(sorted({self.depth_of(index) for index in range(self.length + 1)}))

    def start(self, prompt, head_depths):
        return prompt.shape[1] - 1

    def draft_limit(self, state):
        return self.max_draft

    def asks(self, state, depth, position):
        return depth == self.depth_of(position - state)

    def exits(self, state, depth, logits, hidden, position):
        return True, float("nan")
