"""Move the zero-points of an exported graph: into the QDQ pairs, or away from what was padded before them."""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import opset13 as ov

from accuquant.runtime.cpu_forms.constants import constant_of, replace
from accuquant.runtime.cpu_forms.missing_taps import missing_taps
from accuquant.runtime.cpu_forms.pairs import pair_reading
from accuquant.runtime.cpu_forms.shifted_input import (
    ShiftedInput,
    ShiftedLayer,
    find_shifted_inputs,
    pads_of,
    weight_sum,
)


def move_zero_points_inside(model: Any) -> int:
    """Rewrite shifts around symmetric pairs as zero-points of the pairs, in place -> how many.

    Rules (s: scale, z: zero-point):
    - x -> Add z s -> [Pad z s] -> quantize, -128 s to 127 s -> layer -> Add(bias - z s layer(ones)) becomes
      x -> quantize, (-128 - z) s to (127 - z) s -> Subtract z -> layer, which pads with zeros -> Add(bias).
    - All layers that read a pair change, or none. Where they are not as the export writes them by
      default (ConvTranspose, auto_pad, a shared weight scale, fewer than 8 bits) the shift stays.
    """
    moved = 0
    for found in find_shifted_inputs(model):
        sums = [weight_sum(layer.node) for layer in found.layers]
        if any(total is None for total in sums):
            continue
        amount = found.zero_point * found.scale
        pair = pair_reading(found.shift.input_value(0), found.pair, found.zero_point, amount=amount)
        for layer, total in zip(found.layers, sums, strict=True):
            assert total is not None
            _restore_bias(found, layer, total)
            if found.pad is None:
                layer.node.input(0).replace_source_output(pair.output(0))
            else:
                replace(layer.node, _padding(layer.node, pair, found.pad))
        moved += 1
    return moved


def pad_with_zeros(model: Any) -> int:
    """Let convolutions of static shapes pad where the export pads before the pair, in place -> how many.

    Rules:
    - Pad writes a float image of its own, between what computes it and what quantizes it. The convolution
      pads with zeros instead, which mean -z s behind a shift: where its kernel reaches over the border, z s
      times the sum of the weights there is added to what it computes, a constant image [1, O, H', W'].
    """
    moved = 0
    for found in find_shifted_inputs(model):
        sums = [weight_sum(layer.node) for layer in found.layers]
        if found.pad is None or any(total is None for total in sums):
            continue
        image = tuple(found.shift.output(0).get_shape())[2:]
        pair = pair_reading(found.pad.input_value(0), found.pair, 0)
        for layer, total in zip(found.layers, sums, strict=True):
            assert total is not None
            padding = _padding(layer.node, pair, found.pad)
            get = layer.node.get_attributes()
            missing = missing_taps(total, image, pads_of(padding), get["strides"], get["dilations"])
            correction = (found.zero_point * found.scale * missing)[None].astype(np.float32)
            corrected = ov.add(padding, ov.constant(correction))
            replace(layer.node, corrected)
            padding.set_friendly_name(layer.node.get_friendly_name())
            corrected.set_friendly_name(f"{layer.node.get_friendly_name()}/border")
        moved += 1
    return moved


def _restore_bias(found: ShiftedInput, layer: ShiftedLayer, total: Any) -> None:
    """Add the bias alone: what is added now, and z s layer(ones), which the shift no longer adds."""
    ones = total.sum(axis=(1, 2)).reshape(-1, 1, 1) if total.ndim == 3 else total
    bias = layer.addend.astype(np.float64) + found.zero_point * layer.step * ones
    layer.bias.replace_source_output(ov.constant(bias.astype(np.float32)).output(0))


def _padding(node: Any, x: Any, pad: Any) -> Any:
    """Return the convolution `node` of `x`, with what `pad` adds as padding of its own."""
    get = node.get_attributes()
    starts, ends = (constant_of(pad.input_value(index)) for index in (1, 2))
    assert starts is not None, "the export pads by constants"
    assert ends is not None, "the export pads by constants"
    begin = [int(value) for value in starts[2:]]
    end = [int(value) for value in ends[2:]]
    return ov.convolution(x, node.input_value(1), get["strides"], begin, end, get["dilations"])
