"""How many multiply-accumulates each convolution and matrix product of an ONNX graph takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from accuquant.audit.tensor_shapes import Shape, tensor_shapes
from accuquant.graph.neighbours import input_of, label
from accuquant.graph.vocabulary import LAYER_OPS


@dataclass(frozen=True)
class Work:
    """The multiply-accumulates of one node; None where the graph does not tell its shapes."""

    node: ir.Node
    macs: int | None


def graph_work(model: ir.Model, inputs: Mapping[str, Shape]) -> dict[str, Work]:
    """Return the work of each convolution and matrix product, by node name, in graph order.

    `inputs` gives the shapes of the inputs that have a dynamic extent. External data is not read.
    Raises EngineError where an input stays dynamic.
    """
    shapes = tensor_shapes(model, inputs)
    nodes = [node for node in model.graph if node.op_type in LAYER_OPS]
    return {label(node): Work(node, _macs(node, shapes)) for node in nodes}


def _macs(node: ir.Node, shapes: Mapping[ir.Value, Shape]) -> int | None:
    values = (input_of(node, 0), input_of(node, 1), node.outputs[0])
    left, right, output = (None if value is None else shapes.get(value) for value in values)
    if left is None or right is None or output is None:
        return None
    if node.op_type == "Conv":  # weight [O, I / groups, *kernel]
        return math.prod(output) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":  # weight [I, O / groups, *kernel]
        return math.prod(left) * math.prod(right[1:])
    inner = left[0] if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0 else left[-1]
    return math.prod(output) * inner
