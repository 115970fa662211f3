"""Generation options: converted for transformers, or refused by name."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList, StopStringCriteria
from transformers.cache_utils import Cache

from eelib.backbone.segments import Backbone
from eelib.backbone.tokens import token_ids
from eelib.errors import InvalidInputError, UnsupportedError
from eelib.settings import Number

_REFUSED: dict[str, Callable[[GenerationConfig], bool]] = {
    "num_beams": lambda c: (c.num_beams or 1) > 1,
    "num_return_sequences": lambda c: (c.num_return_sequences or 1) > 1,  # else made rows of by eelib.generate
    "penalty_alpha": lambda c: bool(c.penalty_alpha),
    "dola_layers": lambda c: c.dola_layers is not None,
    "guidance_scale": lambda c: c.guidance_scale not in (None, 1),
    "watermarking_config": lambda c: c.watermarking_config is not None,
    "prompt_lookup_num_tokens": lambda c: c.prompt_lookup_num_tokens is not None,
    "assistant_early_exit": lambda c: c.assistant_early_exit is not None,
    "cache_implementation": lambda c: c.cache_implementation == "quantized",
    "output_scores": lambda c: bool(c.output_scores),
    "output_logits": lambda c: bool(c.output_logits),
    "output_attentions": lambda c: bool(c.output_attentions),
    "output_hidden_states": lambda c: bool(c.output_hidden_states),
}
"""Unsupported options: other decoding methods, outputs that are not made, stateful processors."""

_REFUSED_ARGUMENTS = (
    "assistant_model", "assistant_tokenizer", "negative_prompt_ids", "negative_prompt_attention_mask", "inputs_embeds",
    "synced_gpus",
)  # fmt: skip

_USED_OR_HARMLESS = {"attention_mask", "position_ids", "use_cache", "logits_to_keep"}
_added: weakref.WeakKeyDictionary[PreTrainedModel, frozenset[str]] = weakref.WeakKeyDictionary()


def _callables(name: str, value: Any) -> Any:
    if value is not None and not (isinstance(value, Iterable) and all(map(callable, value))):
        raise InvalidInputError(f"{name}={value!r}: expected a list of callables, or None.")
    return value


def _mask(name: str, value: Any) -> Tensor | None:
    if value is None:
        return None
    value = value if isinstance(value, Tensor) else token_ids(value, name)
    if value.ndim != 2:
        raise InvalidInputError(f"{name} of shape {list(value.shape)}: expected [1, position].")
    return value


def _decay(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Sequence) or len(value) != 2:
        raise InvalidInputError(f"{name}={value!r}: expected a pair, the token to start at and a factor.")
    Number(least=0, whole=True)(name, value[0])
    Number(above=0)(name, value[1])


def _flat(tokens: Any) -> list[Any]:
    return np.ravel(tokens).tolist()


_WHOLE = Number(least=0, whole=True, optional=True)
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("max_new_tokens", "max_length", "min_new_tokens", "min_length"), _WHOLE),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size"), _WHOLE),
    "max_time": Number(least=0, optional=True, infinite=True),
    "exponential_decay_length_penalty": _decay,
}
_TOKENS: dict[str, Callable[[Any], Iterable[Any]]] = {
    **dict.fromkeys(("forced_eos_token_id", "forced_bos_token_id"), _flat),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), _flat),
    "bad_words_ids": lambda words: [token for word in words for token in word],
    "sequence_bias": lambda biases: [token for sequence in dict(_hashable(biases)) for token in sequence],
}
"""Options that name tokens, and how these are found in them."""


def _hashable(biases: Any) -> Any:
    return biases if isinstance(biases, Mapping) else [(tuple(sequence), bias) for sequence, bias in biases]


def _check_values(config: GenerationConfig, n_tokens: int) -> None:
    """Refuse values that transformers accepts, and fails on later."""
    for name, check in _CHECKS.items():
        check(name, getattr(config, name, None))
    for name, tokens_of in _TOKENS.items():
        value = getattr(config, name, None)
        if value is not None:
            _check_tokens(name, tokens_of(value), n_tokens)
    if config.exponential_decay_length_penalty is not None:  # it raises the score of the end, so there must be one
        _check_tokens("eos_token_id", _flat(config.eos_token_id), n_tokens)


def _check_tokens(name: str, named: Iterable[Any], n_tokens: int) -> None:
    beyond = [token for token in (Number(whole=True)(name, token) for token in named) if token >= n_tokens]
    if beyond:
        raise InvalidInputError(f"{name} names tokens {beyond[:5]}: expected tokens below {n_tokens}.")


def prepared(model: PreTrainedModel, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `model.generate`, with stop strings turned into criteria.

    Transformers (5.23) drops the tokenizer on the way to a callable, and would then refuse stop strings.

    Raises:
        InvalidInputError: not a configuration, mask, processors or criteria, or stop strings without a tokenizer.
        UnsupportedError: an argument that never reaches a callable, and would be ignored.
    """
    for name in _REFUSED_ARGUMENTS:
        if generate_kwargs.get(name) is not None:
            raise UnsupportedError(f"{name} is not supported: this engine decodes one prompt of token ids.")
    kwargs = dict(generate_kwargs)
    config = kwargs.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise InvalidInputError(f"generation_config={config!r}: expected transformers' GenerationConfig, or None.")
    config = config or model.generation_config
    checks = {"attention_mask": _mask, "logits_processor": _callables, "stopping_criteria": _callables}
    kwargs |= {name: check(name, kwargs[name]) for name, check in checks.items() if name in kwargs}
    tokenizer = kwargs.pop("tokenizer", None)
    stop_strings = kwargs.pop("stop_strings", None) or config.stop_strings
    if not stop_strings:
        return kwargs
    if tokenizer is None:
        raise InvalidInputError(
            f"stop_strings={stop_strings!r}: expected tokenizer=... beside them, to find them in the text."
        )
    if config.stop_strings:
        kwargs["generation_config"] = GenerationConfig.from_dict(config.to_dict() | {"stop_strings": None})
    stop = StopStringCriteria(tokenizer, stop_strings)
    return kwargs | {"stopping_criteria": StoppingCriteriaList([*(kwargs.get("stopping_criteria") or []), stop])}


