"""How far each position has got: a KV cache with a length per layer, and the hidden states that wait at the exits.

Blocks are cut at the exit depths into segments. A position that exits leaves its hidden state at that boundary; the
next time the segment above runs, it takes all that wait there in one call. No fed token passes a block twice.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from eelib.backbone import Backbone, Span


class _KVLayer(CacheLayerMixin):
    """Keys and values of one block in a buffer that is allocated ahead and grows by doubling."""

    is_sliding = False

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_empty((*key_states.shape[:2], self.capacity, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], self.capacity, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self.capacity:
            self._grow(end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grow(self, needed: int) -> None:
        old_keys, old_values = self.keys, self.values
        self.capacity = max(needed, 2 * self.capacity)
        self.lazy_initialization(old_keys, old_values)
        self.keys[:, :, : self.length] = old_keys[:, :, : self.length]
        self.values[:, :, : self.length] = old_values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1


class KVCache(Cache):
    """A transformers cache, allocated ahead, whose layers may hold different numbers of positions.

    Also quicker than the concatenating cache for plain `model.generate(..., past_key_values=KVCache(...))`.

    Args:
        n_blocks: number of layers.
        capacity: positions to allocate for; more than that is taken, at the price of a copy.
    """

    def __init__(self, n_blocks: int, capacity: int):
        super().__init__(layers=[_KVLayer(capacity) for _ in range(n_blocks)])
        self._reported: int | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) if self._reported is None else self._reported

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length(layer_idx) + query_length, 0

    def truncate(self, first: int, last: int, length: int) -> None:
        """Forgets what the layers first, ..., last - 1 hold beyond `length` positions."""
        for layer in self.layers[first:last]:
            layer.length = min(layer.length, length)


class Frontier:
    """One sequence on its way through the segments of a backbone.

    Segment s runs the blocks bounds[s], ..., bounds[s + 1] - 1; the last one ends at the model's last block.

    Args:
        backbone: the model.
        depths: where to cut, ascending; may be empty.
        capacity: positions to allocate for.
    """

    def __init__(self, backbone: Backbone, depths: tuple[int, ...], capacity: int):
        self.backbone = backbone
        self.bounds = (0, *depths, backbone.n_blocks)
        self.cache = KVCache(backbone.n_blocks, capacity)
        self.block_positions = [0] * backbone.n_blocks
        self.block_calls = [0] * backbone.n_blocks
        self._passed = [0] * self.n_segments  # positions that have left each segment
        self._waiting: list[Tensor | None] = [None] * self.n_segments  # [1, position, hidden] at each entrance
        self._tokens: Tensor | None = None  # [1, position], all that were fed
        self._spans: dict[tuple[int, int], Span] = {}

    @property
    def n_segments(self) -> int:
        return len(self.bounds) - 1

    @property
    def length(self) -> int:
        """Positions fed so far."""
        return 0 if self._tokens is None else self._tokens.shape[1]

    def feed(self, tokens: Int[Tensor, "1 position"]) -> None:
        """Embeds the next tokens; they wait at the entrance of segment 0."""
        start = self.length
        self._tokens = tokens if self._tokens is None else torch.cat([self._tokens, tokens], dim=1)
        self._spans.clear()  # spans that end before the newest position are never asked for again
        span = self._span(start, tokens.shape[1])
        self._arrive(0, span.hidden)

    def advance(self, segment: int) -> Float[Tensor, "1 position hidden"]:
        """Runs a segment on every position that waits at its entrance; returns their states at its exit.

        The states also wait at the entrance of the next segment, if there is one.
        """
        hidden = self._waiting[segment]
        span = self._span(self._passed[segment], hidden.shape[1])
        first, last = self.bounds[segment], self.bounds[segment + 1]
        hidden = self.backbone.run(first, last, hidden, span)
        for block in range(first, last):
            self.block_positions[block] += span.length
            self.block_calls[block] += 1
        self._waiting[segment] = None
        self._passed[segment] += span.length
        if segment + 1 < self.n_segments:
            self._arrive(segment + 1, hidden)
        return hidden

    def complete(self) -> Float[Tensor, "1 position hidden"]:
        """Runs all that waits anywhere to the end; returns the states of the positions that got there just now."""
        for segment in range(self.n_segments):
            if self._waiting[segment] is not None:
                hidden = self.advance(segment)
        return hidden

    def roll_back(self, length: int) -> None:
        """Forgets every position from `length` on, in all segments."""
        if length >= self.length:
            return
        self._tokens = self._tokens[:, :length]
        self._spans.clear()
        for segment in range(self.n_segments):
            self._passed[segment] = min(self._passed[segment], length)
            self.cache.truncate(self.bounds[segment], self.bounds[segment + 1], length)
            if self._waiting[segment] is not None:
                kept = self._waiting[segment][:, : length - self._passed[segment]]
                self._waiting[segment] = kept if kept.shape[1] else None

    def _arrive(self, segment: int, hidden: Tensor) -> None:
        waiting = self._waiting[segment]
        self._waiting[segment] = hidden if waiting is None else torch.cat([waiting, hidden], dim=1)

    def _span(self, start: int, length: int) -> Span:
        if (start, length) not in self._spans:
            self.cache._reported = start
            try:
                tokens = self._tokens[:, start : start + length]
                self._spans[start, length] = self.backbone.capture(tokens, start, self.cache)
            finally:
                self.cache._reported = None
        return self._spans[start, length]
