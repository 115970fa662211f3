"""Int8 matrix products, where speed matters more than the last digit."""

import functools

import torch
from torch import Tensor, nn

from eelib.backbone.probing import with_parts


def with_int8(module: nn.Module) -> nn.Module:
    """Shallow copy of `module` with int8 linear layers.

    Weights are rounded once, with one scale per output; inputs on arrival, with one scale per row. On a CPU with VNNI
    the products take a quarter to a third of float32's time. Only plain `nn.Linear` is replaced. (torchao's eager
    Int8DynamicActivationInt8WeightConfig was no faster than float32 when measured here; it needs torch.compile, which
    needs a compiler.)
    """
    return _with_int8(module, _Rounding())


def _with_int8(module: nn.Module, rounding: "_Rounding") -> nn.Module:
    if type(module) is nn.Linear:
        return _Int8Linear(module, rounding)
    return with_parts(module, {name: _with_int8(child, rounding) for name, child in module.named_children()})


def int8_pays(device: torch.device) -> bool:
    """Whether int8 beats other types here: a CPU with VNNI, without AMX."""
    quick = device.type == "cpu" and torch.cpu._is_vnni_supported() and not torch.cpu._is_amx_tile_supported()
    return quick and _sums_are_whole()


@functools.cache
def _sums_are_whole() -> bool:
    """Whether torch's int8 product is exact for the largest numbers.

    Without VNNI it adds pairs in 16 bits, which overflow silently.
    """
    most = torch.full((16, 256), 127, dtype=torch.int8)
    return bool((torch._int_mm(most, most.t()) == 256 * 127**2).all())


class _Rounding:
    """Rounds the layers' inputs.

    Once for layers that read the same one after another, such as those of queries and keys.
    """

    def __init__(self):
        self.read, self.version, self.found = None, None, None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Int8 numbers, [row, input], and their step sizes, [row, 1]."""
        version = None if x.is_inference() else x._version  # torch does not count changes in inference mode
        if self.read is not x or version is None or version != self.version:
            rows = x.flatten(0, -2).float()
            scale = _scale(rows)
            self.read, self.version, self.found = x, version, ((rows / scale).round_().to(torch.int8), scale)
        return self.found


class _Int8Linear(nn.Module):
    def __init__(self, linear: nn.Linear, rounding: _Rounding):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = _scale(weight)
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("rounded", (weight / scale).round_().to(torch.int8).t())
        self.bias, self.rounding = linear.bias, rounding

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = self.rounding(x)
        if _sums_are_whole():
            product = torch._int_mm(rows, self.rounded).float()
        else:
            product = (rows.double() @ self.rounded.double()).float()  # the same sums; slow, but `int8_pays` says so
        product.mul_(scale).mul_(self.scale)
        if self.bias is not None:
            product += self.bias
        return product.to(x.dtype).unflatten(0, x.shape[:-1])


def _scale(rows: Tensor) -> Tensor:
    """Step size of int8 for each row, [row, 1]."""
    return rows.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(rows.dtype).tiny).div_(127)
