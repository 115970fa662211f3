"""Token ids from any container: tokenizer output, lists, numpy arrays, tensors."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from eelib.errors import InvalidInputError


def token_ids(given: Any, name: str = "input_ids", vocab_size: int | None = None) -> Int[Tensor, "batch position"]:
    """Token ids as a LongTensor [batch, position]; one row may come flat.

    Args:
        given: tensor, array, (nested) lists, or a tokenizer's output, whose `input_ids` are used.
        name: of the argument, for error messages.
        vocab_size: ids from here on are refused.

    Raises:
        InvalidInputError: something else, rows of different lengths, or ids out of range.
    """
    if isinstance(given, Mapping):
        given = given.get("input_ids")
    elif hasattr(given, "input_ids"):
        given = given.input_ids
    if given is None or isinstance(given, str | bytes):
        raise InvalidInputError(f"{name}={given!r}: expected token ids, such as tokenizer(text).input_ids.")
    try:
        ids = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{name} of type {type(given).__name__}: expected token ids, [batch, position] or [position], with rows of "
            f"equal length ({error})."
        ) from error
    if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        if ids.numel():
            raise InvalidInputError(
                f"{name} of shape {list(ids.shape)} and type {ids.dtype}: expected whole numbers, [batch, position] or "
                "[position]."
            )
        ids = ids.long()
    ids = ids.long() if ids.ndim == 2 else ids.long()[None]
    if vocab_size is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise InvalidInputError(
            f"{name} from {int(ids.min())} to {int(ids.max())}: expected tokens from 0 to {vocab_size - 1}, the "
            "model's. Is the tokenizer another model's?"
        )
    return ids


def attention_mask(given: Any) -> Tensor | None:
    """The mask [batch, position] in a tokenizer's output, if any."""
    mask = given.get("attention_mask") if isinstance(given, Mapping) else getattr(given, "attention_mask", None)
    return None if mask is None else token_ids(mask, "attention_mask")


def sequences_of(given: Any, vocab_size: int | None = None) -> list[Int[Tensor, " position"]]:
    """Texts as a list of rows [position], without masked tokens.

    From a list of them, each of any kind, a batch [text, position], or a tokenizer's output for several texts.

    Raises:
        InvalidInputError: as for `token_ids`, or a text without a token.
    """
    rows = _rows(given, vocab_size)
    empty = [number for number, row in enumerate(rows) if not len(row)]
    if empty:
        raise InvalidInputError(f"No token in sequences {empty[:10]} of {len(rows)}: leave empty texts out.")
    return rows


def masked_sequences(
    sequences: Any, loss_mask: Any = None, vocab_size: int | None = None
) -> tuple[list[Int[Tensor, " position"]], list[Tensor] | None]:
    """Texts and their loss masks as lists of rows [position].

    The masks are None if all positions count.

    Raises:
        InvalidInputError: as for `sequences_of`, or masks that do not match the texts in number or length.
    """
    rows = sequences_of(sequences, vocab_size)
    if loss_mask is None:
        return rows, None
    try:
        masks = [torch.as_tensor(mask).bool() for mask in loss_mask]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"loss_mask: expected a mask [position] for each sequence ({error}).") from error
    if [mask.shape for mask in masks] != [row.shape for row in rows]:
        raise InvalidInputError(
            f"loss_mask of shapes {[list(mask.shape) for mask in masks[:5]]} ... for sequences of shapes "
            f"{[list(row.shape) for row in rows[:5]]} ...: expected one mask a sequence, of its length."
        )
    return rows, masks


def _rows(given: Any, vocab_size: int | None) -> list[Tensor]:
    if isinstance(given, Mapping):
        rows, masks = given.get("input_ids"), given.get("attention_mask")
        rows = _rows(rows, vocab_size)
        if masks is None:
            return rows
        return [row[torch.as_tensor(mask).bool()] for row, mask in zip(rows, masks, strict=True)]
    if isinstance(given, Tensor | np.ndarray):
        return list(token_ids(given, "sequences", vocab_size))
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise InvalidInputError(f"sequences={given!r}: expected token ids, one sequence a text.")
    given = list(given)
    if given and all(isinstance(token, int | np.integer) and not isinstance(token, bool) for token in given):
        given = [given]
    rows = [token_ids(row, "sequences", vocab_size) for row in given]
    wrong = next((row for row in rows if len(row) != 1), None)
    if wrong is not None:
        raise InvalidInputError(f"A sequence of shape {list(wrong.shape)}: expected [position] or [1, position].")
    return [row[0] for row in rows]
