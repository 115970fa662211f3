"""Contexts in which a model's linear layers use packed products.

Which products keep a layer's bits, and which are fastest: `eelib.backbone.products`.
"""

import contextlib
import functools
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eelib.backbone.products import ALL_ROWS, Product, choose, equal_rows, may_differ, product_key

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def packed(*modules: nn.Module | None, exact: bool = True) -> Iterator[None]:
    """Context in which linear layers multiply from packed weights.

    `with packed(model): model.generate(...)`. Modules keep their identity, parameters, hooks and `state_dict`, and are
    restored on exit. The packed copies live as long as their module, or until `unpack`. Layers are left alone where
    packing gains nothing (a GPU, no fitting kernels, gradients, too little memory), as is one whose weight has changed
    since, until the next such context packs it again.

    Args:
        modules: models, heads; None is passed over.
        exact: only products that give the layer's own bits. If False, float32 layers may differ by rounding where that
            is faster; of several contexts on a module, an exact one prevails.
    """
    with contextlib.ExitStack() as entered:
        for module in (each for each in modules if each is not None):
            packing = _Packing.of(module)
            packing.enter(exact)
            entered.callback(packing.leave, exact)
        yield


def unpack(module: nn.Module) -> None:
    """Free the packed copies of a module's weights, unless in use."""
    with _Packing.lock:
        if module in _Packing.known and not _Packing.known[module].contexts:
            del _Packing.known[module]


class PackedLayer:
    """Mixin for the class of a packed module.

    Attributes:
        product: packed weight that it shares with its siblings.
        place: its own among them.
    """

    product: Product
    place: int

    def forward(self, x: Tensor) -> Tensor:
        product = self.product
        plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type))
        usable = plain and x.dtype is product.weight.dtype and x.is_contiguous()
        n_rows = int(x.numel()) // int(x.shape[-1] or 1)  # tensors while a block is recorded
        if usable and n_rows in product.rows and product.layers[self.place] is self:
            found = product.of_layer(self.place, x)
            if found is not None:
                return found
        return super().forward(x)


@functools.cache
def _packed_class(usual: type) -> type:
    return type(f"Packed{usual.__name__}", (PackedLayer, usual), {})


class _Packing:
    """All products of one model, and the active contexts.

    contexts: how many there are, by whether they are exact.
    exact: whether all have been so far.
    """

    known: ClassVar[weakref.WeakKeyDictionary] = weakref.WeakKeyDictionary()
    lock: ClassVar = threading.Lock()

    def __init__(self, module: nn.Module):
        self.module, self.contexts, self.exact = weakref.ref(module), Counter(), True
        self.products: list[Product] = []
        self.settings: tuple | None = None

    @classmethod
    def of(cls, module: nn.Module) -> "_Packing":
        with cls.lock:
            if module not in cls.known:
                cls.known[module] = cls(module)
            return cls.known[module]

    def enter(self, exact: bool) -> None:
        with self.lock:
            if not self.contexts:
                with torch.random.fork_rng(devices=[]):  # a look at a model in training draws dropout
                    self.exact &= exact
                    self._prepare()
                for product in self.products:
                    for place, layer in enumerate(product.layers):
                        layer.product, layer.place = product, place
                        layer.__class__ = _packed_class(type(layer))
            self.contexts[exact] += 1
            self._set_rows()

    def leave(self, exact: bool) -> None:
        with self.lock:
            self.contexts -= Counter([exact])
            if self.contexts:
                self._set_rows()
                return
            for product in self.products:
                product.last = None, ()
                for layer in product.layers:
                    layer.__class__ = type(layer).__bases__[1]
                    del layer.product, layer.place

    def _set_rows(self) -> None:
        for product in self.products:
            near = not self.contexts[True] and may_differ(product.layers)
            product.rows = ALL_ROWS if near else equal_rows(product.layers)

    def _prepare(self) -> None:
        """Pack what is new or has changed."""
        module = self.module()
        layers = [m for m in module.modules() if _fits(m)] if _available() else []
        near = not self.exact and any(may_differ([layer]) for layer in layers)
        settings = (near, torch.get_num_threads(), tuple((id(layer), layer.weight.dtype) for layer in layers))
        if settings != self.settings:  # also after another layer was put in a place
            needed = sum(layer.weight.nbytes for layer in layers)
            self.products, self.settings = [], settings
            if needed > psutil.virtual_memory().available / 2:
                _log.warning("Not packed: %.1f GB of weights would leave too little memory.", needed / 1e9)
                return
            groups = siblings(module, layers) if isinstance(module, PreTrainedModel) else [[m] for m in layers]
            for group in groups:
                self.products += choose(group, near)
            gained = sum(layer.weight.nbytes for product in self.products for layer in product.layers)
            if gained > 1e9:
                _log.warning("Packed weights take %.1f GB more; eelib.backbone.unpack frees them.", gained / 1e9)
        for i, product in enumerate(self.products):
            if not product.unchanged():
                self.products[i] = Product(product.layers)


def _available() -> bool:
    """Whether this build of torch has packed products."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _fits(module: nn.Module) -> bool:
    """Whether this is torch's own linear layer, or an equivalent (`packs`)."""
    computes_the_same = getattr(type(module), "packs", type(module) is nn.Linear)
    if not computes_the_same or isinstance(module, PackedLayer) or "forward" in vars(module):
        return False
    return module.weight.device.type == "cpu" and module.weight.is_contiguous()


@torch.no_grad()
def siblings(model: PreTrainedModel, layers: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Groups of layers that read the same input in one module.

    Found in one pass over two tokens; a layer that is not called exactly once is a group of its own.
    """
    parents = {id(child): parent for parent in model.modules() for child in parent.children()}
    calls: list[tuple[nn.Module, Tensor]] = []
    handles = [layer.register_forward_pre_hook(lambda m, args: calls.append((m, args[0]))) for layer in layers]
    try:
        model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    counts = Counter(layer for layer, _ in calls)
    groups: list[list[nn.Module]] = []
    before = None
    for layer, read in calls:
        if counts[layer] > 1:
            before = None
            continue
        joins = before is not None and before[1] is read and parents[id(before[0])] is parents[id(layer)]
        if joins and product_key([before[0]])[1:] == product_key([layer])[1:]:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        before = layer, read
    grouped = {id(layer) for group in groups for layer in group}
    return groups + [[layer] for layer in layers if id(layer) not in grouped]