def added_by_transformers(model: PreTrainedModel) -> frozenset[str]:
    """Arguments that transformers itself passes to a custom `generate`.

    Found once by decoding one token: they depend on model and version, and nobody asked for them.
    """
    if model not in _added:
        found = []

        def look(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
            found.append(frozenset(model_kwargs))
            return input_ids

        model.generate(torch.zeros(1, 1, dtype=torch.long, device=model.device), custom_generate=look, max_new_tokens=1)
        _added[model] = found[0]
    return _added[model]


def attended(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch position"],
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
    given: frozenset[str] | None,
) -> Bool[Tensor, " position"]:
    """Prompt tokens that the model reads; the engine skips masked ones.

    Without a mask, transformers masks padding tokens unless padding is the end-of-text token, even inside a prompt.

    Args:
        model_kwargs: what transformers passes to a custom `generate`.
        given: names of the caller's own arguments, if known.

    Raises:
        InvalidInputError: an option with a value that cannot be.
        UnsupportedError: an option or input that this engine does not support.
    """
    _check_values(config, Backbone.of(model).n_tokens)
    own = added_by_transformers(model) - (given or frozenset())
    for name, refused in _REFUSED.items():
        if refused(config):
            raise UnsupportedError(f"{name}={getattr(config, name)} is not supported by this engine: omit it.")
    for name, value in model_kwargs.items():
        if isinstance(value, Cache):
            if value.get_seq_length() > 0:
                raise UnsupportedError(f"A filled {name} is not supported: pass the whole prompt.")
        elif value is not None and name not in _USED_OR_HARMLESS | own:
            raise UnsupportedError(f"{name} is not supported: this engine passes the model token ids only.")
    if input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
        raise UnsupportedError(
            f"input_ids of shape {list(input_ids.shape)}: expected [1, position], at least one token. Several "
            "prompts go to eelib.generate."
        )
    mask = model_kwargs.get("attention_mask")  # transformers drops a mask that is all ones
    mask = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device).long()
    if mask.shape != input_ids.shape or mask[0, -1] == 0:
        raise UnsupportedError(
            f"attention_mask of shape {list(mask.shape)} that ends in {mask[0, -1]}: expected shape "
            f"{list(input_ids.shape)}, and 1 for the last token. Pad on the left."
        )
    positions = model_kwargs.get("position_ids")
    if positions is not None and not isinstance(positions, Tensor):
        raise InvalidInputError(f"position_ids={positions!r}: expected a tensor.")
    expected = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    if positions is not None and "position_ids" in own and positions.ndim > 2:
        positions = None  # one for text, height and width: the model makes them itself
    if positions is not None and not torch.equal(positions.to(expected.device), expected):
        raise UnsupportedError("position_ids other than 0, 1, ... are not supported: omit them.")
    return mask[0].bool()
