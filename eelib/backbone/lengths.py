"""Where what a model makes of a position depends on more than what stands before it: rotary tables that change with the
length of the text, and caches that forget what its masks go on showing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Lengths:
    """Where a model's positions depend on how long the text is.

    kind: of rotary table ("longrope", "dynamic"). same_up_to: positions of a text up to which they do not depend on it.
    same_beyond: whether those of any longer text are the same again.
    """

    kind: str
    same_up_to: int
    same_beyond: bool


def lengths_of_positions(config: PreTrainedConfig) -> Lengths | None:
    """None where positions never depend on the length."""
    given = getattr(config, "rope_parameters", None) or {}
    found = []
    for table in [given] if "rope_type" in given else [t for t in given.values() if isinstance(t, dict)]:
        kind = table.get("rope_type") or ""
        if kind == "longrope":
            limit = table.get("original_max_position_embeddings") or config.original_max_position_embeddings
            found.append(Lengths(kind, limit, same_beyond=True))
        elif "dynamic" in kind:
            found.append(Lengths(kind, config.max_position_embeddings, same_beyond=False))
    return min(found, key=lambda lengths: lengths.same_up_to, default=None)


def hides_what_left(window: int, given: Sequence[Any]) -> bool:
    """Whether masks among what a block is given hide from the second and third of three positions the keys that have
    left the window. Attention without masks of this kind (flash) is told the window itself."""
    for mask in given:
        if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-2:] == (3, window + 2):
            left = torch.stack([mask[..., 1, 0], mask[..., 2, 0], mask[..., 2, 1]])
            return not bool(left.any()) if mask.dtype == torch.bool else bool((left < -1e4).all())
    return True
