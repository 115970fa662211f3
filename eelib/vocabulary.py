"""Which tokens heads may draft."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.backbone import Backbone
from eelib.errors import InvalidInputError


def frequent_tokens(
    sequences: Sequence[Tensor], size: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Int[Tensor, " draft"]:
    """The `size` tokens to draft, ascending: all special tokens, then the most frequent ones of `sequences`.

    Frequencies in text sampled from the model estimate what the model emits (as FR-Spec ranks its vocabulary, arXiv
    2502.14856). Ties go to the lower token, which in a byte-pair vocabulary is the earlier and commoner merge.
    """
    vocab_size = Backbone.of(model).vocab_size
    if size >= vocab_size:
        raise InvalidInputError(f"draft_vocab_size={size}: expected fewer than the model's {vocab_size} tokens.")
    counts = torch.bincount(torch.cat(list(sequences)).cpu(), minlength=vocab_size).double()
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = model.generation_config.eos_token_id
    special |= set(tokenizer.all_special_ids) | set(ends if isinstance(ends, list) else [ends] if ends else [])
    counts[sorted(i for i in special if i < vocab_size)] = float("inf")
    return torch.sort(torch.sort(counts, descending=True, stable=True).indices[:size]).values.to(model.device)
