"""Decoders of transformers, greedy, with the model restored after each call."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import CompileConfig, PreTrainedModel

from eelib.backbone.segments import Backbone
from eelib.errors import InvalidInputError
from eelib.evaluation.comparison import Decoder


def greedy(model: PreTrainedModel, **generate_kwargs) -> Decoder:
    """Plain `model.generate`."""
    return _decoder(model, generate_kwargs)


def assistant_early_exit(model: PreTrainedModel, depth: int, draft_length: int, **generate_kwargs) -> Decoder:
    """`generate(assistant_early_exit=depth)`: the logit lens at a depth drafts.

    Without confidence threshold, and without the schedule that lengthens drafts. Transformers (5.23) silently accepts
    an exit out of range, reads draft settings from the model's generation config only, and leaves the config at `depth`
    blocks when it fails (as on GPT-NeoX, GPT-2 and OPT).

    Raises:
        InvalidInputError: no such exit.
    """
    n_blocks = Backbone.of(model).n_blocks
    if not 1 <= depth < n_blocks:
        raise InvalidInputError(f"assistant_early_exit={depth}: expected 1 to {n_blocks - 1} for {n_blocks} blocks.")
    drafts = {
        "num_assistant_tokens": draft_length,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    return _decoder(model, {"assistant_early_exit": depth, **generate_kwargs}, drafts)


def prompt_lookup(model: PreTrainedModel, tokens: int = 10, **generate_kwargs) -> Decoder:
    """`generate(prompt_lookup_num_tokens=tokens)`: drafts continue an earlier n-gram."""
    return _decoder(model, {"prompt_lookup_num_tokens": tokens, **generate_kwargs})


def static_compiled(model: PreTrainedModel, **generate_kwargs) -> Decoder:
    """Static cache and torch.compile, on a CPU too.

    The first calls compile, for minutes.
    """
    compiling = CompileConfig(fullgraph=False, mode="default")
    compiling._compile_all_devices = True
    return _decoder(model, {"cache_implementation": "static", "compile_config": compiling, **generate_kwargs})


def _decoder(model: PreTrainedModel, settings: dict, config: dict | None = None) -> Callable[[Tensor], Tensor]:
    def decode(prompt: Tensor) -> Tensor:
        with _unchanged(model):
            for name, value in (config or {}).items():
                setattr(model.generation_config, name, value)
            return model.generate(prompt, **{"do_sample": False, **settings})

    return decode


@contextmanager
def _unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Restore what a call may change, after an exception too."""
    generation_config, n_blocks = model.generation_config, model.config.num_hidden_layers
    model.generation_config = copy.deepcopy(generation_config)
    try:
        yield
    finally:
        model.generation_config, model.config.num_hidden_layers = generation_config, n_blocks
