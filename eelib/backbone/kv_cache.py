"""Preallocated key-value cache with rollback; its layers may differ in length."""

import inspect

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from eelib.errors import ModelError


def cache_argument(module: nn.Module) -> str:
    """Name of a `forward`'s cache argument, which transformers 5.24 renamed."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


class KVLayer(CacheLayerMixin):
    """Keys and values of one block, in a doubling buffer.

    All are kept, so that any can be rolled back; a sliding-window layer returns only those in its window.
    """

    def __init__(self, capacity: int, window: int | None, kept_in: torch.dtype | None):
        super().__init__()
        self.capacity, self.window, self.kept_in, self.length = capacity, window, kept_in, 0
        self.is_sliding = window is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (
            like.new_empty((*like.shape[:2], self.capacity, like.shape[3]), dtype=self.kept_in)
            for like in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, n = self.length, key_states.shape[2]
        seen = self.extend(n)
        self.keys[:, :, start : start + n] = key_states
        self.values[:, :, start : start + n] = value_states
        return seen

    def extend(self, n: int) -> tuple[Tensor, Tensor]:
        """Make room for n positions.

        Returns the keys and values that they see; their own, the last ones, are still to be written.
        """
        if self.length + n > self.capacity:
            self._grow(self.length + n)
        self.length += n
        return self.seen(n)

    def seen(self, n: int) -> tuple[Tensor, Tensor]:
        """Keys and values that the last n positions see."""
        first = self.first_seen(self.length - n)
        return self.keys[:, :, first : self.length], self.values[:, :, first : self.length]

    def _grow(self, needed: int) -> None:
        old_keys, old_values = self.keys, self.values
        self.capacity = max(needed, 2 * self.capacity)
        self.lazy_initialization(old_keys, old_values)
        self.keys[:, :, : self.length] = old_keys[:, :, : self.length]
        self.values[:, :, : self.length] = old_values[:, :, : self.length]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.keys = self.keys.repeat_interleave(repeats, dim=0)
        self.values = self.values.repeat_interleave(repeats, dim=0)

    def first_seen(self, start: int) -> int:
        """Oldest position visible from position `start`."""
        return 0 if self.window is None else max(start - self.window + 1, 0)

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, start: int | None = None) -> tuple[int, int]:
        start = self.length if start is None else start
        first = self.first_seen(start)
        return start + query_length - first, first

    def get_max_length(self) -> int:
        return -1


class KVCache(Cache):
    """Preallocated transformers cache with rollback, layer by layer.

    Layers may hold different numbers of positions. It is also faster than the concatenating cache in plain
    `model.generate(..., past_key_values=KVCache(...))`.

    Args:
        config: of the model, for its sliding windows.
        capacity: positions to allocate; it grows beyond that at the cost of a copy.
        kept_in: dtype of keys and values, which the model's attention must support; None for the model's.

    Attributes:
        reported: length that all layers report while a model prepares its blocks' inputs; None for their own.

    Raises:
        ModelError: a layer keeps something other than keys and values, such as a recurrent state.
    """

    def __init__(self, config: PreTrainedConfig, capacity: int, kept_in: torch.dtype | None = None):
        layers = DynamicCache(config=config).layers
        other = sorted({type(layer).__name__ for layer in layers if not hasattr(layer, "is_sliding")})
        if other:
            raise ModelError(
                f"{config.model_type} keeps its past in {', '.join(other)}, which cannot be rolled back: expected keys "
                "and values in every block."
            )
        self.windows = [layer.sliding_window if layer.is_sliding else None for layer in layers]
        super().__init__(layers=[KVLayer(capacity, window, kept_in) for window in self.windows])
        self.reported: int | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) if self.reported is None else self.reported

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.layers[layer_idx].get_mask_sizes(query_length, self.reported)

    def truncate(self, first: int, last: int, length: int) -> None:
        """Roll the layers first, ..., last - 1 back to `length` positions."""
        for layer in self.layers[first:last]:
            layer.length = min(layer.length, length)
