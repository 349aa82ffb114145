"""Keep the weights of text encoders in half precision, as their files have them, and compute in float32."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


class _AsFloat32(nn.Module):
    """Gives a stored weight to whoever reads it, in float32: exactly its value."""

    def forward(self, stored: Tensor) -> Tensor:
        """Return `stored` in float32."""
        return stored.float()


def half_type_of(files: Iterable[Path]) -> torch.dtype | None:
    """Return float16 or bfloat16 where every tensor of a model's .safetensors files has it, else None."""
    from safetensors import safe_open

    types: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            types |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, no mapping
    return _HALVES.get(next(iter(types))) if len(types) == 1 else None


def compute_in_float32(model: nn.Module) -> None:
    """Make a model whose weights are in half precision compute as its float32 copy does, bit for bit.

    The weights of linear layers, which are nearly all of a text encoder, stay as they are: a layer's
    float32 weight exists while the layer runs. A T5-XXL's weights are 9.8 GB so, and 19 GB in float32.
    """
    for module in list(model.modules()):  # parametrizations are modules too
        half = isinstance(module, nn.Linear) and module.weight.dtype in _HALVES.values()
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not (half and name == "weight"):
                parameter.data = parameter.data.float()
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.float())
        if half:
            parametrize.register_parametrization(module, "weight", _AsFloat32(), unsafe=True)
