"""The types of levels: one for each format, and INT4 behind a Cast to int8, where engines dequantize it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from accuquant.e4m3 import Format
from accuquant.graph.patch import add_tensor

#: Format of a recipe -> the type of its levels.
LEVEL_TYPES: Mapping[Format, ir.DataType] = {
    "int8": ir.DataType.INT8,
    "fp8": ir.DataType.FLOAT8E4M3FN,
}
_PACKED = (ir.DataType.INT4, ir.DataType.UINT4)


def levels_tensor(dequantize: ir.Node) -> ir.TensorProtocol | None:
    """Return the constant levels that a DequantizeLinear reads, packed or not; None for computed ones."""
    levels = dequantize.inputs[0] if dequantize.inputs else None
    if levels is None:
        return None
    cast = levels.producer()
    source = cast.inputs[0] if cast is not None and is_unpacking(cast) else levels
    return None if source is None else ir.convenience.get_const_tensor(source)


def is_unpacking(node: ir.Node) -> bool:
    """Say whether `node` casts 4-bit integers to another type."""
    value = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
    return value is not None and value.dtype in _PACKED


def unpack_levels(model: ir.Model) -> int:
    """Store every constant that is cast from 4-bit integers to int8 as int8 -> how many there were.

    Values are unpacked when the model is written.
    """
    graph = model.graph
    found = [
        node for node in graph if is_unpacking(node) and node.attributes.get_int("to") == ir.DataType.INT8
    ]
    for node in found:
        _unpack(graph, node)
    return len(found)


def _unpack(graph: ir.Graph, cast: ir.Node) -> None:
    source, widened = cast.inputs[0], cast.outputs[0]
    tensor = None if source is None else ir.convenience.get_const_tensor(source)
    if source is None or tensor is None:
        return

    def compute() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.int8))

    lazy = ir.LazyTensor(compute, dtype=ir.DataType.INT8, shape=ir.Shape(tensor.shape.numpy()))
    levels = add_tensor(graph, lazy, f"{source.name}_as_int8")
    for user, position in list(widened.uses()):
        user.replace_input_with(position, levels)
    graph.remove(cast, safe=True)
    if source.is_initializer() and not source.uses():
        del graph.initializers[str(source.name)]
