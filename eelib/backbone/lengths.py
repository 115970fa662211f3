"""Models whose positions depend on more than the text before them.

Rotary tables may change with the length of the text, and caches may drop keys that the masks still show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Lengths:
    """How a model's positions depend on the length of the text.

    Attributes:
        kind: of rotary table ("longrope", "dynamic").
        same_up_to: number of positions up to which there is no dependence.
        same_beyond: whether all longer texts have the same positions again.
    """

    kind: str
    same_up_to: int
    same_beyond: bool


def lengths_of_positions(config: PreTrainedConfig) -> Lengths | None:
    """How positions depend on the text's length; None if they do not."""
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
    """Whether a block's masks hide keys that have left the window.

    Looks at the second and third of three positions. Attention without 4-D masks (flash) gets the window itself.
    """
    for mask in given:
        if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-2:] == (3, window + 2):
            left = torch.stack([mask[..., 1, 0], mask[..., 2, 0], mask[..., 2, 1]])
            return not bool(left.any()) if mask.dtype == torch.bool else bool((left < -1e4).all())
    return True
