"""Products from prepacked weights: exact ones and fast ones.

On a CPU a bfloat16 linear layer hands its weight to oneDNN row by row at every call; prepacked in oneDNN's layout, the
same product takes half the time. In float32 torch asks MKL, which on some processors takes half as long again for one
row, and two to four times as long for a few. Layers that read the same input become one product. Each is probed on
this machine.
"""

import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_ROWS = 32
"""Maximum number of rows for packed products."""
CACHED = 2**18
"""Bytes up to which float32 weights are left alone: a processor's cache holds them."""
GAIN = 1.2
"""How many times as fast a product has to be for its bits to be given up."""

ALL_ROWS = frozenset(range(1, MAX_ROWS + 1))
_equal_rows: dict[tuple, frozenset[int]] = {}
_quickest: dict[tuple, str] = {}


class Stamps:
    """Notice when parameters or buffers are replaced or written."""

    def __init__(self, modules: Iterable[nn.Module]):
        held = [each for module in modules for each in (module._parameters, module._buffers)]
        self._stamps = [_stamp(each, name) for each in held for name in each]

    @property
    def fresh(self) -> bool:
        """Whether none was replaced, moved or written since."""
        for held, name, tensor, address, version in self._stamps:
            if held[name] is not tensor:
                return False
            if tensor is not None and (tensor.data_ptr() != address or _version(tensor) != version):
                return False
        return True


