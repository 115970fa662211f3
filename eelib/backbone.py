"""A frozen language model cut into segments of blocks: embed, run a segment, unembed.

Nothing here knows an architecture by name. The block list, the final norm and the unembedding are found by probing,
and a model whose parts do not add up to its own logits is refused (the chief complaint about tools with a list of
architectures is "mine is missing").
"""

import copy
import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from eelib.errors import InvalidInputError, ModelError

_PROBE = 5  # positions of the probing pass


@dataclass(frozen=True)
class Span:
    """What the model hands its blocks for the positions [start, start + length).

    hidden: input of block 0, [batch, position, hidden]. calls: positional and keyword arguments of each block (masks,
    rotary tables, positions, the cache).
    """

    start: int
    length: int
    hidden: Tensor
    calls: list[tuple[tuple, dict[str, Any]]]


class _Recorder(nn.Module):
    """Stands in a block's place, keeps what the block was called with, and passes the hidden state on."""

    def __init__(self, block: nn.Module, returns_tuple: bool):
        super().__init__()
        self.block, self.returns_tuple, self.call = block, returns_tuple, None

    def __getattr__(self, name: str):  # models ask blocks for attributes such as `attention_type`
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, hidden, *args, **kwargs):
        self.call = (hidden, args, kwargs)
        return (hidden,) if self.returns_tuple else hidden


