"""A graph in half precision becomes float32, with its own types at its borders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from accuquant.errors import ExportError
from accuquant.export.read.widen_half import WidenHalfPass

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: tuple[str, ...]) -> Any:
    """Return a graph from x [4] in half precision, every tensor of which has its type."""
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", HALF, [4])],
        [helper.make_tensor_value_info(name, HALF, [4]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto)


def widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.from_proto(proto)
    assert WidenHalfPass()(graph).modified
    return ir.to_proto(graph)


def run(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(proto)
    result: Any = ReferenceEvaluator(proto).run(None, {"x": x})
    return list(result)


def test_what_was_rounded_in_between_is_computed_in_float32() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "thousand"], ["large"]),
        helper.make_node("Add", ["large", "small"], ["sum"]),
        helper.make_node("Sub", ["sum", "large"], ["y"]),
    ]
    constants = {"thousand": np.float16(10000), "small": np.full(4, 0.25, np.float16)}
    proto = model(nodes, constants, ("y",))
    x = np.array([1, 2, 3, 4], np.float16)
    assert run(proto, x)[0].tolist() == [0] * 4, "half precision has no quarter beside 10000"
    wide = widened(proto)
    (y,) = run(wide, x)
    assert y.dtype == np.float16
    assert y.tolist() == [0.25] * 4
    assert {t.data_type for t in wide.graph.initializer} == {FLOAT}


def test_casts_and_filled_tensors_that_make_half_precision_make_float32() -> None:
    filled = helper.make_tensor("value", HALF, [1], [2.5])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["two"], value=filled),
        helper.make_node("Cast", ["x"], ["wide"], to=FLOAT),
        helper.make_node("Cast", ["wide"], ["narrow"], to=HALF),
        helper.make_node("Mul", ["narrow", "two"], ["y"]),
    ]
    wide = widened(model(nodes, {"shape": np.array([4], np.int64)}, ("y",)))
    x = np.array([1, -2, 3, 0.5], np.float16)
    assert run(wide, x)[0].tolist() == (x * 2.5).tolist()
    # one at each border; those in between changed nothing any more
    assert [node.op_type for node in wide.graph.node].count("Cast") == 2


def test_an_input_that_is_passed_on_keeps_its_type() -> None:
    proto = model([helper.make_node("Neg", ["x"], ["y"])], {}, ("y", "x"))
    x = np.array([1, 2, 3, 4], np.float16)
    outputs = run(widened(proto), x)
    assert [output.dtype for output in outputs] == [np.float16] * 2
    assert [output.tolist() for output in outputs] == [(-x).tolist(), x.tolist()]


def test_a_graph_in_float32_stays_as_it_is(make_conv: Any) -> None:
    path: Path = make_conv()
    graph = ir.load(path)
    assert not WidenHalfPass()(graph).modified


def test_control_flow_is_refused_by_name() -> None:
    body = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", HALF, [4])]
    )
    nodes = [helper.make_node("If", ["yes"], ["y"], "choice", then_branch=body, else_branch=body)]
    graph = ir.from_proto(model(nodes, {"yes": np.array(True)}, ("y",)))
    with pytest.raises(Exception, match="control flow in a graph in half precision") as caught:
        WidenHalfPass()(graph)
    fault = caught.value if isinstance(caught.value, ExportError) else caught.value.__cause__
    assert isinstance(fault, ExportError)
    assert "'choice' (If)" in str(fault)
