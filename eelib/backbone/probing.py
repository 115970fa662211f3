"""Probing: find a model's parts by what it does.

No list of architectures to be missing from.
"""

import copy
import functools
import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from eelib.errors import InvalidInputError, ModelError


class StandIn(nn.Module):
    """Replacement of a module that still answers for its attributes (`attention_type`, `weight`)."""

    def __init__(self, original: nn.Module):
        super().__init__()
        self.original = original

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("original"), name)


class Recorder(StandIn):
    """Replacement of a block: records its arguments and passes a state on.

    n_returned: length of the tuple that the block returns, the state first; None for the bare state.
    state: what to pass on; None for the input.
    """

    def __init__(self, block: nn.Module, n_returned: int | None):
        super().__init__(block)
        self.n_returned, self.call, self.state = n_returned, None, None

    def forward(self, *args, **kwargs):
        hidden, *args = args if args else (kwargs.pop("hidden_states"),)
        self.call = (hidden, tuple(args), kwargs)
        hidden = hidden if self.state is None else self.state
        return hidden if self.n_returned is None else (hidden, *[None] * (self.n_returned - 1))


class Tap(StandIn):
    """Replacement of the unembedding: records its input and returns `logits`."""

    def __init__(self, unembedding: nn.Module):
        super().__init__(unembedding)
        self.given, self.logits = None, None

    def forward(self, hidden):
        self.given = hidden
        return hidden if self.logits is None else self.logits


