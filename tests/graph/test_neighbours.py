from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from accuquant.graph.constants import is_constant
from accuquant.graph.neighbours import (
    Read,
    input_of,
    is_activation,
    label,
    producer,
    readers,
    select,
    type_of,
)


@pytest.fixture
def graph() -> ir.Graph:
    """x -> Relu -> Q -> DQ, and a constant that is quantized and moved."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    relu = ir.node("Relu", [x], name="relu")
    step = ir.Value(name="step", const_value=ir.tensor(np.array(0.5, np.float16), name="step"))
    levels = ir.node("QuantizeLinear", [relu.outputs[0], step], name="q")
    back = ir.node("DequantizeLinear", [levels.outputs[0], step], name="dq")
    constant = ir.node("Constant", [], {"value_floats": [1.0, 2.0]}, name="c")
    weight = ir.node("QuantizeLinear", [constant.outputs[0], step], name="wq")
    moved = ir.node("Transpose", [weight.outputs[0]], name="move")
    float_weight = ir.node("DequantizeLinear", [moved.outputs[0], step], name="")
    float_weight.outputs[0].name = "w"
    both = ir.node("Add", [back.outputs[0], float_weight.outputs[0], None], name="add")
    nodes = [relu, levels, back, constant, weight, moved, float_weight, both]
    return ir.Graph([x], [both.outputs[0]], nodes=nodes, initializers=[step], opset_imports={"": 21})


def named(graph: ir.Graph, name: str) -> ir.Node:
    return next(node for node in graph if label(node) == name)


def test_writers_and_readers_are_found(graph: ir.Graph) -> None:
    relu, quantize = named(graph, "relu"), named(graph, "q")
    assert producer(quantize) is relu
    assert producer(relu) is None
    assert producer(quantize, 1) is None
    assert readers(relu) == (Read(quantize, 0),)
    assert input_of(named(graph, "add"), 2) is None
    assert input_of(named(graph, "add"), 3) is None


def test_nodes_are_selected_in_order(graph: ir.Graph) -> None:
    assert [node.name for node in select(graph, "QuantizeLinear", "Relu")] == ["relu", "q", "wq"]


def test_a_constant_stays_one_behind_what_engines_fold(graph: ir.Graph) -> None:
    add = named(graph, "add")
    assert is_constant(input_of(add, 1))
    assert not is_constant(input_of(add, 0))
    assert not is_constant(None)
    assert is_activation(producer(add, 0))
    assert not is_activation(producer(add, 1))
    assert not is_activation(None)


def test_types_are_those_of_constants_first(graph: ir.Graph) -> None:
    assert type_of(input_of(named(graph, "q"), 1)) == ir.DataType.FLOAT16
    assert type_of(graph.inputs[0]) == ir.DataType.FLOAT
    assert type_of(named(graph, "relu").outputs[0]) == ir.DataType.UNDEFINED
    assert type_of(None) == ir.DataType.UNDEFINED
