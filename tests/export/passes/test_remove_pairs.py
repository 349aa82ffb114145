"""The float twin of a graph that another tool quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.audit.audit_model import write_float_twin


def quantized_like_onnxruntime(path: Path, *, last: str) -> None:
    """Write sample -> QDQ -> Conv with QDQ weight and bias -> [QDQ], as quantize_static does.

    `last` is what makes the graph's output: "DequantizeLinear", or "sample", which only passes a pair.
    """
    node = helper.make_node
    tensors = {
        "step": np.array(0.02, np.float32),
        "steps": np.array([0.02], np.float32),
        "zero": np.array(0, np.int8),
        "zeros": np.array([0], np.int32),
        "w": np.arange(-18, 18, dtype=np.int8).reshape(4, 1, 3, 3),
        "b": np.array([1, 2, 3, 4], np.int32),
    }
    nodes = [
        node("QuantizeLinear", ["sample", "step", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "step", "zero"], ["x" if last != "sample" else "y"]),
    ]
    if last != "sample":
        nodes += [
            node("DequantizeLinear", ["w", "step", "zero"], ["weight"]),
            node("DequantizeLinear", ["b", "steps", "zeros"], ["bias"], axis=0),
            node("Conv", ["x", "weight", "bias"], ["product"]),
            node("QuantizeLinear", ["product", "step", "zero"], ["p"]),
            node("DequantizeLinear", ["p", "step", "zero"], ["y"]),
        ]
    channels = 1 if last == "sample" else 4
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, None, None])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


@pytest.mark.parametrize("last", ["DequantizeLinear", "sample"])
def test_a_graph_output_behind_a_pair_keeps_its_name(tmp_path: Path, last: str) -> None:
    path = tmp_path / "int8.onnx"
    quantized_like_onnxruntime(path, last=last)
    twin = write_float_twin(path, tmp_path)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in onnx.load(twin).graph.node}
    outputs: list[Any] = []
    for model in (path, twin):
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_outputs()] == ["y"]
        sample = np.random.default_rng(0).uniform(-1, 1, (1, 1, 8, 8)).astype(np.float32)
        outputs += session.run(None, {"sample": sample})
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.1)
