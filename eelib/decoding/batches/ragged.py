"""Ragged calls: several texts through the blocks at once, nothing padded.

Rows lie end to end, [1, position of all rows, hidden]. Products, norms and activations take positions one by one in any
case; attention is asked row by row, with the row's own keys and the mask that it has alone. So each row keeps a cache
of its own, at any length, and a call costs what its positions cost.

Embeddings, rotary tables and whatever else surrounds the blocks come from one run of the model's own code on all rows,
with each position's number. That this changes nothing is looked up for each model, not assumed: masks and inputs of the
blocks are compared with each row's own, exactly, and so are the states of rows of different lengths, up to rounding.
Where they differ, rows run one by one: equal, and no faster.
"""

import copy
import functools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from eelib.backbone.kv_cache import KVCache
from eelib.backbone.probing import with_attention
from eelib.backbone.products import MAX_ROWS
from eelib.backbone.segments import Backbone, Span
from eelib.decoding.bitwise import ROW_BY_ROW, RowExact
from eelib.decoding.frontier import Frontier

_ATTENTION = "eelib_ragged"
_FEW = 16  # queries of a row, up to which heads that share keys are asked together


@dataclass(frozen=True, slots=True)
class Part:
    """Positions [start, start + length) of one row in a call.

    Attributes:
        frontier: the row's.
        start: first position.
        length: number of positions.
    """

    frontier: Frontier
    start: int
    length: int


class _OtherKeysError(Exception):
    """An attention function was given other keys than the cache handed on."""


