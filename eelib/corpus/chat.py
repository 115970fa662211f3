"""Chat formatting: apply the chat template, or fall back to plain text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.errors import CorpusError


@dataclass(frozen=True)
class Turns:
    """Tokens of the chat template around the words of a conversation.

    As `PreTrainedTokenizerBase.apply_chat_template` puts them. Without a template, `opening` is the token that begins
    (or, failing that, ends) a text, and the others are empty.

    Attributes:
        opening: before the user's first words.
        to_model: between the user's words and the model's.
        to_user: between the model's words and the user's next.
        ends: tokens that end either side's words.
    """

    opening: tuple[int, ...]
    to_model: tuple[int, ...]
    to_user: tuple[int, ...]
    ends: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Turns":
        """The turns of a tokenizer.

        Raises:
            CorpusError: no chat template, and no token that begins or ends a text.
        """
        if not tokenizer.chat_template:
            opening = [t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None][:1]
            if not opening:
                raise CorpusError(
                    "The tokenizer has no chat template and no token that begins or ends a text, so the model cannot "
                    "generate a corpus: use text as source."
                )
            return cls(tuple(opening), (), (), frozenset())
        marks = [f"\N{SECTION SIGN}{i}\N{SECTION SIGN}" for i in range(3)]
        roles = ("user", "assistant", "user")
        turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        rest, parts = tokenizer.apply_chat_template(turns, tokenize=False), []
        for mark in marks:
            part, found, rest = rest.partition(mark)
            if not found:
                raise CorpusError(
                    "The chat template does not repeat the words of each turn, so the model cannot generate a corpus: "
                    "use text as source."
                )
            parts.append(tuple(tokenizer(part, add_special_tokens=False).input_ids))
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        return cls(*parts, frozenset(special.intersection(parts[1] + parts[2])))


def as_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, "1 position"]:
    """Text as a prompt: a user's turn, if there are turns."""
    if not tokenizer.chat_template:
        return tokenizer(text, return_tensors="pt").input_ids
    turn = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt").input_ids


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 32,
) -> tuple[list[Int[Tensor, " position"]], list[Bool[Tensor, " position"]]]:
    """Greedy answers to several texts, each prompted on its own.

    Returns:
        Prompts with their answers, up to the token that ends them; and for each the mask of the positions whose next
        token is the model's, without the last, which has no next token.
    """
    sequences, spoken = [], []
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    for start in range(0, len(texts), batch_size):
        prompts = [as_prompt(text, tokenizer)[0] for text in texts[start : start + batch_size]]
        width = max(map(len, prompts))
        padded = torch.stack([F.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
        mask = torch.stack([torch.arange(width) >= width - len(prompt) for prompt in prompts]).long()
        inputs = {"input_ids": padded.to(model.device), "attention_mask": mask.to(model.device)}
        out = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0)
        for prompt, row in zip(prompts, out[:, width:].tolist(), strict=True):
            end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            sequences.append(torch.cat([prompt, torch.tensor(row[:end])]))
            counts = torch.arange(len(sequences[-1])) >= len(prompt) - 1
            counts[-1] = False
            spoken.append(counts)
    return sequences, spoken
