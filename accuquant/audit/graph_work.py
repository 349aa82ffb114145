"""How many multiply-accumulates each convolution and matrix product of an ONNX graph takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from accuquant.audit.tensor_shapes import Shape, tensor_shapes
from accuquant.export.lint.check_graph import attribute, input_name, label

#: The operators whose work decides an engine's speed.
WORK_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Work:
    """The multiply-accumulates of one node; None where the graph does not tell its shapes."""

    node: str
    op_type: str
    macs: int | None


def graph_work(model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> dict[str, Work]:
    """Return the work of each convolution and matrix product, by node name, in graph order.

    `inputs` gives the shapes of the inputs that have a dynamic extent. External data is not read.
    Raises EngineError where an input stays dynamic.
    """
    shapes = tensor_shapes(model, inputs)
    nodes = [node for node in model.graph.node if node.op_type in WORK_OPS]
    return {label(node): Work(label(node), node.op_type, _macs(node, shapes)) for node in nodes}


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    left = shapes.get(input_name(node, 0))
    right = shapes.get(input_name(node, 1))
    output = shapes.get(node.output[0])
    if left is None or right is None or output is None:
        return None
    if node.op_type == "Conv":  # weight [O, I / groups, *kernel]
        return math.prod(output) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":  # weight [I, O / groups, *kernel]
        return math.prod(left) * math.prod(right[1:])
    inner = left[0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else left[-1]
    return math.prod(output) * inner
