"""Kinds of head: maps from a hidden state to the unembedding's input."""

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F


def make_map(kind: str, width: int | None, skip: bool, unembedding: nn.Module, hidden_size: int) -> nn.Module:
    """The map of one head of a kind (see `HeadConfig`)."""
    make = {
        "fused": lambda: _Fused(hidden_size, unembedding.weight.shape[1], width or 2 * hidden_size),
        "mlp": lambda: _GatedMLP(hidden_size, width or hidden_size, skip),
        "affine": lambda: _Affine(hidden_size),
        "linear": lambda: _Untied(unembedding, hidden_size),
        "none": nn.Identity,
    }
    return make[kind]()


class MixedLinear(nn.Linear):
    """Linear layer in its input's dtype: float32 masters train a bfloat16 head."""

    packs = True

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class DraftedRows(nn.Module):
    """Unembedding rows of the draft vocabulary: copied, frozen, saved with the model."""

    packs = True

    def __init__(self, unembedding: nn.Module, tokens: Int[Tensor, " draft"]):
        super().__init__()
        bias = getattr(unembedding, "bias", None)
        self.register_buffer("weight", unembedding.weight.detach()[tokens].clone(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach()[tokens].clone(), persistent=False)

    forward = MixedLinear.forward


class _GatedMLP(nn.Module):
    """Residual gated MLP, optionally beside a linear map.

    x + A x + b + down(silu(gate(n)) * up(n)), with n the RMS-normalised x. Starts as the identity. A and b only with
    `skip`.
    """

    def __init__(self, hidden_size: int, width: int, skip: bool):
        super().__init__()
        self.skip = _Affine(hidden_size) if skip else nn.Identity()
        self.scale = nn.Parameter(torch.ones(hidden_size))
        self.gate, self.up = MixedLinear(hidden_size, width, bias=False), MixedLinear(hidden_size, width, bias=False)
        self.down = MixedLinear(width, hidden_size, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        n = F.rms_norm(x, x.shape[-1:], self.scale.to(x.dtype))
        return self.skip(x) + self.down(F.silu(self.gate(n)) * self.up(n))


class _Fused(nn.Module):
    """Gated MLP and linear map that also read the previous position.

    x + A n + down(silu(gate(n)) * up(n)). n is the RMS-normalised state x beside the unembedding's input one position
    back. Starts as x, normalised. A, gate and up are one product.
    """

    def __init__(self, hidden_size: int, final_size: int, width: int):
        super().__init__()
        self.widths = [hidden_size, width, width]
        self.scale = nn.Parameter(torch.ones(hidden_size))
        self.scale_previous = nn.Parameter(torch.ones(final_size))
        self.inner = MixedLinear(hidden_size + final_size, hidden_size + 2 * width)
        self.down = MixedLinear(width, hidden_size, bias=False)
        nn.init.zeros_(self.inner.weight[:hidden_size])
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        x = F.rms_norm(x, x.shape[-1:])
        before = F.rms_norm(previous, previous.shape[-1:], self.scale_previous.to(x.dtype))
        n = torch.cat([x * self.scale.to(x.dtype), before], dim=-1)
        skip, gate, up = self.inner(n).split(self.widths, dim=-1)
        return x + skip + self.down(F.silu(gate) * up)


class _Affine(nn.Module):
    """Residual map x + A x + b, initially the identity."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.map = MixedLinear(hidden_size, hidden_size)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.map(x)


class _Untied(nn.Module):
    """RMS norm, and an unembedding initialised from the model's.

    If its shape allows.
    """

    def __init__(self, unembedding: nn.Module, hidden_size: int):
        super().__init__()
        vocab_size, width = unembedding.weight.shape
        self.scale = nn.Parameter(torch.ones(hidden_size))
        self.unembedding = MixedLinear(hidden_size, vocab_size, bias=False)
        if width == hidden_size:  # else the model projects its states first, and there is nothing to copy
            self.unembedding.weight.data.copy_(unembedding.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.scale.to(x.dtype))
