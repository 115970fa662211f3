"""Fingerprints: which checkpoint a model is, and whether its weights have changed."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from accelerate.utils import align_module_device
from torch import nn
from transformers import PreTrainedModel


def fingerprint(model: PreTrainedModel, whole: Sequence[nn.Module]) -> str:
    """SHA-256 of a checkpoint, the same in float32 and bfloat16.

    Covers the modules in `whole` and a sample of every other tensor.
    """
    digest = hashlib.sha256("".join(adapters(model)).encode())
    read_whole = {id(parameter) for module in whole for parameter in module.parameters()}
    for name, parameter in sorted(model.named_parameters()):
        path, _, own_name = name.rpartition(".")
        module = model.get_submodule(path)
        with align_module_device(module):  # brings back weights that accelerate keeps on another device or the disk
            values = _whole(getattr(module, own_name).detach()).flatten()
        if id(parameter) not in read_whole:
            values = values[:: max(1, values.numel() // 1024)]
        digest.update(name.encode())
        digest.update(values.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def state(model: PreTrainedModel) -> list:
    """Cheap evidence of changed weights, without reading them all.

    Torch's version counters, a sketch of the values, and the active adapters.
    """
    tensors = [parameter.detach() for parameter in model.parameters()]
    counts = [(t.data_ptr(), t._version) for t in tensors if not t.is_inference()]
    return [*counts, *sketch(model), *adapters(model)]


def sketch(model: PreTrainedModel) -> list[float]:
    """Middle value of every parameter in memory, to tell checkpoints apart."""
    tensors = [_whole(parameter.detach()) for parameter in model.parameters() if parameter.device.type != "meta"]
    return torch.stack([t.flatten()[t.numel() // 2].float() for t in tensors]).tolist()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or what all processes together hold of it (FSDP)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two sketches are of one checkpoint.

    Equal up to the rounding of bfloat16 and the smallest number of float16.
    """
    return len(one) == len(other) and np.allclose(one, other, rtol=2**-8, atol=2**-14)


def adapters(model: PreTrainedModel) -> list[str]:
    """PEFT adapters that are active in the model, if any."""
    return [
        f"{name}: {module.active_adapters}"
        for name, module in model.named_modules()
        if getattr(module, "active_adapters", None) and getattr(module, "disable_adapters", None) is False
        and isinstance(module.active_adapters, list)
    ]  # fmt: skip
