"""The linter's rules about the integers of a QDQ pair: their type and their zero point."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from accuquant.export.lint.check_graph import GraphView, Violation, attribute, input_name, label, type_name

#: What TensorRT's Q and DQ layers compute with, and the opset that brought each type to Q/DQ.
_LEVEL_TYPES: dict[int, int] = {
    TensorProto.INT8: 10,
    TensorProto.FLOAT8E4M3FN: 19,
    TensorProto.INT4: 21,
    TensorProto.FLOAT4E2M1: 23,
}
_EXPORT_SHIFT = "Export with --affine shift, or quantize symmetrically: signed int8 levels with zero_point 0"
_RE_EXPORT_SYMMETRIC = "Quantize symmetrically: signed int8 levels with zero_point 0"


def zero_point(graph: GraphView) -> Iterator[Violation]:
    """Report zero points that are computed or not zero.

    TensorRT's int8 kernels have no term for a zero point; the parser refuses the node.
    """
    for node in graph.select("QuantizeLinear", "DequantizeLinear"):
        name = input_name(node, 2)
        values = graph.values(name) if name else None
        if name and values is None:
            found = f"zero_point '{name}' is computed in the graph"
        elif values is not None and values.any():
            found = f"zero_point is {values.flat[values.ravel().nonzero()[0][0]]:g}"
        else:
            continue
        yield Violation("zero-point", label(node), f"{found}, expected constant zeros", _EXPORT_SHIFT)


def level_type(graph: GraphView) -> Iterator[Violation]:
    """Report levels of a type that TensorRT does not compute with, uint8 above all.

    TensorRT's quantization is signed. TensorRT-RTX 1.7 compiles a uint8 pair as if it were int8, without a
    word, so that the engine clips at other levels than ONNX does. Without a zero_point, ONNX means uint8.
    """
    for node in graph.select("QuantizeLinear", "DequantizeLinear"):
        found = levels_of(graph, node)
        if found in (*_LEVEL_TYPES, TensorProto.UNDEFINED, TensorProto.INT32):
            continue
        reason = "" if input_name(node, 2) else ", the default where there is no zero_point"
        reason = reason if node.op_type == "QuantizeLinear" and not attribute(node, "output_dtype", 0) else ""
        yield Violation(
            "level-type",
            label(node),
            f"levels are {type_name(found)}{reason}, expected int8",
            _RE_EXPORT_SYMMETRIC,
        )


def quantized_bias(graph: GraphView) -> Iterator[Violation]:
    """Report int32 inputs of DequantizeLinear.

    TensorRT adds the bias in float after the int8 product; the parser refuses an int32 DequantizeLinear.
    """
    for node in graph.select("DequantizeLinear"):
        if levels_of(graph, node) == TensorProto.INT32:
            yield Violation(
                "quantized-bias",
                label(node),
                "dequantizes int32, as a quantized bias does, expected int8",
                "Keep the bias in float (ONNX Runtime: extra_options={'QuantizeBias': False})",
            )


def level_opset(graph: GraphView) -> Iterator[Violation]:
    """Report level types that the model's opset does not have.

    TensorRT's parser reads a node by its opset, and so does every other engine.
    """
    for node in graph.select("QuantizeLinear", "DequantizeLinear"):
        found = levels_of(graph, node)
        needed = _LEVEL_TYPES.get(found, 0)
        if not node.domain and graph.opset < needed:
            yield Violation(
                "opset",
                label(node),
                f"{type_name(found)} levels in opset {graph.opset}, expected at least {needed}",
                f"Export the model with opset {needed} or later",
            )


def levels_of(graph: GraphView, node: onnx.NodeProto) -> int:
    """Return the element type on the integer side of a QuantizeLinear or DequantizeLinear."""
    if node.op_type == "DequantizeLinear":
        return graph.type_of(input_name(node, 0))
    if input_name(node, 2):
        return graph.type_of(input_name(node, 2))
    return int(attribute(node, "output_dtype", 0)) or TensorProto.UINT8


RULES = (zero_point, level_type, quantized_bias, level_opset)
