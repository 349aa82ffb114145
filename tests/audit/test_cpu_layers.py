from __future__ import annotations

import numpy as np
import pytest

from accuquant.audit.engine_layers import EngineLayer, EngineTensor, Library
from accuquant.audit.kernel_kind import kernel_kind
from accuquant.audit.onnxruntime_layers import read_profile
from accuquant.audit.openvino_layers import read_openvino_layers, times_of_calls
from accuquant.runtime.executed_nodes import ExecutedNode, ExecutedTensor

FLOAT, LEVELS = EngineTensor("x", (1, 4), "Float"), EngineTensor("x", (1, 4), "UInt8")
OPERATORS = {
    "q": "QuantizeLinear",
    "add": "Add",
    "silu": "Mul",
    "scores": "MatMul",
    "norm": "GroupNormalization",
}


@pytest.mark.parametrize(
    ("library", "kind", "nodes", "writes", "expected"),
    [
        ("openvino", "Convolution", ("conv",), FLOAT, "convolution"),
        ("openvino", "FullyConnected", ("linear",), FLOAT, "gemm"),
        ("openvino", "Subgraph", ("add", "silu", "q"), LEVELS, "fused pointwise"),
        ("openvino", "Subgraph", ("q",), LEVELS, "quantize"),
        ("openvino", "Subgraph", ("add",), FLOAT, "pointwise"),
        ("openvino", "Subgraph", ("norm",), FLOAT, "normalization"),
        ("openvino", "Subgraph", ("norm", "silu"), FLOAT, "fused pointwise"),
        ("openvino", "Subgraph", ("scores", "add"), FLOAT, "attention"),
        ("openvino", "Reorder", (), FLOAT, "reformat"),
        ("openvino", "Reorder", (), LEVELS, "convert"),
        ("openvino", "MVN", (), FLOAT, "normalization"),
        ("openvino", "Pad", (), FLOAT, "copy"),
        ("openvino", "Teleport", (), FLOAT, "other"),
        ("onnxruntime", "QLinearConv", ("conv",), LEVELS, "convolution"),
        ("onnxruntime", "QuantizeLinear", ("q",), LEVELS, "quantize"),
        ("onnxruntime", "Add", ("add",), FLOAT, "pointwise"),
    ],
)
def test_a_kernel_has_the_kind_of_its_layer_type(
    library: Library, kind: str, nodes: tuple[str, ...], writes: EngineTensor, expected: str
) -> None:
    layer = EngineLayer("k", kind, (FLOAT,), (), (writes,), nodes, library=library)
    assert kernel_kind(layer, OPERATORS) == expected


def node(name: str, kind: str, *inputs: ExecutedTensor, constant: bool = False) -> ExecutedNode:
    return ExecutedNode(name, kind, "jit", (name,), inputs, (ExecutedTensor((1, 4), "f32"),), constant)


def test_what_runs_in_place_or_once_is_no_kernel() -> None:
    activation, weight = ExecutedTensor((1, 4), "u8"), ExecutedTensor((4, 4), "i8", constant=True)
    missing = ExecutedTensor((0,), "dynamic", constant=True)
    nodes = [
        node("x", "Input"),
        node("w", "Const", constant=True),
        node("turned", "Transpose", weight, constant=True),
        node("linear", "FullyConnected", activation, weight, missing),
        node("view", "Reshape", activation),
    ]
    times = {"x": 0.0, "w": 0.0, "turned": 0.0, "linear": 2.5}
    (layer,) = read_openvino_layers(tuple(nodes), times, {}).layers
    assert (layer.name, layer.milliseconds, layer.implementation) == ("linear", 2.5, "jit")
    assert layer.reads_levels
    assert [tensor.dtype for tensor in layer.constants] == ["Int8"]
    assert layer.traffic == 4 + 16 + 16


def test_what_a_call_took_follows_from_means_over_all_calls() -> None:
    """The engine's counters begin with a slow first call, which is in every mean, and in no time."""
    taken = {"conv": [900.0, 10.0, 30.0, 20.0], "add": [5.0, 1.0, 1.0, 1.0]}
    means = [{name: float(np.mean(calls[: k + 1])) for name, calls in taken.items()} for k in range(4)]
    assert times_of_calls(means) == pytest.approx({"conv": 20.0, "add": 1.0})


def event(name: str, microseconds: int, operator: str, kind: str) -> dict[str, object]:
    args = {
        "op_name": operator,
        "input_type_shape": [{kind: [1, 4]}],
        "output_type_shape": [{"float": [1, 4]}],
    }
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


def test_a_profile_is_read_by_node_and_its_first_run_is_left_out() -> None:
    events = [
        {"cat": "Session", "name": "model_run", "dur": 5},
        *(event("conv_quant", time, "QLinearConv", "uint8") for time in (9000, 1000, 3000)),
        event("ReorderInput_0", 10, "ReorderInput", "float"),
        event("sum_nchwc", 10, "Conv", "float"),
        event("conv_quant", 2000, "QLinearConv", "uint8"),
    ]
    conv, reorder, blocked = read_profile(events, {"conv": "conv", "sum": "add"}).layers
    assert (conv.onnx_nodes, conv.milliseconds, conv.reads_levels) == (("conv",), 2.0, True)
    assert blocked.onnx_nodes == ("add",), "called after what it writes"
    assert (reorder.onnx_nodes, reorder.kind) == ((), "ReorderInput")
