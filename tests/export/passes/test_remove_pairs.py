"""The float twin of a quantized graph: of another tool's, and of one whose layer is called twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.audit.audit_model import write_float_twin
from accuquant.errors import SourceError
from accuquant.export import write_onnx
from accuquant.export.export_options import Precision
from accuquant.graph.infer_types import untyped_nodes
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.qparams import LayerQParams, fingerprint
from accuquant.recipe import Recipe


def quantized_like_onnxruntime(path: Path, *, last: str) -> None:
    """Write sample -> QDQ -> Conv with QDQ weight and bias -> [QDQ], as quantize_static does.

    `last` is what makes the graph's output: "DequantizeLinear", or "sample", which only passes a pair.
    """
    node = helper.make_node
    tensors: dict[str, np.ndarray] = {
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


WEIGHT = np.random.default_rng(1).normal(0, 0.3, (4, 4, 3, 3)).astype(np.float32)
FACTORS, TABLES = {"Div", "Mul", "Gather"}, {"Pad", "Range", "Shape", "Gather"}


def called_twice(path: Path) -> Path:
    """Write sample -> Conv -> Relu -> the same Conv again, as a module that is called twice is traced."""
    bias = np.array([0.1, -0.2, 0.3, 0.4], np.float32)
    nodes = [
        helper.make_node("Conv", ["sample", "w", "b"], ["first"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["first"], ["middle"], "relu"),
        helper.make_node("Conv", ["middle", "w", "b"], ["out_sample"], "conv_1", pads=[1] * 4),
    ]
    image: list[str | int | None] = ["batch", 4, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, image),
            helper.make_tensor_value_info("timestep", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, image)],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(bias, "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def twice_recipe(scales: tuple[float, float], zero_point: int, bits: int) -> Recipe:
    layer = LayerQParams(
        "block.layer",
        "conv2d",
        WEIGHT.shape,
        fingerprint(WEIGHT),
        np.abs(WEIGHT).max(axis=(1, 2, 3)) / 127,
        np.array(scales, np.float32),
        zero_point=zero_point,
        activation_bits=bits,
    )
    image = TensorSpec("sample", ("batch", 4, "height", "width"))
    signature = Signature(
        architecture="UNet2DModel",
        sample=image,
        timestep=TensorSpec("timestep", (1,), "int64"),
        conditioning=(),
        output=TensorSpec("out_sample", image.shape),
        sizes={"batch": 1, "height": 8, "width": 8},
    )
    return Recipe(StepGroups((1000.0, 500.0, 0.0)), {"block.layer": layer}, signature, {}, "0" * 64)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize(
    ("scales", "zero_point", "lowered"), [((0.05, 0.03), -20, FACTORS | {"Pad"}), ((0.05, 0.05), -20, TABLES)]
)
def test_a_layer_that_is_called_twice_leaves_nothing_of_its_lowering(
    tmp_path: Path,
    scales: tuple[float, float],
    zero_point: int,
    lowered: set[str],
    bits: int,
    precision: Precision,
) -> None:
    path = called_twice(tmp_path / "float.onnx")
    recipe = twice_recipe(scales, zero_point, bits)
    exported = write_onnx(path, recipe, tmp_path / "int8.onnx", precision=precision)[0]
    before = {node.op_type for node in onnx.load(exported).graph.node}
    assert before & lowered
    assert ("Clip" in before) == (bits < 8)
    twin = onnx.load(write_float_twin(exported, tmp_path)).graph
    assert sorted(node.op_type for node in twin.node if node.op_type not in ("Cast", "Add")) == [
        "Conv",
        "Conv",
        "Relu",
    ]
    assert sum(node.op_type == "Add" for node in twin.node) <= 2  # the biases
    assert all(list(attribute(node, "pads")) == [1] * 4 for node in twin.node if node.op_type == "Conv")


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name)


def test_a_graph_of_ours_without_roles_is_exported_again(tmp_path: Path) -> None:
    recipe = twice_recipe((0.05, 0.03), 0, 8)
    exported = write_onnx(called_twice(tmp_path / "float.onnx"), recipe, tmp_path / "int8.onnx")[0]
    model = onnx.load(exported)
    for node in model.graph.node:
        node.ClearField("metadata_props")
    onnx.save(model, exported)
    with pytest.raises(SourceError, match=r"no role \(written by AccuQuant .*Export the model again"):
        write_float_twin(exported, tmp_path)


@pytest.mark.parametrize("zero_point", [0, -100])
@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
@pytest.mark.parametrize("name", ["conv", "strided", "same", "biasless", "transposed", "gemm", "matmul"])
def test_the_twin_of_each_layer_is_the_layer(
    one_layer: Any, tmp_path: Path, name: str, lowering: str, zero_point: int
) -> None:
    network = one_layer(name)
    path = network.lower(network.layer(zero_point=zero_point), lowering)[0]
    assert untyped_nodes(ir.load(path).graph) == []
    twin = onnx.load(write_float_twin(path, tmp_path)).graph
    found = {node.op_type for node in twin.node} - {"Cast"}
    assert found - {"Add"} == {network.case.operator}
