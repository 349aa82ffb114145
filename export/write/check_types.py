"""Check that the element types of a graph agree, without its weights."""

from __future__ import annotations

import onnx
from onnx import helper


def check_types(model: onnx.ModelProto) -> None:
    """Raise onnx.shape_inference.InferenceError where a node reads or writes a type that it cannot have.

    onnx.checker alone does not look. Only nodes and types are copied: no weight, and no shape, which
    exporters write down in ways that contradict each other.
    """
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    for field in ("input", "output", "value_info"):
        getattr(graph, field).extend(_without_shape(value) for value in getattr(model.graph, field))
    declared = {value.name for value in graph.input}
    graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, None)
        for tensor in model.graph.initializer
        if tensor.name not in declared
    )
    onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)


def _without_shape(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    if not value.type.HasField("tensor_type"):
        return value
    return helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None)
