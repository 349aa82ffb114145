"""The linter's rules about the integers of a QDQ pair: their type and their zero point."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from accuquant.export.lint.check_graph import GraphView, Violation, type_name
from accuquant.graph.neighbours import input_of, label, select, type_of
from accuquant.graph.packed_levels import is_unpacking

#: What TensorRT's Q and DQ layers compute with, and the opset that brought each type to Q/DQ.
_LEVEL_TYPES: dict[ir.DataType, int] = {
    ir.DataType.INT8: 10,
    ir.DataType.FLOAT8E4M3FN: 19,
    ir.DataType.INT4: 21,
    ir.DataType.FLOAT4E2M1: 23,
}
_EXPORT_SHIFT = "Export with --affine shift, or quantize symmetrically: signed int8 levels with zero_point 0"
_RE_EXPORT_SYMMETRIC = "Quantize symmetrically: signed int8 levels with zero_point 0"


def zero_point(view: GraphView) -> Iterator[Violation]:
    """Report zero points that are computed or not zero.

    TensorRT's int8 kernels have no term for a zero point; the parser refuses the node.
    """
    for node in select(view.graph, "QuantizeLinear", "DequantizeLinear"):
        zeros = input_of(node, 2)
        values = view.values(zeros)
        if zeros is not None and values is None:
            found = f"zero_point '{zeros.name}' is computed in the graph"
        elif values is not None and values.any():
            found = f"zero_point is {values.flat[values.ravel().nonzero()[0][0]]:g}"
        else:
            continue
        yield Violation("zero-point", label(node), f"{found}, expected constant zeros", _EXPORT_SHIFT)


def level_type(view: GraphView) -> Iterator[Violation]:
    """Report levels of a type that TensorRT does not compute with, uint8 above all.

    TensorRT's quantization is signed. TensorRT-RTX 1.7 compiles a uint8 pair as if it were int8, without a
    word, so that the engine clips at other levels than ONNX does. Without a zero_point, ONNX means uint8.
    """
    for node in select(view.graph, "QuantizeLinear", "DequantizeLinear"):
        found = levels_of(node)
        if found in (*_LEVEL_TYPES, ir.DataType.UNDEFINED, ir.DataType.INT32):
            continue
        stated = node.op_type != "QuantizeLinear" or node.attributes.get_int("output_dtype", 0) != 0
        reason = "" if stated or input_of(node, 2) else ", the default where there is no zero_point"
        yield Violation(
            "level-type",
            label(node),
            f"levels are {type_name(found)}{reason}, expected int8",
            _RE_EXPORT_SYMMETRIC,
        )


def quantized_bias(view: GraphView) -> Iterator[Violation]:
    """Report int32 inputs of DequantizeLinear.

    TensorRT adds the bias in float after the int8 product; the parser refuses an int32 DequantizeLinear.
    """
    for node in select(view.graph, "DequantizeLinear"):
        if levels_of(node) == ir.DataType.INT32:
            yield Violation(
                "quantized-bias",
                label(node),
                "dequantizes int32, as a quantized bias does, expected int8",
                "Keep the bias in float (ONNX Runtime: extra_options={'QuantizeBias': False})",
            )


def level_opset(view: GraphView) -> Iterator[Violation]:
    """Report level types that the model's opset does not have.

    TensorRT's parser reads a node by its opset, and so does every other engine.
    """
    for node in select(view.graph, "QuantizeLinear", "DequantizeLinear"):
        found = levels_of(node)
        needed = _LEVEL_TYPES.get(found, 0)
        if not node.domain and view.opset < needed:
            yield Violation(
                "opset",
                label(node),
                f"{type_name(found)} levels in opset {view.opset}, expected at least {needed}",
                f"Export the model with opset {needed} or later",
            )


def packed_levels(view: GraphView) -> Iterator[Violation]:
    """Report 4-bit weights that are cast to int8.

    TensorRT lets INT4 go into DequantizeLinear alone, and then computes the layer in float.
    """
    for node in select(view.graph, "Cast"):
        if is_unpacking(node):
            yield Violation(
                "packed-weight",
                label(node),
                f"casts {type_name(type_of(input_of(node, 0)))} levels of a weight, expected int8 ones",
                "Build with `accuquant build`, which widens them, or export with --weight-storage int8",
            )


def levels_of(node: ir.Node) -> ir.DataType:
    """Return the element type on the integer side of a QuantizeLinear or DequantizeLinear."""
    if node.op_type == "DequantizeLinear":
        return type_of(input_of(node, 0))
    if input_of(node, 2):
        return type_of(input_of(node, 2))
    return ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)


RULES = (zero_point, level_type, quantized_bias, level_opset, packed_levels)
