"""Write a GroupNormalization so that it stays channels-last and joins its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import opset13 as ov

from accuquant.runtime.cpu_forms.constants import replace


def write_norms_by_channel(model: Any) -> int:
    """Rewrite the norms of an ov.Model of static shapes, in place -> how many.

    Rules (x [N, C, H, W], g: groups, k = C / g channels in each, n = H W):
    - m = mean over the image of x, q = l2^2 / n of it, both [N, C]; a group's mean is the mean of its k m,
      its variance that of its k q, less the square of its mean, not below zero.
    - y = x * a + b with a = scale / sqrt(variance + epsilon) and b = bias - mean * a, one each a channel.
    - OpenVINO's own kernel (MVN) reshapes to [N, g, k, H, W], which no channels-last tensor is:
      convolutions in int8 are channels-last, and each norm between two cost two reorders.
    - Only float32: q - mean^2 cancels where a mean is large beside the deviation.
    """
    norms = [node for node in model.get_ordered_ops() if node.get_type_name() == "GroupNormalization"]
    norms = [node for node in norms if _is_float32_image(node.input_value(0))]
    for node in norms:
        replace(node, _by_channel(node))
    return len(norms)


def _is_float32_image(x: Any) -> bool:
    shape = x.get_partial_shape()
    return bool(shape.is_static) and len(shape) > 2 and x.get_element_type().get_type_name() == "f32"


def _by_channel(node: Any) -> Any:
    x, scale, bias = (node.input_value(index) for index in range(3))
    batch, channels, *image = x.get_shape()
    attributes = node.get_attributes()
    groups, epsilon = int(attributes["num_groups"]), float(attributes["epsilon"])
    grouped, column = [batch, groups, channels // groups], [batch, channels, *[1] * len(image)]

    axes = _numbers(range(2, 2 + len(image)))
    mean = ov.reduce_mean(x, axes, keep_dims=False)
    norm = ov.reduce_l2(x, axes, keep_dims=False)
    square = ov.multiply(ov.multiply(norm, norm), np.float32(1 / np.prod(image)))

    def of_group(statistic: Any) -> Any:
        return ov.reduce_mean(ov.reshape(statistic, _numbers(grouped), False), _numbers([2]), keep_dims=True)

    mean, square = of_group(mean), of_group(square)
    variance = ov.maximum(ov.subtract(square, ov.multiply(mean, mean)), np.float32(0))
    deviation = ov.sqrt(ov.add(variance, np.float32(epsilon)))
    one_row = _numbers([1, groups, channels // groups])
    slope = ov.divide(ov.reshape(scale, one_row, False), deviation)
    offset = ov.subtract(ov.reshape(bias, one_row, False), ov.multiply(mean, slope))
    slope, offset = (ov.reshape(part, _numbers(column), False) for part in (slope, offset))
    return ov.add(ov.multiply(x, slope), offset)


def _numbers(values: Any) -> Any:
    return ov.constant(np.array(list(values), np.int64))