class Product:
    """Packed weight of one or several linear layers with one input.

    rows: numbers of rows for which it is used.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers, self.widths = layers, [len(layer.weight) for layer in layers]
        self.weight = _pack(torch.cat([layer.weight.detach() for layer in layers]))
        biases = [layer.bias for layer in layers]
        self.bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self.stamps = Stamps(layers)
        self.samples = [_sample(layer) for layer in layers]
        self.rows: frozenset[int] = frozenset()
        self.last: tuple[Tensor | None, tuple[Tensor, ...]] = None, ()

    def unchanged(self) -> bool:
        """Whether no weight was replaced or written.

        A sample of the values, taken when a context begins, shows what bypasses torch's version counter
        (`weight.data += ...`).
        """
        samples = zip(self.layers, self.samples, strict=True)
        return self.stamps.fresh and all(torch.equal(_sample(layer), sample) for layer, sample in samples)

    def of_layer(self, place: int, x: Tensor) -> Tensor | None:
        """Output of the layer at this place; None if not packed."""
        if place == 0:
            if not self.stamps.fresh:
                return None
            product = _multiply(x, self.weight, self.bias)
            if len(self.widths) == 1:
                return product
            parts = product.split(self.widths, dim=-1)
            self.last = x, parts
            return parts[0]
        read, parts = self.last
        if read is not x:
            return None
        if place == len(parts) - 1:
            self.last = None, ()
        return parts[place]


def may_differ(layers: Sequence[nn.Module]) -> bool:
    """Whether these layers' products may have other bits without exactness.

    In float32 a difference is far below what tells two tokens apart; in 16 bits it is not.
    """
    weights = [layer.weight for layer in layers]
    return weights[0].dtype is torch.float32 and sum(weight.nbytes for weight in weights) > CACHED


def choose(layers: Sequence[nn.Module], near: bool) -> list[Product]:
    """The fastest way: one product, one each, or no packing.

    Among those that keep the bits, unless `near` does for layers that may differ.
    """
    near = near and may_differ(layers)
    key = (*product_key(layers), torch.get_num_threads(), near)
    ways = {"plain": [], "alone": [[layer] for layer in layers], "together": [list(layers)]}
    if len(layers) == 1:
        del ways["together"]
    if key not in _quickest:
        kept = [way for way, parts in ways.items() if near or all(1 in equal_rows(part) for part in parts)]
        options = {way: ways[way] for way in kept}
        if len(kept) == 1:
            _quickest[key] = "plain"
        elif near:  # a token, and a verification
            _quickest[key] = quickest(layers, options, rows=(1, 4), gain=GAIN, repeats=5)
        else:
            _quickest[key] = quickest(layers, options)
    return [Product(part) for part in ways[_quickest[key]]]


@torch.no_grad()
def quickest(
    layers: Sequence[nn.Module],
    ways: dict[str, list[list[nn.Module]]],
    rows: Sequence[int] = (1,),
    gain: float = 1,
    repeats: int = 15,
) -> str:
    """Fastest way through the layers, over all numbers of rows, interleaved.

    ways: by name, the groups of layers that share a packed product; an empty one uses the layers' own weights.
    gain: how many times as fast as the first way another has to be.
    """
    like = layers[0].weight
    calls: dict[str, list[Callable[[Tensor], object]]] = {}
    for way, parts in ways.items():
        own = [lambda x, layer=layer: F.linear(x, layer.weight, layer.bias) for layer in layers]
        products = [Product(part) for part in parts]
        calls[way] = [lambda x, p=p: _multiply(x, p.weight, p.bias).split(p.widths, -1) for p in products] or own
    taken = dict.fromkeys(ways, 0.0)
    for x in (torch.ones(n, like.shape[1], dtype=like.dtype) for n in rows):
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, some in calls.items():
                started = time.perf_counter()
                for call in some:
                    call(x)
                seconds[way].append(time.perf_counter() - started)
        for way, found in seconds.items():
            taken[way] += statistics.median(found)
    first, best = next(iter(taken)), min(taken, key=taken.__getitem__)
    return best if taken[best] * gain <= taken[first] else first


@torch.no_grad()
def equal_rows(layers: Sequence[nn.Module]) -> frozenset[int]:
    """Numbers of rows, up to MAX_ROWS, that packed products compute exactly.

    Found with random weights and rows, and with some whose sums cancel, so that another order of additions shows in
    nearly every output. Cached by shapes, dtype and number of threads.
    """
    key = (*product_key(layers), torch.get_num_threads())
    if key not in _equal_rows:
        try:
            _equal_rows[key] = _probe(layers)
        except RuntimeError:  # no such kernel for this type on this processor
            _equal_rows[key] = frozenset()
    return _equal_rows[key]


def _probe(layers: Sequence[nn.Module]) -> frozenset[int]:
    widths, like = [len(layer.weight) for layer in layers], layers[0].weight
    shape = sum(widths), like.shape[1]
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(like.dtype)

    biases = None if layers[0].bias is None else random(shape[0])
    equal = set(ALL_ROWS)
    for weight, rows in (random(*shape), random(MAX_ROWS, shape[1])), cancelling(shape, shape[1], like):
        packed_weight, parts = _pack(weight), weight.split(widths)
        bias_parts = [None] * len(parts) if biases is None else biases.split(widths)
        for k in list(equal):
            own = [F.linear(rows[:k], w, b) for w, b in zip(parts, bias_parts, strict=True)]
            if not torch.equal(_multiply(rows[:k], packed_weight, biases), torch.cat(own, dim=-1)):
                equal.remove(k)
    return frozenset(equal)


def cancelling(shape: tuple[int, int], width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and rows whose products cancel, to expose another summation order.

    A weight [shape] and MAX_ROWS rows [row, width], cancelling along either axis, with the dtype and device of `like`.
    """
    on = {"device": like.device}
    generator = torch.Generator(like.device).manual_seed(0)
    n, m = (size // 2 for size in shape)
    quarter = torch.randn(n, m, generator=generator, **on).to(like.dtype)
    weight = torch.zeros(shape, dtype=like.dtype, **on)
    weight[: 2 * n, : 2 * m] = quarter.repeat(2, 2)
    half = torch.randn(MAX_ROWS, width // 2, generator=generator, **on).to(like.dtype)
    rows = torch.zeros(MAX_ROWS, width, dtype=like.dtype, **on)
    rows[:, : 2 * (width // 2)] = torch.cat([half, -half], dim=-1)
    return weight, rows


def product_key(layers: Sequence[nn.Module]) -> tuple:
    """What decides which products are exact and fast: widths, input, type, bias."""
    weight = layers[0].weight
    return tuple(len(layer.weight) for layer in layers), weight.shape[1], weight.dtype, layers[0].bias is None


def _stamp(held: dict[str, Tensor | None], name: str) -> tuple:
    """Identity, address and version of a tensor."""
    tensor = held[name]
    return held, name, tensor, *((None, None) if tensor is None else (tensor.data_ptr(), _version(tensor)))


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version  # torch does not count changes in inference mode


def _sample(layer: nn.Module) -> Tensor:
    values = layer.weight.detach().flatten()
    values = values[:: max(1, values.numel() // 64)]
    return values.clone() if layer.bias is None else torch.cat([values, layer.bias.detach()])


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, 1)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.jit.is_tracing():
        return _scripted()(x, weight, bias)
    return _operator()(x, weight, bias, "none", [], "")


@functools.cache
def _operator() -> Callable:
    return torch.ops.mkldnn._linear_pointwise.default  # by its overload, which takes less time to find


@functools.cache
def _scripted() -> Callable:
    """The operator for the tracer, which knows no lists of optional numbers."""
    source = """
def multiply(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    scalars = torch.jit.annotate(List[Optional[Union[int, float, complex]]], [])
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", scalars, "")
"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript's age
        return torch.jit.CompilationUnit(source).multiply
