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
    if type(module) is nn.Linear:
        return _Int8Linear(module)
    return with_parts(module, {name: with_int8(child) for name, child in module.named_children()})


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


class _Int8Linear(nn.Module):
    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = _scale(weight)
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("rounded", (weight / scale).round_().to(torch.int8).t())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        scale = _scale(rows)
        rows = (rows / scale).round_()
        if _sums_are_whole():
            product = torch._int_mm(rows.to(torch.int8), self.rounded)
        else:
            product = rows.double() @ self.rounded.double()  # the same sums, exactly; slow, but `int8_pays` says so
        product = product.float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            product += self.bias
        return product.to(x.dtype).unflatten(0, x.shape[:-1])


def _scale(rows: Tensor) -> Tensor:
    """Step size of int8 for each row, [row, 1]."""
    return rows.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(rows.dtype).tiny).div_(127)