def with_parts(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """Shallow copy of a module, parameters shared, with some submodules replaced.

    As a copy, no call can leave the model changed or interfere with another. A `forward` set on the object is dropped:
    it would call the original.

    Args:
        parts: replacements by their paths.
    """
    copied = copy.copy(module)
    vars(copied).pop("forward", None)
    copied._modules = dict(module._modules)
    for name in {path.partition(".")[0] for path in parts}:
        inner = {p.partition(".")[2]: part for p, part in parts.items() if p.partition(".")[0] == name}
        copied._modules[name] = inner[""] if "" in inner else with_parts(module._modules[name], inner)
    return copied


def with_attention(
    module: nn.Module, implementation: str, replaces: Collection[str] = ("sdpa",), **settings: object
) -> nn.Module:
    """Shallow copy whose attention is another function of transformers' `AttentionInterface`.

    Only attention that is now one of `replaces` changes: by default PyTorch's own. The function finds `settings` in its
    module's config, and what it replaces as `eelib_replaced`. Modules without attention inside are not copied; nor is
    attention that only compares the name with those it knows, like Falcon's, which would compute without a mask.
    """
    inside = {name: with_attention(m, implementation, replaces, **settings) for name, m in module.named_children()}
    inside = {name: copied for name, copied in inside.items() if copied is not module._modules[name]}
    config = getattr(module, "config", None)
    own = config._attn_implementation if isinstance(config, PreTrainedConfig) else None
    if own not in replaces or not _calls_by_name(type(module)):
        return with_parts(module, inside) if inside else module
    copied = with_parts(module, inside)
    copied.config = copy.copy(config)
    copied.config._attn_implementation_internal = implementation
    vars(copied.config).update(settings, eelib_replaced=own)
    return copied


@functools.cache
def _calls_by_name(of: type[nn.Module]) -> bool:
    """Whether the class calls attention by its name in transformers."""
    forward = inspect.unwrap(of.forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ())


@dataclass(frozen=True)
class Anatomy:
    """Parts of a causal language model, and how they fit together.

    Attributes:
        decoder_path: the module around the blocks that takes token ids.
        blocks_path: the list of blocks, relative to the decoder.
        unembedding_path: the last projection.
        blocks: the list of blocks.
        n_returned: length of the tuple that a block returns; None for the bare state.
        hidden_size: width of the states between blocks.
        final_norm: the module that reads the last block's output; the identity if there is none.
        norm_is_all: whether it is all that lies between the last block and the unembedding.
        unembedding: the last projection.
        raw: whether its output is the logits, without scaling or soft-capping.
        probe: tokens of the probe, [1, position].
        logits: the model's for the probe, [1, position, vocab].
        numbered: whether positions must be passed, as `generate` does, because the model's default differs.
    """

    decoder_path: str
    blocks_path: str
    unembedding_path: str
    blocks: nn.ModuleList
    n_returned: int | None
    hidden_size: int
    final_norm: nn.Module
    norm_is_all: bool
    unembedding: nn.Module
    raw: bool
    probe: Tensor
    logits: Tensor
    numbered: bool


@torch.no_grad()
def find_parts(model: PreTrainedModel) -> Anatomy:
    """Find the parts of a model from one short forward pass.

    Raises:
        ModelError: no causal language model with one list of blocks; the message says what was found.
    """
    name = type(model).__name__
    path, blocks = _find_blocks(model)
    unembedding = model.get_output_embeddings()
    if unembedding is None:
        raise ModelError(f"{name} has no output embeddings: expected a causal language model.")
    decoder_path = _decoder_of(model, path)
    blocks_path = path[len(decoder_path) + 1 :]
    config = model.config.get_text_config()
    tokens = [token for token in range(6) if token != config.pad_token_id]  # padding may take no position
    probe = torch.tensor([tokens[:5]], device=model.device) % config.vocab_size
    positions = _own_positions(model, probe)
    seen: dict[str, list] = {"blocks": [], "takers": [], "unembedding": []}

    def after_last_block(module, args, output):
        seen["blocks"].append(output)

    def before_child(module, args):
        if seen["blocks"] and args and args[0] is _state(seen["blocks"][-1]):
            seen["takers"].append(module)

    def after_child(module, args, output):
        if module in seen["takers"]:
            seen["normed"] = output

    def after_unembedding(module, args, output):
        seen["unembedding"].append((args[0], output))

    children = [child for child in model.get_submodule(decoder_path).children() if child is not blocks]
    handles = [blocks[-1].register_forward_hook(after_last_block)]
    handles += [child.register_forward_pre_hook(before_child) for child in children]
    handles += [child.register_forward_hook(after_child) for child in children]
    handles.append(unembedding.register_forward_hook(after_unembedding))
    try:
        logits = model(input_ids=probe, use_cache=False, **positions).logits
    finally:
        for handle in handles:
            handle.remove()
    if len(seen["blocks"]) != 1 or len(seen["unembedding"]) != 1 or len(seen["takers"]) > 1:
        raise ModelError(
            f"Cannot split {name} into blocks: in one pass its last block ran {len(seen['blocks'])} times, its "
            f"unembedding {len(seen['unembedding'])} times, and {len(seen['takers'])} modules read the last block's "
            "output; expected once, once, and at most one."
        )
    last = seen["blocks"][0]
    given, projected = seen["unembedding"][0]
    return Anatomy(
        decoder_path=decoder_path,
        blocks_path=blocks_path,
        unembedding_path=next(path for path, module in model.named_modules() if module is unembedding),
        blocks=blocks,
        n_returned=len(last) if isinstance(last, tuple) else None,
        hidden_size=_state(last).shape[-1],
        final_norm=seen["takers"][0] if seen["takers"] else nn.Identity(),
        norm_is_all=_same(seen.get("normed", _state(last)), given),
        unembedding=unembedding,
        raw=_same(projected, logits),
        probe=probe,
        logits=logits,
        numbered=bool(positions),
    )


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `torch.compile`, PEFT or data parallelism; adapters stay.

    Raises:
        ModelError: there is none.
    """
    inside = model
    for _ in range(4):
        if isinstance(inside, PreTrainedModel):
            return inside
        if hasattr(inside, "get_base_model"):
            inside = inside.get_base_model()
        else:
            inside = getattr(inside, "_orig_mod", getattr(inside, "module", None))
    raise ModelError(f"{type(model).__name__}: expected a causal language model of transformers.")


def check_mode(model: PreTrainedModel) -> None:
    """Refuse a model with dropout, or spread as a whole.

    Raises:
        InvalidInputError: it is one.
    """
    if "FSDPModule" in (base.__name__ for base in type(model).__mro__):
        raise InvalidInputError(
            f"{type(model).__name__} is spread over processes as a whole, so it runs only as a whole: call "
            "`fully_shard` on each of its blocks, and not on the model."
        )
    config = model.config.get_text_config().to_dict()
    drops = [name for name in config if "drop" in name and "classifier" not in name]  # classifiers are no part of it
    rates = [config[name] for name in drops if isinstance(config[name], float)]
    if model.training and any(rate > 0 for rate in rates):
        raise InvalidInputError(
            "The model is in training mode with dropout, so its outputs are random: call model.eval() first."
        )


def _decoder_of(model: PreTrainedModel, path: str) -> str:
    """The innermost module around the blocks that takes token ids."""
    parts = path.split(".")
    for n in range(len(parts) - 1, 0, -1):
        found = ".".join(parts[:n])
        if "input_ids" in inspect.signature(model.get_submodule(found).forward).parameters:
            return found
    raise ModelError(
        f"Cannot split {type(model).__name__} into blocks: no module around {path} takes `input_ids`; expected a "
        "decoder within the causal language model, such as `model.model`."
    )


def _own_positions(model: PreTrainedModel, probe: Tensor) -> dict[str, Tensor]:
    """Explicit positions, for a model with another default; else empty.

    RoBERTa's, for one, begin after the padding token's.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    positions = {"position_ids": torch.arange(probe.shape[1], device=model.device)[None]}
    try:
        numbered = model(input_ids=probe, use_cache=False, **positions).logits
    except Exception:  # positions of another kind, for text and images
        return {}
    return {} if torch.allclose(numbered, model(input_ids=probe, use_cache=False).logits) else positions


def _find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    n_blocks = model.config.get_text_config().num_hidden_layers
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    found = {name: m for name, m in lists.items() if len(m) == n_blocks and "." in name}
    text = model.get_decoder() if len(found) > 1 else None  # beside a vision model with as many blocks
    if text is not None and text is not model:
        inside = {id(module) for module in text.modules()}
        found = {name: m for name, m in found.items() if id(m) in inside}
    if len(found) != 1:
        raise ModelError(
            f"Cannot split {type(model).__name__} into blocks: expected exactly one list of {n_blocks} blocks, found "
            f"{list(found) or 'none'} among { ({name: len(m) for name, m in lists.items()}) }."
        )
    return next(iter(found.items()))


def _state(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())
