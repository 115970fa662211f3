"""Block graphs: recorded operations, replayed without Python, bit for bit.

Between matrix products a step of decoding spends its time in Python around small operations. TorchScript's tracer
records the operations of a block, and its interpreter replays them: the same kernels in the same order. What a trace
would freeze is looked for: a block that decides by values, asks its cache for more than keys and values, or is wrapped
in others' code runs as it is, and so does one whose replay differs from it in a single bit.
"""

import copy
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache, PreTrainedConfig

from eelib.backbone.kv_cache import KVCache, KVLayer
from eelib.backbone.packing import PackedLayer
from eelib.backbone.products import MAX_ROWS, Stamps
from eelib.backbone.segments import Span

RECORD_AFTER = 4
"""Calls with a number of rows after which a block is recorded for it."""

_OWN = ("torch.", "transformers.", "eelib.")
_UNREPLAYABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Graphs:
    """Recorded operations of a list of blocks.

    Use `Graphs.of(blocks)` once a text: it looks for parts, hooks and settings that were changed.
    """

    _known: ClassVar[weakref.WeakKeyDictionary] = weakref.WeakKeyDictionary()
    _lock: ClassVar = threading.Lock()

    def __init__(self, blocks: nn.ModuleList):
        self._recorded: dict[tuple, list[Callable[..., Tensor]]] = {}  # by what blocks of one kind have in common
        self._blocks = [_Block(block, index, self._recorded) for index, block in enumerate(blocks)]

    @classmethod
    def of(cls, blocks: nn.ModuleList) -> "Graphs":
        """Graphs of these blocks, kept as long as they are."""
        with cls._lock:
            known = cls._known.get(blocks)
            if known is None or len(known._blocks) != len(blocks):
                known = cls._known[blocks] = cls(blocks)
            known._blocks = [
                old if old.describes(block) else _Block(block, old.index, known._recorded)
                for old, block in zip(known._blocks, blocks, strict=True)
            ]
            return known

    def record_soon(self, n_rows: int) -> None:
        """Record at the next call with this number of rows."""
        for block in self._blocks:
            block.due.add(n_rows)

    def run(
        self,
        first: int,
        last: int,
        hidden: Float[Tensor, "batch position hidden"],
        span: Span,
        cache: KVCache,
    ) -> Tensor:
        """Run blocks on a span as `Backbone.run` does, replaying what is recorded.

        Returns:
            [batch, position, hidden].
        """
        with torch.jit.optimized_execution(False):
            for index in range(first, last):
                hidden = self._blocks[index](hidden, *span.calls[index], cache.layers[index])
        return hidden


def replayable(hidden: Tensor) -> bool:
    """Whether replays may stand in here: few rows, without gradients or autocasting."""
    plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled(hidden.device.type))
    return plain and hidden.shape[1] <= MAX_ROWS and hidden.is_contiguous()


