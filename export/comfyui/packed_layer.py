"""One module as ComfyUI's loader reads it: int8 rows, FP8 with one scale, or floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from accuquant.e4m3 import to_bytes
from accuquant.qparams import FloatArray, LayerQParams, along_axis

#: What `format` in a layer's marker says of its weight.
MARKERS = {"int8": "int8_tensorwise", "fp8": "float8_e4m3fn"}


@dataclass(frozen=True)
class PackedWeight:
    """A weight [O, I] in levels, with the scale that they are multiplied by.

    int8: `levels` are integers and `scale` [O, 1]. FP8: `levels` are the bytes of E4M3, `scale` [] is one for
    all outputs, and `input_scale` [] is that of the input.
    """

    levels: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    input_scale: npt.NDArray[np.float32] | None = None


def dequantized(layer: LayerQParams, weight: FloatArray) -> npt.NDArray[np.float32]:
    """Return the weight [*weight_shape] that the recipe's `layer` computes with, for the float `weight`."""
    numbers = layer.level_values(layer.quantized_weight(weight))
    return np.asarray(numbers * along_axis(layer.weight_scale, numbers.ndim, layer.axis), np.float32)


def pack(layers: Sequence[LayerQParams], weights: Sequence[FloatArray]) -> PackedWeight:
    """Return one weight for linear `layers` that the checkpoint stacks along their outputs.

    int8 keeps the recipe's levels and scales as they are. ComfyUI's FP8 has one scale a weight where the
    recipe has one an output: levels are rounded once more, to the largest of the scales. Its input scale is
    one for the whole trajectory: the largest of the step groups', which saturates nothing that others hold.
    """
    scales = np.concatenate([layer.weight_scale for layer in layers])
    pairs = list(zip(layers, weights, strict=True))
    if layers[0].format == "int8":
        levels = np.concatenate([layer.quantized_weight(weight) for layer, weight in pairs])
        return PackedWeight(levels, scales[:, None].astype(np.float32))
    scale = scales.max().astype(np.float32)
    whole = np.concatenate([dequantized(layer, weight) for layer, weight in pairs])
    given = np.float32(max(layer.activation_scale.max() for layer in layers))
    return PackedWeight(to_bytes(whole / scale), np.asarray(scale), np.asarray(given))
