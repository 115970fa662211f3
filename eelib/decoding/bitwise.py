"""Bit-exact verification: several drafts in one pass, with single-token bits.

In exact arithmetic a block's output at a position does not depend on the other positions of the call. In floating point
three things do: attention, which blocks its sums by the number of queries, some matrix products, and activations of
some widths. The blocks made here run only those row by row, and everything else at once. Which products need it is
probed on this machine, not listed; the result is checked by comparing whole blocks bit for bit.
"""

import copy
import weakref
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from eelib.backbone.kv_cache import KVCache, cache_argument
from eelib.backbone.packing import packed
from eelib.backbone.probing import StandIn, with_attention, with_parts
from eelib.backbone.products import MAX_ROWS, cancelling
from eelib.backbone.segments import Backbone
from eelib.errors import UnsupportedError

ROW_BY_ROW = "eelib_row_by_row"
"""Name of the attention that takes each query alone, in transformers' `AttentionInterface`."""
_invariant_rows: dict[tuple, frozenset[int]] = {}
_hidden_nothing = WeakTensorKeyDictionary()


class RowExact:
    """Blocks and unembedding that give each position the bits of plain decoding.

    Use `RowExact.of(backbone)`, which proves them; the constructor does not, as the proof takes some passes of the
    model.

    Attributes:
        blocks: to run in place of the backbone's own after the prompt.
        at_once: maximum number of positions in one call of them.
    """

    _known: ClassVar[weakref.WeakKeyDictionary] = weakref.WeakKeyDictionary()

    def __init__(self, backbone: Backbone):
        self._unembedding_rows = invariant_rows(backbone.unembedding)
        windows = KVCache(backbone.model.config, 0).windows
        blocks = (
            with_attention(_row_exact(block) or block, ROW_BY_ROW, eelib_window=window)
            for block, window in zip(backbone.blocks, windows, strict=True)
        )
        self.blocks, self.at_once = nn.ModuleList(blocks), MAX_ROWS

    def _prove(self, backbone: Backbone) -> None:
        if self._keeps_bits(backbone):
            return
        self.blocks, self.at_once = backbone.blocks, 1
        if not self._keeps_bits(backbone):
            raise UnsupportedError(
                f"exact=True: on this machine {type(backbone.model).__name__} in {backbone.model.dtype} with "
                f"{backbone.model.config._attn_implementation} attention computes other bits block by block than in "
                "its own forward. Leave exact out; differences are then near-ties, which eelib.verify_lossless shows."
            )

    @classmethod
    def of(cls, backbone: Backbone) -> "RowExact":
        """Exact blocks of a backbone, proved once.

        And again for another dtype, device, attention or number of threads.

        Raises:
            UnsupportedError: not even single positions get the bits of the model's own decoding.
        """
        model, of_backbone = backbone.model, cls._known.setdefault(backbone, {})
        key = model.dtype, model.device, model.config._attn_implementation, torch.get_num_threads()
        if key not in of_backbone:
            with packed(model):  # also where a caller has packed without keeping the bits
                exact = cls(backbone)
                exact._prove(backbone)
            of_backbone[key] = exact
        return of_backbone[key]

    def unembed(self, backbone: Backbone, hidden: Float[Tensor, "1 position hidden"]) -> Tensor:
        """The model's logits [1, position, vocab], with each row's own bits."""
        groups = row_groups(hidden, self._unembedding_rows)
        return torch.cat([backbone.unembed(group) for group in groups], dim=1)

    @torch.no_grad()
    def _keeps_bits(self, backbone: Backbone) -> bool:
        """Whether several positions get the logits of one-by-one decoding."""
        model, n_blocks, kept = backbone.model, backbone.n_blocks, cache_argument(backbone.model)
        generator = torch.Generator().manual_seed(0)
        for n_rows, prompt in ((2, 5), (3, 17), (5, 30), (9, 41)):
            text = torch.randint(backbone.vocab_size, (1, prompt + n_rows), generator=generator).to(model.device)
            own = model(text[:, :prompt], use_cache=True, **backbone.position_arguments(0, prompt))
            cache = KVCache(model.config, text.shape[1])
            span = backbone.capture(text[:, :prompt], 0, cache)
            backbone.run(0, n_blocks, span.hidden, span)
            found = []
            for start in range(prompt, prompt + n_rows, self.at_once):
                span = backbone.capture(text[:, start : start + self.at_once], start, cache)
                found.append(backbone.run(0, n_blocks, span.hidden, span, self.blocks))
            logits = self.unembed(backbone, torch.cat(found, dim=1))
            for i, token in enumerate(text[:, prompt:].split(1, dim=1)):
                own = model(
                    token, use_cache=True, **backbone.position_arguments(prompt + i, 1), **{kept: getattr(own, kept)}
                )
                if not torch.equal(own.logits[0, -1], logits[0, i]):
                    return False
        return True


def invariant_rows(product: nn.Module) -> frozenset[int]:
    """Numbers of rows for which a matrix product keeps each row's bits.

    Between 2 and MAX_ROWS, for a layer of one product. Found with inputs whose sums cancel, so that another order of
    additions shows in nearly every output. Depends on shape, dtype, device and number of threads, and is cached by
    them.
    """
    weight = product.weight
    key = (type(product), weight.shape, weight.stride(), weight.dtype, weight.device, torch.get_num_threads())
    if key not in _invariant_rows:
        _invariant_rows[key] = _probe_rows(product)
    return _invariant_rows[key]


