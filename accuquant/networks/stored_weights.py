"""Weights that stay as they lie, in half precision or in the CPU's memory: float32 while their layer runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.networks.frozen_product import FrozenProduct

HALVES = (torch.float16, torch.bfloat16)
#: What `StoredLayer.stored` is called in a state_dict, and what the weight is called there otherwise.
_STORED, _WEIGHT = ".stored", ".weight"


class StoredLayer(nn.Module):
    """A layer whose weight is `stored` as it lies, and made float32, where the input is, when the layer runs.

    Its products are those of the float32 layer, bit for bit. With `offloaded` the weight stays where it is
    when the network is moved. It does not learn, and gradients at inputs keep none of it.
    """

    stored: Tensor
    product: FrozenProduct
    offloaded: bool

    @property
    def weight(self) -> Tensor:
        """The weight in float32, made anew where it is stored."""
        return self.stored.float()

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x [B, C, H, W] or [..., C] in float32."""
        return self.product(x, lambda: self.stored.to(x.device).float(), self.bias)  # type: ignore[arg-type]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StoredLayer:
        stays = self.stored
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves its own untyped
        if self.offloaded:
            self.stored = stays
        return self


# torch declares the weight, which is made here, and other arguments of a transposed convolution's forward
class _StoredLinear(StoredLayer, nn.Linear):  # type: ignore[override]
    pass


class _StoredConv2d(StoredLayer, nn.Conv2d):  # type: ignore[override]
    pass


class _StoredConvTranspose2d(StoredLayer, nn.ConvTranspose2d):  # type: ignore[override, misc]
    pass


_KINDS: dict[type[nn.Module], type[StoredLayer]] = {
    nn.Linear: _StoredLinear,
    nn.Conv2d: _StoredConv2d,
    nn.ConvTranspose2d: _StoredConvTranspose2d,
}


def compute_in_float32(model: nn.Module) -> None:
    """Make a model whose weights are in half precision compute as its float32 copy does, bit for bit.

    The weights of linear layers and convolutions, which are nearly all of a model, stay as they are; the rest
    becomes float32. A T5-XXL's weights are 9.8 GB so, and 19 GB in float32.
    """
    for module in list(model.modules()):
        half = _kind_of(module) is not None and module.weight.dtype in HALVES
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not (half and name == "weight"):
                parameter.data = parameter.data.float()
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and not isinstance(module, StoredLayer):
                setattr(module, name, buffer.float())
        if half:
            _store(module)


def offload(model: nn.Module) -> None:
    """Let the weights of linear layers and convolutions stay where they are when `model` is moved.

    Each goes to the device when its layer runs, and again when its gradient is computed.
    """
    for module in list(model.modules()):
        if _kind_of(module) is not None:
            _store(module)
        if isinstance(module, StoredLayer):
            module.offloaded = True


def is_offloaded(layer: nn.Module) -> bool:
    """Say whether the weight of a layer stays where it is when the layer is moved."""
    return isinstance(layer, StoredLayer) and layer.offloaded


def widened(network: nn.Module) -> nn.Module:
    """Return `network` with plain float32 layers, as exporters want it: itself where it has no others.

    What is float32 in it already is shared, not copied.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}
    layers = [module for module in network.modules() if isinstance(module, StoredLayer)]
    memo |= {id(layer): _plain(layer) for layer in layers}
    return copy.deepcopy(network, memo) if layers else network


def count_parameters(network: nn.Module) -> int:
    """Return how many numbers were trained in `network`, however its weights are held."""
    stored = (module.stored for module in network.modules() if isinstance(module, StoredLayer))
    return sum(tensor.numel() for tensor in (*network.parameters(), *stored))


def named_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of `network` as they are held, under the names that a float32 network gives them."""
    return {
        name.removesuffix(_STORED) + _WEIGHT if name.endswith(_STORED) else name: tensor
        for name, tensor in network.state_dict().items()
    }


def _kind_of(module: nn.Module) -> type[StoredLayer] | None:
    """Return the class that stores the weight of a module of torch's own; None for all others."""
    if isinstance(module, StoredLayer) or not isinstance(
        module.__dict__["_parameters"].get("weight"), Tensor
    ):
        return None
    return next((kind for plain, kind in _KINDS.items() if isinstance(module, plain)), None)


def _store(module: nn.Module) -> None:
    """Make a layer a StoredLayer, in place: whoever holds it goes on holding it."""
    kind = _kind_of(module)
    assert kind is not None
    product, weight = FrozenProduct.of(module), module.weight
    assert isinstance(weight, Tensor)
    del module.weight
    module.__class__ = kind
    assert isinstance(module, StoredLayer)
    module.register_buffer("stored", weight.detach())
    module.product, module.offloaded = product, False


def _plain(layer: StoredLayer) -> nn.Module:
    """Return the float32 layer that a StoredLayer stands for."""
    plain: nn.Module = copy.copy(layer)
    plain.__class__ = next(cls for cls, kind in _KINDS.items() if isinstance(layer, kind))
    weight = nn.Parameter(layer.weight, requires_grad=False)
    plain._parameters, plain._buffers = {"weight": weight, **layer._parameters}, dict(layer._buffers)
    del plain._buffers["stored"], plain.__dict__["product"], plain.__dict__["offloaded"]
    return plain
