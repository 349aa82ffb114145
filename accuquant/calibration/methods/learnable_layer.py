"""A quantized layer whose rounding can be learned, in the place of the QuantizedLayer that it holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from accuquant.networks.fake_quantize import quantize_input
from accuquant.networks.network import quantizable_layers, weight_of
from accuquant.networks.simulate import QuantizedLayer, quantized_layers
from accuquant.qparams import level_bounds

from .adaround import between, first_alpha, soft_step


class LearnableLayer(nn.Module):
    """Computes in one of three ways: with the float weight, with a softly rounded one, or with levels.

    `inputs` says whether the input is quantized too.
    """

    alpha: nn.Parameter | None

    def __init__(self, quantized: QuantizedLayer, layer: nn.Module) -> None:
        super().__init__()
        self.quantized, self.float_weight = quantized, weight_of(layer).float()
        self.weights, self.inputs = "float", False
        self.bounds = level_bounds(quantized.qparams.weight_bits)
        self.alpha = None

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with; diffusers reads its dtype."""
        if self.weights == "float":
            return self.float_weight
        if self.weights == "levels" or self.alpha is None:
            return self.quantized.weight
        levels = (self._floor + soft_step(self.alpha)).clamp(*self.bounds)
        return levels * self.quantized.weight_scale

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.quantized.bias

    def begin(self, trust: float | None = None) -> nn.Parameter:
        """Round softly from now on; return what is learned.

        It begins at the float weight, or with `trust` between the present levels and it (`between`).
        """
        ratio = self.float_weight / self.quantized.weight_scale
        if trust is None:
            self._floor = ratio.floor()
            rest = (ratio - self._floor).clamp(0, 1 - 1e-4)
        else:
            levels = self.quantized.levels.to(ratio.device).float()
            self._floor, rest = between(ratio, levels, self.bounds, trust)
        self.alpha = nn.Parameter(first_alpha(rest))
        self.weights = "soft"
        return self.alpha

    @torch.no_grad()
    def finish(self) -> None:
        """Round to the levels that were chosen: up where h(alpha) is at least a half."""
        assert self.alpha is not None
        levels = (self._floor + (soft_step(self.alpha) >= 0.5)).clamp(*self.bounds)
        self.quantized.levels = levels.to(torch.int8)
        self.weights, self.alpha = "levels", None
        del self._floor

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer on x [B, C, H, W] or [..., C]."""
        layer = self.quantized
        if self.inputs:
            x = quantize_input(x, layer.current_scale(), layer.qparams)
        if layer.product.padded:
            x = functional.pad(x, layer.product.padded, layer.product.padding_mode)
        # not the product's call: its gradient leaves the weight out
        return layer.product.forward(x, self.weight, self.bias)


def make_learnable(simulated: nn.Module, network: nn.Module) -> dict[str, LearnableLayer]:
    """Put a LearnableLayer in the place of each QuantizedLayer of `simulated`, made of `network`."""
    layers, made = quantizable_layers(network), {}
    for name, quantized in quantized_layers(simulated).items():
        parent, _, child = name.rpartition(".")
        made[name] = LearnableLayer(quantized, layers[name])
        setattr(simulated.get_submodule(parent), child, made[name])
    return made