@torch.no_grad()
def _probe_rows(product: nn.Module) -> frozenset[int]:
    weight = product.weight
    probe = copy.copy(product)
    probe._parameters = dict(product._parameters)
    width = weight.shape[1] if isinstance(product, nn.Linear) else weight.shape[0]
    synthetic, rows = cancelling(tuple(weight.shape), width, weight)
    probe._parameters["weight"], rows = nn.Parameter(synthetic, requires_grad=False), rows[None]
    alone = torch.cat([probe(rows[:, i : i + 1]) for i in range(MAX_ROWS)], dim=1)
    return frozenset(k for k in range(2, MAX_ROWS + 1) if torch.equal(probe(rows[:, :k]), alone[:, :k]))


class _Rows(StandIn):
    """Matrix product over several rows only where each keeps its bits."""

    def __init__(self, product: nn.Module, at_once: frozenset[int]):
        super().__init__(product)
        self.at_once = at_once

    def forward(self, x: Tensor) -> Tensor:
        groups = row_groups(x, self.at_once)
        return torch.cat([self.original(group) for group in groups], dim=-2) if len(groups) > 1 else self.original(x)


class _Activation(StandIn):
    """Elementwise function; rows that CPU loops do not fill go alone.

    The loop takes 128 bytes at a time; other code, which may round differently, does the remainder.
    """

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        if args or kwargs or x.ndim != 3 or x.shape[-1] * x.element_size() % 128 == 0:
            return self.original(x, *args, **kwargs)
        return torch.cat([self.original(row) for row in row_groups(x, frozenset())], dim=-2)


def row_groups(x: Float[Tensor, "... row width"], at_once: frozenset[int]) -> list[Tensor]:
    """Split [1, row, width] into groups that may share a call.

    All rows if their number is in `at_once`, else one by one.
    """
    if int(x.shape[-2]) in at_once:
        return [x]
    if x.shape[-2] > MAX_ROWS:
        return [group for part in x.split(MAX_ROWS, dim=-2) for group in row_groups(part, at_once)]
    # Viewed anew, since a slice keeps strides for which torch copies the weight (six times slower).
    return [row.view(*x.shape[:-2], 1, -1) for row in x.reshape(-1, x.shape[-1]).split(1)]


class _Alone(StandIn):
    """Part called row by row, because it mixes rows or is unknown."""

    def forward(self, x: Tensor, *args, **kwargs):
        if x.ndim != 3 or x.shape[1] == 1:
            return self.original(x, *args, **kwargs)
        found = [self.original(row, *args, **kwargs) for row in row_groups(x, frozenset())]
        if isinstance(found[0], tuple):  # beside the states, what only training looks at
            return torch.cat([each[0] for each in found], dim=1), *found[-1][1:]
        return torch.cat(found, dim=1)


def _row_exact(module: nn.Module) -> nn.Module | None:
    """Copy of a block, parameters shared, that is exact row by row.

    None for a part that is not covered (a router, experts in one tensor), whose parent then takes rows one by one.
    """
    weight = getattr(module, "weight", None)
    if weight is not None and weight.ndim == 2 and not isinstance(module, nn.Embedding):
        try:
            rows = invariant_rows(module)
        except Exception:  # whatever a part raises that is no product of rows with its weight
            return None
        return module if len(rows) == MAX_ROWS - 1 else _Rows(module, rows)
    if any(parameter.ndim > 2 for parameter in module.parameters(recurse=False)):
        return None
    if not any(True for _ in (*module.children(), *module.parameters(), *module.buffers())):
        return _Activation(module)
    parts = {name: _row_exact(child) for name, child in module.named_children()}
    return _Alone(module) if None in parts.values() else with_parts(module, parts)


def _attention_row_by_row(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """Attention of each query alone, over the keys of plain decoding.

    Neither later keys nor those that have left a sliding window. Query [batch, head, position, width].
    """
    n_rows, window = query.shape[2], module.config.eelib_window
    if n_rows == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows = []
    for i in range(n_rows):
        end = key.shape[2] - n_rows + i + 1
        first = max(end - window, 0) if window else 0
        mask = None if attention_mask is None else attention_mask[:, :, i : i + 1, first:end]
        if mask is not None and (window is None or end - first < window) and _hides_nothing(attention_mask, i, end):
            mask = None  # transformers leaves it out, too
        row = query[:, :, i : i + 1], key[:, :, first:end], value[:, :, first:end]
        rows.append(sdpa_attention_forward(module, *row, mask, **kwargs)[0])
    return torch.cat(rows, dim=1), None


AttentionInterface.register(ROW_BY_ROW, _attention_row_by_row)


def _hides_nothing(mask: Tensor, row: int, end: int) -> bool:
    """Whether a row sees all keys before it; cached over blocks."""
    found = _hidden_nothing.setdefault(mask, {})
    if row not in found:
        found[row] = mask.dtype == torch.bool and bool(mask[:, :, row, :end].all())
    return found[row]
