"""Prompts of a batch, from a tensor, lists, or a tokenizer's output."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eelib.errors import EelibError, InvalidInputError
from eelib.settings import SEED


def prompts_of(given: Any, mask: Any = None) -> list[tuple[Any, Any]] | None:
    """Prompts and their attention masks, row by row.

    None for one prompt; a mask is None where there is none.

    Args:
        given: as for `eelib.generate`.
        mask: for all rows; None for those that a tokenizer gave.

    Raises:
        InvalidInputError: another number of masks.
    """
    ids = _field(given, "input_ids") if _is_encoding(given) else given
    if isinstance(ids, Tensor | np.ndarray):
        rows = [ids[i : i + 1] for i in range(len(ids))] if ids.ndim == 2 else []
    else:
        rows = list(ids) if isinstance(ids, list | tuple) and all(map(_is_sequence, ids)) else []
    if len(rows) < 2:
        return None
    if mask is None:
        mask = _field(given, "attention_mask") if ids is not given else None
    masks = [None] * len(rows) if mask is None else mask
    if not _is_sequence(masks) or len(masks) != len(rows):
        raise InvalidInputError(f"attention_mask for {len(rows)} prompts: expected a row for each of them.")
    return list(zip(rows, masks, strict=True))


def only_prompt(given: Any) -> Any:
    """The prompt in a list of one; what is given otherwise."""
    return given[0] if isinstance(given, list | tuple) and len(given) == 1 and _is_sequence(given[0]) else given


def _is_encoding(given: Any) -> bool:
    return isinstance(given, Mapping) or hasattr(given, "input_ids")


def _is_sequence(row: Any) -> bool:
    return isinstance(row, list | tuple) or _is_encoding(row) or (isinstance(row, Tensor | np.ndarray) and row.ndim > 0)


def _field(given: Any, name: str) -> Any:
    return given.get(name) if isinstance(given, Mapping) else getattr(given, name, None)


def generators_of(seeds: Any, rows: int, device: torch.device, sample: bool) -> list[torch.Generator | None]:
    """What each row draws with: a generator for each seed.

    Without seeds, they are drawn from torch's own generator where several rows sample.

    Raises:
        InvalidInputError: another number of seeds, or no seeds.
    """
    if seeds is None:
        if rows == 1 or not sample:
            return [None] * rows
        seeds = torch.randint(2**63 - 1, (rows,)).tolist()
    elif isinstance(seeds, Tensor | np.ndarray):
        seeds = seeds.tolist()
    seeds = list(seeds) if isinstance(seeds, Sequence) and not isinstance(seeds, str | bytes) else [seeds]
    if len(seeds) != rows:
        raise InvalidInputError(f"{len(seeds)} seeds for {rows} rows: expected one a row.")
    return [torch.Generator(device).manual_seed(SEED("seeds", seed)) for seed in seeds]


def numbered(error: Exception, row: int) -> Exception:
    """The error, saying in which row it happened."""
    if isinstance(error, EelibError):
        return type(error)(f"Row {row}: {error}")
    error.add_note(f"In row {row} of the batch.")
    return error