class Ragged:
    """Blocks that take several rows in one call.

    Use `Ragged.of(backbone)`: probing takes some passes of the model.

    Attributes:
        refusal: why rows of this model run one by one; None if they share calls.
    """

    _known: ClassVar[weakref.WeakKeyDictionary] = weakref.WeakKeyDictionary()

    def __init__(self, backbone: Backbone):
        self._blocks = _ragged(backbone, backbone.blocks)
        self._exact: weakref.WeakKeyDictionary[RowExact, nn.ModuleList | None] = weakref.WeakKeyDictionary()
        self._cache = _RowsCache(backbone.model.config, 0)
        try:
            self.refusal = self._refusal(backbone)
        except _OtherKeysError:
            self.refusal = "its attention reads other keys than its cache holds"
        except Exception as error:  # whatever a model's own code raises that was not written for several rows
            self.refusal = f"with several rows in one call it fails with {type(error).__name__}: {error}"

    @classmethod
    def of(cls, backbone: Backbone) -> "Ragged":
        """Ragged blocks of a backbone, probed once.

        And again for another dtype, device or attention.
        """
        model, of_backbone = backbone.model, cls._known.setdefault(backbone, {})
        key = model.dtype, model.device, model.config._attn_implementation
        if key not in of_backbone:
            of_backbone[key] = cls(backbone)
        return of_backbone[key]

    def takes(self, part: Part) -> bool:
        """Whether positions of a row may share a call with other rows'."""
        frontier, lengths = part.frontier, part.frontier.backbone.lengths
        if self.refusal is not None or type(frontier) is not Frontier:  # somebody's own runs as its author wrote it
            return False
        if lengths is not None and part.start + part.length > lengths.same_up_to:
            return False
        if frontier.exact is None:
            return True
        return part.start > 0 and part.length <= MAX_ROWS and self._exact_blocks(frontier) is not None

    def capture(self, backbone: Backbone, parts: Sequence[Part]) -> Span:
        """Embed all parts, end to end, and record every block's arguments."""
        tokens = torch.cat([part.frontier.tokens[:, part.start : part.start + part.length] for part in parts], dim=1)
        numbers = [torch.arange(part.start, part.start + part.length, device=tokens.device) for part in parts]
        cache = copy.copy(self._cache)
        cache.rows = [(part.frontier.cache.layers, part.length) for part in parts]
        return backbone.capture(tokens, 0, cache, torch.cat(numbers)[None])

    def run(self, first: int, last: int, hidden: Float[Tensor, "1 position hidden"], span: Span, part: Part) -> Tensor:
        """Run the blocks first, ..., last - 1 on a span.

        span: from `capture`.
        part: one of those in the call, which are all exact or none.
        """
        blocks = self._blocks if part.frontier.exact is None else self._exact_blocks(part.frontier)
        return part.frontier.backbone.run(first, last, hidden, span, blocks)

    def _exact_blocks(self, frontier: Frontier) -> nn.ModuleList | None:
        """Blocks for exact rows.

        None where those take one position at a time.
        """
        exact = frontier.exact
        if exact not in self._exact:
            several = exact.at_once > 1
            self._exact[exact] = _ragged(frontier.backbone, exact.blocks) if several else None
            if several and not self._agrees(frontier.backbone, exact):
                self._exact[exact] = None
        return self._exact[exact]

    @torch.no_grad()
    def _refusal(self, backbone: Backbone) -> str | None:
        """Why rows cannot share calls; None if they can."""
        windows = KVCache(backbone.model.config, 0).windows
        places = {(0, 3), (4, 3)} | {(max(w + at, 0), n) for w in windows if w for at in (-2, 2) for n in (1, 3)}
        if not all(_masks_are_causal(backbone, *place) for place in places):
            return "its masks are more than causal, with or without a window, or its blocks get none"
        fed = zip(_texts(backbone), ((4, 3), (9, 1), (0, 2)), strict=True)
        parts = [Part(_fed(backbone, text), *span) for text, span in fed]
        if not _same_around(self.capture(backbone, parts), parts):
            return "what surrounds its blocks depends on more than tokens and their positions"
        return None if self._agrees(backbone) else "its states are others with several rows in one call"

    @torch.no_grad()
    def _agrees(self, backbone: Backbone, exact: RowExact | None = None) -> bool:
        """Whether rows that share calls get the logits of rows alone.

        Their very bits if `exact`. Rows of several lengths, fed by different steps, in two segments that run at
        different times.
        """
        half = [backbone.n_blocks // 2] if backbone.n_blocks > 1 else []
        pairs = [(Frontier(backbone, half, 16, exact), Frontier(backbone, half, 16, exact)) for _ in range(3)]
        together, alone = zip(*pairs, strict=True)
        for number, fed in enumerate(((9, 5, 2), (3, 1, 2), (1, 1, 1))):
            for pair, text, n in zip(pairs, _texts(backbone), fed, strict=True):
                for frontier in pair:
                    frontier.feed(text[:, frontier.length : frontier.length + n])
            if exact and not number:
                states = [(ours.complete(), own.complete()) for ours, own in pairs]
                continue
            last = range(1 if number == 1 and half else together[0].n_segments)  # the second time, some wait half way
            ours = [self._advance(together, segment) for segment in last][-1]
            states = list(zip(ours, [[own.advance(segment) for segment in last][-1] for own in alone], strict=True))
        for (ours, own), frontier in zip(states, alone, strict=True):
            ours, own = frontier.unembed(ours), frontier.unembed(own)
            tolerance = 0 if exact else max(torch.finfo(own.dtype).eps ** 0.5, 1e-5) * own.abs().max().item()
            if not (ours - own).abs().max().item() <= tolerance:
                return False
        return True

    def _advance(self, frontiers: Sequence[Frontier], segment: int) -> list[Tensor]:
        """Each row's states behind a segment, run in one call."""
        parts = [Part(frontier, frontier.passed[segment], frontier.waits(segment)) for frontier in frontiers]
        span = self.capture(frontiers[0].backbone, parts)
        hidden = torch.cat([frontier.waiting(segment) for frontier in frontiers], dim=1) if segment else span.hidden
        hidden = self.run(*frontiers[0].bounds[segment : segment + 2], hidden, span, parts[0])
        states = list(hidden.split([part.length for part in parts], dim=1))
        for frontier, state in zip(frontiers, states, strict=True):
            frontier.advanced(segment, state)
        return states


class _RowsCache(KVCache):
    """Cache of a ragged call: each row's keys go to its own.

    The keys that it hands on carry all that their queries may see, as `eelib_rows`.

    rows: layers of each row's cache, and how many positions of the call are the row's.
    """

    rows: Sequence[tuple[Sequence[Any], int]] = ()

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        keys = key_states.split([n for _, n in self.rows], dim=2)
        values = value_states.split([n for _, n in self.rows], dim=2)
        key_states.eelib_rows = [
            (n, *layers[layer_idx].update(*of_row))
            for (layers, n), *of_row in zip(self.rows, keys, values, strict=True)
        ]
        return key_states, value_states


def _ragged(backbone: Backbone, blocks: Sequence[nn.Module]) -> nn.ModuleList:
    """Copies of blocks whose attention takes several rows."""
    windows = KVCache(backbone.model.config, 0).windows
    kinds = ("sdpa", "eager", ROW_BY_ROW)
    return nn.ModuleList(
        with_attention(block, _ATTENTION, kinds, eelib_window=window)
        for block, window in zip(blocks, windows, strict=True)
    )


def _attention_of_rows(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """Attention of each row alone, over the keys in its own cache.

    query [1, head, position of all rows, width].
    """
    replaced, window = module.config.eelib_replaced, module.config.eelib_window
    own, rows, at = _function(replaced, type(module)), [], 0
    grouped = replaced == "sdpa" and not any(kwargs.get(name) for name in ("dropout", "softcap", "is_causal"))
    grouped &= kwargs.get("position_bias") is None and query.shape[1] > key.shape[1]
    if not hasattr(key, "eelib_rows"):  # as where keys are made of a latent that is cached
        raise _OtherKeysError
    for n, keys, values in key.eelib_rows:
        asked, mask = (
            query[:, :, at : at + n],
            _mask(n, keys.shape[2], window, replaced == "eager", query.dtype, query.device),
        )
        at += n
        if grouped and n <= _FEW and (n == 1 or mask is not None):
            rows.append(_grouped(asked, keys, values, mask, kwargs.get("scaling")))
        else:
            rows.append(own(module, asked, keys, values, mask, **kwargs)[0])
    return torch.cat(rows, dim=1), None


def _grouped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention of few queries, together for heads that share keys.

    torch's CPU kernel copies shared keys for every head, which takes several times as long. Returns [1, position, head,
    width].
    """
    n, groups, shared = query.shape[2], keys.shape[1], query.shape[1] // keys.shape[1]
    together = query.reshape(1, groups, shared * n, -1)
    mask = mask if mask is None else mask.repeat(1, 1, shared, 1)
    seen = F.scaled_dot_product_attention(together, keys, values, mask, scale=scale)
    return seen.view(1, groups * shared, n, -1).transpose(1, 2)


AttentionInterface.register(_ATTENTION, _attention_of_rows)


@functools.cache
def _function(name: str, of: type[nn.Module]) -> Callable[..., tuple[Tensor, Any]]:
    """Attention function of a name; the eager one is the model's own."""
    if name == "eager":
        return sys.modules[of.__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


@functools.lru_cache(maxsize=256)
def _mask(
    n: int, keys: int, window: int | None, eager: bool, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """Attention mask of n queries at the end of their keys.

    As transformers passes it: None where it passes none.
    """
    windowed = window is not None and keys >= window
    if not windowed and (n == 1 or (n == keys and not eager)):
        return None
    seen = _seen(n, keys, window).to(device)[None, None]
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min) if eager else seen


def _seen(n: int, keys: int, window: int | None) -> Bool[Tensor, "query key"]:
    """Keys that each of the last n positions sees.

    Those up to itself, within the window.
    """
    distance = torch.arange(keys - n, keys)[:, None] - torch.arange(keys)
    return (distance >= 0) & (distance < (window or keys))


def _masks_are_causal(backbone: Backbone, start: int, n: int) -> bool:
    """Whether each block gets the mask that `_seen` says.

    Or none, where it needs none.
    """
    cache = KVCache(backbone.model.config, 0)
    span = backbone.capture(torch.zeros(1, n, dtype=torch.long, device=backbone.model.device), start, cache)
    for call, layer, window in zip(span.calls, cache.layers, cache.windows, strict=True):
        keys = start + n - layer.first_seen(start)
        seen = _seen(n, keys, window).to(backbone.model.device)
        masks = [leaf for leaf in _leaves(call) if isinstance(leaf, Tensor) and leaf.ndim == 4]
        masks = [mask for mask in masks if mask.shape[-2:] == seen.shape]
        if not masks and not (seen.all() or (start == 0 and (window is None or n < window))):
            return False
        for mask in masks:
            shown = mask if mask.dtype == torch.bool else mask > -1e4
            if not (shown == seen).all() or (mask.dtype != torch.bool and mask[shown].any()):
                return False
    return True


def _same_around(together: Span, parts: Sequence[Part]) -> bool:
    """Whether blocks get each row's own arguments, end to end; masks apart."""
    backbone = parts[0].frontier.backbone
    alone = []
    for part in parts:
        tokens = part.frontier.tokens[:, part.start : part.start + part.length]
        alone.append(backbone.capture(tokens, part.start, KVCache(backbone.model.config, 0)))
    leaves = [[*_leaves((span.hidden, span.calls))] for span in (together, *alone)]
    return len({*map(len, leaves)}) == 1 and all(_same(ours, own) for ours, *own in zip(*leaves, strict=True))


def _same(ours: Any, own: Sequence[Any]) -> bool:
    """Whether an argument is that of each row, end to end.

    Caches are passed over, and 4-D tensors, which are masks.
    """
    if isinstance(ours, Cache) or all(leaf is None or (isinstance(leaf, Tensor) and leaf.ndim == 4) for leaf in own):
        return True
    if not isinstance(ours, Tensor):
        return all(leaf is ours or (type(leaf) is type(ours) and leaf == ours) for leaf in own)
    if not all(isinstance(leaf, Tensor) and leaf.ndim == ours.ndim for leaf in own):
        return False
    axes = [axis for axis in range(ours.ndim) if ours.shape[axis] != own[0].shape[axis]]
    if len(axes) > 1:
        return False
    pairs = [(ours, torch.cat(list(own), axes[0]))] if axes else [(ours, leaf) for leaf in own]
    if any(one.shape != other.shape for one, other in pairs):
        return False
    if not ours.is_floating_point():
        return all(torch.equal(*pair) for pair in pairs)
    size = ours.abs().max().item() if ours.numel() else 0.0  # products in front of the blocks are rounded otherwise
    tolerance = max(torch.finfo(ours.dtype).eps ** 0.5, 1e-5) * size
    return all(torch.allclose(*pair, rtol=0, atol=tolerance) for pair in pairs)


def _leaves(given: Any) -> Iterator[Any]:
    """Everything in nested tuples, lists and dicts."""
    if isinstance(given, Mapping):
        given = [given[name] for name in sorted(given)]
    if isinstance(given, tuple | list):
        for part in given:
            yield from _leaves(part)
    else:
        yield given


def _texts(backbone: Backbone) -> list[Tensor]:
    """Three texts to probe with, [1, position] each."""
    generator = torch.Generator().manual_seed(0)
    most = min(backbone.n_tokens, backbone.vocab_size)
    return [torch.randint(most, (1, 16), generator=generator).to(backbone.model.device) for _ in range(3)]


def _fed(backbone: Backbone, text: Tensor) -> Frontier:
    frontier = Frontier(backbone, (), 0)
    frontier.feed(text)
    return frontier