class _Block:
    """Graphs of one block, by number of rows and form of call."""

    def __init__(self, block: nn.Module, index: int, recorded: dict[tuple, list[Callable[..., Tensor]]]):
        self.index, self._block, self._recorded = index, weakref.ref(block), recorded
        self._stamps, self._products = Stamps(block.modules()), weakref.WeakSet(_products(block))
        self._settings = _settings(block)
        self.due: set[int] = set()  # numbers of rows to record at the next call
        self._calls: Counter = Counter()
        self._graphs: dict[tuple, _Graph | None] = {}  # None where it cannot be replayed
        self._turn = threading.Lock()

    def describes(self, block: nn.Module) -> bool:
        same = self._block() is block and self._settings == _settings(block) and self._stamps.fresh
        return same and set(self._products) == _products(block)

    def __call__(self, hidden: Tensor, args: tuple, kwargs: dict, layer: KVLayer) -> Tensor:
        form, tensors = _form(args, kwargs)
        n_rows = hidden.shape[1]
        key = n_rows, hidden.shape[0], form
        graph = self._graphs.get(key)
        fresh = layer.is_initialized and self._stamps.fresh
        if graph is not None and fresh and graph.known_at(layer.length + n_rows):
            return graph.replay(hidden, *layer.extend(n_rows), *tensors, *graph.weights)
        block = self._block()
        self._calls[key] += 1
        due = n_rows in self.due or self._calls[key] > RECORD_AFTER
        wanted = due and self._graphs.get(key, True) is not None
        if not (wanted and fresh) or form is None or self._settings is None:
            return _state(block(hidden, *args, **kwargs))
        with self._turn:
            return self._compared(key, block, _Call(hidden, args, kwargs, tensors, layer))

    def _compared(self, key: tuple, block: nn.Module, call: "_Call") -> Tensor:
        """Run the block itself, and compare its graph.

        It is recorded if it is not yet, and kept only where it gives the same bits.
        """
        length = call.layer.length + call.n_rows
        with _Watch() as watch:
            found = _state(block(call.hidden, *call.args, **call.kwargs))
        if key not in self._graphs:
            unusual = watch.unreplayable or call.layer.length != length
            self._graphs[key] = None if unusual else self._graph(key, found, block, call)
        elif not self._graphs[key].equals(found, call):
            self._graphs[key] = None
        return found

    def _graph(self, key: tuple, found: Tensor, block: nn.Module, call: "_Call") -> "_Graph | None":
        """Graph of a call that was just made.

        Another block's of the same kind where it holds, or else its own.
        """
        weights = _weights(block)
        kind = key, *self._settings, *((weight.dtype, weight.is_mkldnn or weight.shape) for weight in weights)
        recorded = self._recorded.setdefault(kind, [])
        for replay in recorded:
            graph = _Graph(replay, weights)
            if graph.equals(found, call):
                return graph
        replay = _record(block, self.index, call)
        graph = None if replay is None else _Graph(replay, weights)
        if graph is None or not graph.equals(found, call):
            return None
        recorded.append(replay)
        return graph


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a block, which has been made.

    Attributes:
        hidden: state before the block, [batch, position, hidden].
        args, kwargs: its other arguments.
        tensors: those among them.
        layer: keys and values of the block.
    """

    hidden: Tensor
    args: tuple
    kwargs: dict
    tensors: list[Tensor]
    layer: KVLayer

    @property
    def n_rows(self) -> int:
        return self.hidden.shape[1]

    @property
    def seen(self) -> tuple[Tensor, Tensor]:
        """Keys and values that the rows see, their own last."""
        return self.layer.seen(self.n_rows)


class _Graph:
    """Operations of one block for some number of rows.

    replay: takes hidden state, the keys and values seen (the new rows last, to be written), the tensors of the call,
        and the block's weights; returns the hidden state. Blocks of one kind share it.
    """

    def __init__(self, replay: Callable[..., Tensor], weights: list[Tensor]):
        self.replay, self.weights = replay, weights
        self._lengths: set[int] = set()  # at which it was compared
        self._magnitudes: set[int] = set()  # of these

    def known_at(self, length: int) -> bool:
        """Whether the graph was compared at enough other lengths.

        At two, which shows a length that was frozen, and at one up to the same power of two, since a block may decide
        by length.
        """
        return len(self._lengths) > 1 and _magnitude(length) in self._magnitudes

    def equals(self, found: Tensor, call: _Call) -> bool:
        """Whether a replay gives the bits that the block just gave.

        The block's own stay in the cache.
        """
        n_rows, seen, length = call.n_rows, call.seen, call.layer.length
        own = [part[:, :, -n_rows:].clone() for part in seen]
        try:
            replayed = self.replay(call.hidden, *seen, *call.tensors, *self.weights)
            new = [part[:, :, -n_rows:] for part in seen]
            same = torch.equal(replayed, found) and all(map(torch.equal, new, own))
        except Exception:  # whatever an operation raises at sizes other than those recorded
            same = False
        if same:
            self._lengths.add(length)
            self._magnitudes.add(_magnitude(length))
        else:
            for part, written in zip(seen, own, strict=True):
                part[:, :, -n_rows:] = written
        return same


class _SeenCache(Cache):
    """Stand-in for the cache while a call is recorded."""

    def __init__(self, index: int, keys: Tensor, values: Tensor):
        self.index, self.keys, self.values, self.updates = index, keys, values, 0

    def __getattribute__(self, name: str):
        if name in ("index", "keys", "values", "updates", "update") or name.startswith("__"):
            return object.__getattribute__(self, name)
        raise AttributeError(f"{name}: a block that asks its cache for more than keys and values is not recorded.")

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        if layer_idx != self.index:
            raise AttributeError(f"update({layer_idx}): keys and values of another block.")
        self.updates += 1
        self.keys[:, :, -key_states.shape[2] :] = key_states
        self.values[:, :, -value_states.shape[2] :] = value_states
        return self.keys, self.values


class _Watch(TorchDispatchMode):
    """Watch for operations whose values Python looks at.

    Or whose values decide the size of a tensor.
    """

    unreplayable = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.unreplayable |= not _UNREPLAYABLE.isdisjoint(func.tags)
        return func(*args, **(kwargs or {}))


def _record(block: nn.Module, index: int, call: _Call) -> Callable[..., Tensor] | None:
    """Replay of a call; None if the block cannot be recorded."""
    copied = _Copied(block)
    tensors, weights, caches = call.tensors, _weights(block), []

    def run(hidden: Tensor, keys: Tensor, values: Tensor, *inputs: Tensor) -> Tensor:
        of_call = iter(inputs[: len(tensors)])
        copied.fill(inputs[len(tensors) :])
        caches.append(_SeenCache(index, keys, values))
        given = [_filled(value, of_call, caches[-1]) for value in call.args]
        named = {name: _filled(value, of_call, caches[-1]) for name, value in call.kwargs.items()}
        return _state(copied.block(hidden, *given, **named))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, of conditions on sizes, which comparing covers
            example = (call.hidden, *call.seen, *tensors, *weights)
            # As torch.jit.trace does, which would keep the function for ever in a unit of all the process's functions.
            graph, _ = torch._C._create_graph_by_tracing(run, example, lambda value: "", True, False)
            replay = torch._C._create_function_from_graph("replay", graph)
    except Exception:  # whatever a block's code or the tracer raises where it cannot be traced
        return None
    return replay if caches[-1].updates == 1 else None


class _Copied:
    """Copy of a block whose weights can be put in place.

    block: the copy.
    """

    def __init__(self, block: nn.Module):
        self._places: list[tuple[object, str]] = []
        self._products: dict[object, object] = {}
        self.block = self._copy(block, {})

    def fill(self, weights: Sequence[Tensor]) -> None:
        """Put weights, in the order of `_weights`, in place."""
        for (holder, name), weight in zip(self._places, weights, strict=True):
            holder[name] = weight

    def _copy(self, module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
        if module in known:
            return known[module]
        copied = known[module] = copy.copy(module)
        for name in ("_parameters", "_buffers"):
            own = vars(copied)[name] = dict(vars(module)[name])
            self._places += [(own, key) for key, tensor in own.items() if tensor is not None]
        if isinstance(module, PackedLayer):
            if module.product not in self._products:
                self._products[module.product] = copy.copy(module.product)
                self._products[module.product].layers = []
                self._places.append((vars(self._products[module.product]), "weight"))
            copied.product = self._products[module.product]
            copied.product.layers.append(copied)
        vars(copied)["_modules"] = {n: m and self._copy(m, known) for n, m in module._modules.items()}
        return copied


def _weights(block: nn.Module) -> list[Tensor]:
    """Parameters, buffers and packed weights of a block."""
    found, products = [], set()
    for module in block.modules():
        found += [t for held in (module._parameters, module._buffers) for t in held.values() if t is not None]
        if isinstance(module, PackedLayer) and module.product not in products:
            products.add(module.product)
            found.append(module.product.weight)
    return found


def _magnitude(length: int) -> int:
    return (length - 1).bit_length()


def _products(block: nn.Module) -> set:
    return {module.product for module in block.modules() if isinstance(module, PackedLayer)}


def _settings(block: nn.Module) -> tuple | None:
    """What else a block's output may depend on.

    None if it has code that no trace would show.
    """
    found = []
    for module in block.modules():
        kept = vars(module)
        if kept["_forward_hooks"] or kept["_forward_pre_hooks"] or "forward" in kept:
            return None
        if not type(module).__module__.startswith(_OWN):
            return None
        found.append(type(module))
        found += [kept[n] for n in kept if n != "layer_idx" and isinstance(kept[n], bool | int | float | str)]
        if isinstance(kept.get("config"), PreTrainedConfig):
            found.append(kept["config"]._attn_implementation)
        if isinstance(module, PackedLayer):
            found += [module.place, module.product.rows]
    return tuple(found)


def _leaves(args: tuple, kwargs: dict) -> Iterator:
    for value in (*args, *kwargs.values()):
        if type(value) is tuple:
            yield from value
        else:
            yield value


def _form(args: tuple, kwargs: dict) -> tuple[tuple | None, list[Tensor]]:
    """What calls of one graph share, and their tensors.

    None where nothing is known of that.
    """
    form, tensors = [*kwargs], []
    for leaf in _leaves(args, kwargs):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
            form.append(Tensor)
        elif isinstance(leaf, Cache):
            form.append(Cache)
        elif leaf is None or isinstance(leaf, bool | str):
            form.append(leaf)
        else:  # numbers, which may change from call to call, or anything else
            return None, []
    return tuple(form), tensors


def _filled(value: object, tensors: Iterator[Tensor], cache: Cache) -> object:
    if type(value) is tuple:
        return tuple(_filled(leaf, tensors, cache) for leaf in value)
    if isinstance(value, Tensor):
        return next(tensors)
    return cache if isinstance(value, Cache) else value


def _state(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
