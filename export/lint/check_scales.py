"""The linter's rules about the scales of a QDQ pair."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from accuquant.export.lint.check_graph import GraphView, Violation, type_name
from accuquant.graph.constants import is_constant
from accuquant.graph.neighbours import input_of, label, producer, readers, select, type_of
from accuquant.graph.vocabulary import LAYER_OPS

_HALF_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_HALF_OPSET = 19


def constant_scale(view: GraphView) -> Iterator[Violation]:
    """Report scales that are neither an initializer nor a Constant.

    TensorRT bakes scales into its kernels. A scale that depends on a graph input, directly or through a
    Gather, does not fail with a message: it crashes the compiler (TensorRT-RTX 1.7, segmentation fault).
    """
    for node in select(view.graph, "QuantizeLinear", "DequantizeLinear"):
        scale, writer = input_of(node, 1), producer(node, 1)
        if scale is None or ir.convenience.get_const_tensor(scale) is not None:
            continue
        origin = "a graph input" if writer is None else f"the output of {writer.op_type} '{label(writer)}'"
        yield Violation(
            "constant-scale",
            label(node),
            f"scale '{scale.name}' is {origin}, expected an initializer",
            "Fold the scale into an initializer; for a scale that depends on the timestep, "
            "use `accuquant export --lowering rescale`",
        )


def positive_scale(view: GraphView) -> Iterator[Violation]:
    """Report scales that are zero, negative or not finite.

    TensorRT's parser refuses scales that are not positive; a NaN one would spread to every pixel.
    """
    for node in select(view.graph, "QuantizeLinear", "DequantizeLinear"):
        scale = view.scale(node)
        if scale is None or (bad := scale[~(np.isfinite(scale) & (scale > 0))]).size == 0:
            continue
        yield Violation(
            "positive-scale",
            label(node),
            f"{bad.size} of {scale.size} scales are like {bad[0]:g}, expected finite numbers above 0",
            "Calibrate again with images that reach this layer, or leave the layer in float",
        )


def per_channel_activation(view: GraphView) -> Iterator[Violation]:
    """Report activations with more than one scale.

    An int8 product sums over the input channels, so one factor per input channel cannot leave the sum:
    TensorRT runs the layer in float.
    """
    for node in select(view.graph, "QuantizeLinear", "DequantizeLinear"):
        scale = view.scale(node)
        if scale is not None and scale.size > 1 and not is_constant(input_of(node, 0)):
            yield Violation(
                "per-channel-activation",
                label(node),
                f"{scale.size} scales for a tensor that is not constant, expected one",
                "Quantize activations per tensor, and only weights per channel",
            )


def scalar_scale(view: GraphView) -> Iterator[Violation]:
    """Report the scale of an activation that is stored as [1] instead of as a scalar.

    TensorRT's parser takes any axis for a per-channel scale. It builds without a word, and runs the
    convolution behind it in float (seen with TensorRT-RTX 1.7; MatMul is not affected).
    """
    for node in select(view.graph, "QuantizeLinear", "DequantizeLinear"):
        scale = view.scale(node)
        if scale is None or is_constant(input_of(node, 0)):
            continue
        if scale.size == 1 and scale.ndim:
            yield Violation(
                "scalar-scale",
                label(node),
                f"one scale of shape {list(scale.shape)}, expected a scalar []",
                "Store the scale without an axis: convolutions behind this pair run in float",
            )


def scale_type(view: GraphView) -> Iterator[Violation]:
    """Report scales of another type than the tensor they quantize, and half scales before opset 19.

    A TensorRT engine is strongly typed: Q and DQ neither cast their input nor their output.
    """
    for node in select(view.graph, "QuantizeLinear", "DequantizeLinear"):
        found = type_of(input_of(node, 1))
        if found in _HALF_TYPES and not node.domain and view.opset < _HALF_OPSET:
            yield Violation(
                "scale-type",
                label(node),
                f"{type_name(found)} scale in opset {view.opset}, expected at least {_HALF_OPSET}",
                f"Export the model with opset {_HALF_OPSET} or later",
            )
    yield from _untyped_quantize(view)
    yield from _untyped_dequantize(view)


def _untyped_quantize(view: GraphView) -> Iterator[Violation]:
    for node in select(view.graph, "QuantizeLinear"):
        tensor, scale = (type_of(input_of(node, index)) for index in (0, 1))
        if ir.DataType.UNDEFINED not in (tensor, scale) and tensor != scale:
            yield Violation(
                "scale-type",
                label(node),
                f"{type_name(scale)} scale for a {type_name(tensor)} tensor, expected one type",
                f"Store the scale as {type_name(tensor)}",
            )


def _untyped_dequantize(view: GraphView) -> Iterator[Violation]:
    """Compare the weight that DequantizeLinear writes with the first input of the layers that read it."""
    for node in select(view.graph, "DequantizeLinear"):
        written = type_of(node.outputs[0]) or type_of(input_of(node, 1))
        for read in readers(node):
            if read.node.op_type not in LAYER_OPS or read.index != 1:
                continue
            other = type_of(input_of(read.node, 0))
            if ir.DataType.UNDEFINED not in (written, other) and written != other:
                yield Violation(
                    "scale-type",
                    label(node),
                    f"is {type_name(written)}, '{label(read.node)}' multiplies it with {type_name(other)}",
                    f"Store the scale as {type_name(other)}",
                )


RULES = (constant_scale, positive_scale, per_channel_activation, scalar_scale, scale_type)