class Backbone:
    """A causal language model, its blocks callable one segment at a time. The model itself is never changed.

    Get one with `Backbone.of(model)`: probing costs two forward passes, so it is done once per model.

    Raises:
        ModelError: the model cannot be cut; the message says what was found.
    """

    _known: ClassVar[weakref.WeakKeyDictionary] = weakref.WeakKeyDictionary()

    def __init__(self, model: PreTrainedModel):
        self._model = weakref.ref(model)
        self._path, self.blocks = _find_blocks(model)
        probe = torch.arange(_PROBE, device=model.device)[None] % model.config.get_text_config().vocab_size
        logits, self.final_norm, returns_tuple = _find_final_norm(model, self._path, self.blocks, probe)
        self.unembedding = model.get_output_embeddings()
        if self.unembedding is None:
            raise ModelError(f"{type(model).__name__} has no output embeddings: expected a causal language model.")
        self._recorders = [_Recorder(block, returns_tuple) for block in self.blocks]
        self._skeleton = _skeleton(model, self._path, nn.ModuleList(self._recorders))
        _check(self, probe, logits)

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Backbone":
        """The model's backbone, probed at the first call and remembered as long as the model lives."""
        if model not in cls._known:
            cls._known[model] = cls(model)
        return cls._known[model]

    @property
    def model(self) -> PreTrainedModel:
        return self._model()

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        return self.unembedding.weight.shape[1]

    @property
    def vocab_size(self) -> int:
        return self.unembedding.weight.shape[0]

    @property
    def context_length(self) -> int | None:
        """Most positions that the model was made for, or None where its config names no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @torch.no_grad()
    def capture(self, input_ids: Int[Tensor, "batch position"], start: int = 0, cache: Cache | None = None) -> Span:
        """Embeds tokens and records what each block would be called with at the positions from `start` on.

        The model's own forward runs with its blocks replaced by recorders, so that masks, rotary tables and positions
        are the model's own. `cache` must report `start` as the length of every layer; None means: no cache.
        """
        self._skeleton(input_ids=input_ids, past_key_values=cache, use_cache=cache is not None)
        calls = [recorder.call for recorder in self._recorders]
        for recorder in self._recorders:
            recorder.call = None
        return Span(start, input_ids.shape[1], calls[0][0], [(args, kwargs) for _, args, kwargs in calls])

    def run(self, first: int, last: int, hidden: Float[Tensor, "batch position hidden"], span: Span) -> Tensor:
        """Runs the blocks first, ..., last - 1 on the positions of `span`. Returns [batch, position, hidden]."""
        for block, (args, kwargs) in zip(self.blocks[first:last], span.calls[first:last], strict=True):
            hidden = block(hidden, *args, **kwargs)
            if isinstance(hidden, tuple):
                hidden = hidden[0]
        return hidden

    def unembed(self, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... vocab"]:
        """The model's logits for states that have passed `n_blocks` blocks (or fewer: the logit lens)."""
        return self.unembedding(self.final_norm(hidden))

    @torch.no_grad()
    def states(self, input_ids: Int[Tensor, "batch position"], depths: Sequence[int]) -> dict[int, Tensor]:
        """Hidden states after each of `depths` blocks (n_blocks included, if asked), [batch, position, hidden].

        One pass without a cache. Rows padded on the right need no mask: a causal model's states never look ahead.
        """
        span = self.capture(input_ids)
        states, hidden, at = {}, span.hidden, 0
        for depth in sorted(depths):
            hidden = states[depth] = self.run(at, depth, hidden, span)
            at = depth
        return states

    def check_depths(self, depths: Sequence[int]) -> tuple[int, ...]:
        """The depths as a tuple, if they ascend strictly within 1 <= depth < n_blocks.

        Raises:
            InvalidInputError: they don't.
        """
        depths = tuple(depths)
        if not depths or any(not isinstance(d, int) or isinstance(d, bool) for d in depths):
            raise InvalidInputError(f"depths={list(depths)}: expected at least one whole number.")
        if list(depths) != sorted(set(depths)) or depths[0] < 1 or depths[-1] >= self.n_blocks:
            raise InvalidInputError(
                f"depths={list(depths)}: expected ascending numbers of blocks between 1 and {self.n_blocks - 1} "
                f"(the model has {self.n_blocks} blocks; depth counts the blocks that ran)."
            )
        return depths

    def even_depths(self, n: int) -> tuple[int, ...]:
        """n depths that cut the blocks into parts as equal as can be (n = 4: near 1/5, 2/5, 3/5, 4/5)."""
        return self.check_depths([round(self.n_blocks * (i + 1) / (n + 1)) for i in range(n)])

    def fingerprint(self) -> str:
        """SHA-256 over unembedding, final norm and a sample of every tensor, the same for each dtype of one model."""
        digest = hashlib.sha256()
        whole = {id(p) for module in (self.unembedding, self.final_norm) for p in module.parameters()}
        for name, parameter in sorted(self.model.named_parameters()):
            values = parameter.detach().flatten()
            if id(parameter) not in whole:
                values = values[:: max(1, values.numel() // 1024)]
            digest.update(name.encode())
            digest.update(values.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()


def _find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    n_blocks = model.config.get_text_config().num_hidden_layers
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    found = {name: m for name, m in lists.items() if len(m) == n_blocks and "." in name}
    if len(found) != 1:
        raise ModelError(
            f"Cannot cut {type(model).__name__}: expected exactly one list of {n_blocks} blocks, found "
            f"{list(found) or 'none'} among { ({name: len(m) for name, m in lists.items()}) }."
        )
    return next(iter(found.items()))


def _find_final_norm(model, path, blocks, probe) -> tuple[Tensor, nn.Module, bool]:
    """One plain pass: its logits, the module that takes the last block's output, and whether blocks return tuples."""
    owner = model.get_submodule(path.rpartition(".")[0])
    outputs, takers = [], []

    def after_last_block(module, args, output):
        outputs.append(output)

    def before_child(module, args):
        last = outputs[-1][0] if outputs and isinstance(outputs[-1], tuple) else outputs[-1] if outputs else None
        if args and args[0] is last:
            takers.append(module)

    children = [child for child in owner.children() if child is not blocks]
    handles = [blocks[-1].register_forward_hook(after_last_block)]
    handles += [child.register_forward_pre_hook(before_child) for child in children]
    try:
        with torch.no_grad():
            logits = model(input_ids=probe, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    if len(takers) > 1:
        raise ModelError(f"Cannot cut {type(model).__name__}: {len(takers)} modules take the last block's output.")
    return logits, takers[0] if takers else nn.Identity(), isinstance(outputs[-1], tuple)


def _skeleton(model: PreTrainedModel, path: str, recorders: nn.ModuleList) -> nn.Module:
    """The model's decoder as a shallow copy that shares every parameter but has recorders for blocks.

    A copy, so that a call can neither leave the model changed nor be seen by another one.
    """
    *parents, name = path.split(".")
    decoder = model.get_submodule(".".join(parents))
    skeleton = copy.copy(decoder)
    skeleton._modules = dict(decoder._modules)
    skeleton._modules[name] = recorders
    return skeleton


def _check(backbone: Backbone, probe: Tensor, logits: Tensor) -> None:
    """Refuses a model whose parts, put together by us, do not give its own logits."""
    with torch.no_grad():
        ours = backbone.unembed(backbone.states(probe, [backbone.n_blocks])[backbone.n_blocks])
    tolerance = 16 * torch.finfo(logits.dtype).eps * logits.abs().max().item()
    difference = (ours - logits).abs().max().item() if ours.shape == logits.shape else float("inf")
    if not difference <= tolerance:
        raise ModelError(
            f"Cannot cut {type(backbone.model).__name__}: blocks, {type(backbone.final_norm).__name__} and unembedding "
            f"give logits of shape {list(ours.shape)} that differ by {difference:.3g} from its own of shape "
            f"{list(logits.shape)}; at most {tolerance:.3g} was expected."
        )
