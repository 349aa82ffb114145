"""The linter's rules about the scales of a QDQ pair."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from accuquant.export.lint.check_graph import GraphView, Violation, input_name, label, type_name

_HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_HALF_OPSET = 19
#: Layers whose input and weight must have one type.
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def constant_scale(graph: GraphView) -> Iterator[Violation]:
    """Report scales that are neither an initializer nor a Constant.

    TensorRT bakes scales into its kernels. A scale that depends on a graph input, directly or through a
    Gather, does not fail with a message: it crashes the compiler (TensorRT-RTX 1.7, segmentation fault).
    """
    for node in graph.select("QuantizeLinear", "DequantizeLinear"):
        name = input_name(node, 1)
        if name in graph.constants:
            continue
        producer = graph.producer(node, 1)
        origin = (
            "a graph input" if producer is None else f"the output of {producer.op_type} '{label(producer)}'"
        )
        yield Violation(
            "constant-scale",
            label(node),
            f"scale '{name}' is {origin}, expected an initializer",
            "Fold the scale into an initializer; for a scale that depends on the timestep, "
            "use `accuquant export --lowering rescale`",
        )


def positive_scale(graph: GraphView) -> Iterator[Violation]:
    """Report scales that are zero, negative or not finite.

    TensorRT's parser refuses scales that are not positive; a NaN one would spread to every pixel.
    """
    for node in graph.select("QuantizeLinear", "DequantizeLinear"):
        scale = graph.scale(node)
        if scale is None or (bad := scale[~(np.isfinite(scale) & (scale > 0))]).size == 0:
            continue
        yield Violation(
            "positive-scale",
            label(node),
            f"{bad.size} of {scale.size} scales are like {bad[0]:g}, expected finite numbers above 0",
            "Calibrate again with images that reach this layer, or leave the layer in float",
        )


def per_channel_activation(graph: GraphView) -> Iterator[Violation]:
    """Report activations with more than one scale.

    An int8 product sums over the input channels, so one factor per input channel cannot leave the sum:
    TensorRT runs the layer in float.
    """
    for node in graph.select("QuantizeLinear", "DequantizeLinear"):
        scale = graph.scale(node)
        if scale is not None and scale.size > 1 and not graph.is_constant(input_name(node, 0)):
            yield Violation(
                "per-channel-activation",
                label(node),
                f"{scale.size} scales for a tensor that is not constant, expected one",
                "Quantize activations per tensor, and only weights per channel",
            )


def scalar_scale(graph: GraphView) -> Iterator[Violation]:
    """Report the scale of an activation that is stored as [1] instead of as a scalar.

    TensorRT's parser takes any axis for a per-channel scale. It builds without a word, and runs the
    convolution behind it in float (seen with TensorRT-RTX 1.7; MatMul is not affected).
    """
    for node in graph.select("QuantizeLinear", "DequantizeLinear"):
        scale = graph.scale(node)
        if scale is None or graph.is_constant(input_name(node, 0)):
            continue
        if scale.size == 1 and scale.ndim:
            yield Violation(
                "scalar-scale",
                label(node),
                f"one scale of shape {list(scale.shape)}, expected a scalar []",
                "Store the scale without an axis: convolutions behind this pair run in float",
            )


def scale_type(graph: GraphView) -> Iterator[Violation]:
    """Report scales of another type than the tensor they quantize, and half scales before opset 19.

    A TensorRT engine is strongly typed: Q and DQ neither cast their input nor their output.
    """
    for node in graph.select("QuantizeLinear", "DequantizeLinear"):
        found = graph.type_of(input_name(node, 1))
        if found in _HALF_TYPES and not node.domain and graph.opset < _HALF_OPSET:
            yield Violation(
                "scale-type",
                label(node),
                f"{type_name(found)} scale in opset {graph.opset}, expected at least {_HALF_OPSET}",
                f"Export the model with opset {_HALF_OPSET} or later",
            )
    yield from _untyped_quantize(graph)
    yield from _untyped_dequantize(graph)


def _untyped_quantize(graph: GraphView) -> Iterator[Violation]:
    for node in graph.select("QuantizeLinear"):
        tensor, scale = (graph.type_of(input_name(node, index)) for index in (0, 1))
        if TensorProto.UNDEFINED not in (tensor, scale) and tensor != scale:
            yield Violation(
                "scale-type",
                label(node),
                f"{type_name(scale)} scale for a {type_name(tensor)} tensor, expected one type",
                f"Store the scale as {type_name(tensor)}",
            )


def _untyped_dequantize(graph: GraphView) -> Iterator[Violation]:
    """Compare the weight that DequantizeLinear writes with the first input of the layers that read it."""
    for node in graph.select("DequantizeLinear"):
        written = graph.type_of(node.output[0]) or graph.type_of(input_name(node, 1))
        for read in graph.readers(node):
            if read.node.op_type not in _LAYERS or read.index != 1:
                continue
            other = graph.type_of(input_name(read.node, 0))
            if TensorProto.UNDEFINED not in (written, other) and written != other:
                yield Violation(
                    "scale-type",
                    label(node),
                    f"is {type_name(written)}, '{label(read.node)}' multiplies it with {type_name(other)}",
                    f"Store the scale as {type_name(other)}",
                )


RULES = (constant_scale, positive_scale, per_channel_activation, scalar_scale, scale_type)
