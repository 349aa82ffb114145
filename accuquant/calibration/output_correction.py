"""What a layer's weight scale and bias can change of its output, as something to learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from accuquant.networks.simulate import QuantizedLayer
from accuquant.qparams import FloatArray, LayerQParams


class OutputCorrection(nn.Module):
    """A gain and a shift for each output channel: y [B, O, H, W] or [..., O] -> gain * y + shift.

    Weight scales run along the output channels, so a factor on one is a gain of the output, and learning it
    takes no gradient of a weight. The gain is kept above zero by its logarithm. The shift counts in `unit`,
    the size of the outputs of the first call, so that one learning rate suits all layers.
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        channels, device = len(layer.qparams.weight_scale), layer.scale.device
        # a transposed convolution's groups share their weight scales, and so their gains
        self._groups = layer.product.groups if layer.product.transposed else 1
        self.log_gain = nn.Parameter(torch.zeros(channels, device=device))
        self.shift = nn.Parameter(torch.zeros(self._groups * channels, device=device))
        self.unit = 0.0
        self._broadcast = (-1,) if layer.qparams.kind == "linear" else (-1, 1, 1)

    def forward(self, output: Tensor) -> Tensor:
        """Return the corrected output."""
        if not self.unit:
            self.unit = float(output.detach().square().mean().sqrt()) or 1.0
        gain, shift = self.log_gain.exp().repeat(self._groups), self.shift * self.unit
        return torch.addcmul(shift.reshape(self._broadcast), output, gain.reshape(self._broadcast))

    def fold(self, qparams: LayerQParams, layer: QuantizedLayer, float_layer: nn.Module) -> LayerQParams:
        """Return `qparams` with the weight scale and bias that make `layer` compute what it does corrected.

        `float_layer` is the layer that `layer` was made from. The levels of the weight stay as they are:
        rounding to nearest would choose others for another scale.
        """
        gain = self.log_gain.detach().double().exp().cpu().numpy()
        bias = (
            np.tile(gain, self._groups) * _bias_of(layer)
            + (self.shift.detach().double() * self.unit).cpu().numpy()
        )
        return replace(
            qparams,
            weight_scale=(qparams.weight_scale * gain).astype(np.float32),
            weight_levels=layer.levels.cpu().numpy(),
            bias_correction=(bias - _bias_of(float_layer)).astype(np.float32),
        )


@contextmanager
def corrected(layers: Mapping[str, QuantizedLayer]) -> Iterator[dict[str, OutputCorrection]]:
    """Let the outputs of `layers` pass through corrections, neutral at first, inside the block."""
    corrections = {name: OutputCorrection(layer) for name, layer in layers.items()}
    hooks = [
        layer.register_forward_hook(
            lambda _m, _args, output, correction=corrections[name]: correction(output)
        )
        for name, layer in layers.items()
    ]
    try:
        yield corrections
    finally:
        for handle in hooks:
            handle.remove()


def _bias_of(layer: nn.Module) -> FloatArray | float:
    bias = layer.bias
    return bias.detach().double().cpu().numpy() if isinstance(bias, Tensor) else 0.0
