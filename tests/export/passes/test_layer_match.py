"""Layers are found by what their weights hold, however the graph stores them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.errors import ExportError
from accuquant.export import write_onnx


def rewrite(path: Path, weight: np.ndarray, operator: str | None) -> None:
    """Replace the initializer "w" by `weight` behind `operator`, or by a Constant node."""
    model = onnx.load(path)
    graph = model.graph
    (old,) = [tensor for tensor in graph.initializer if tensor.name == "w"]
    graph.initializer.remove(old)
    if operator is None:
        tensor = numpy_helper.from_array(weight)
        graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    else:
        attributes: dict[str, dict[str, Any]] = {
            "Transpose": {"perm": list(range(weight.ndim))[::-1]},
            "Cast": {"to": TensorProto.FLOAT},
        }
        graph.initializer.append(numpy_helper.from_array(weight, "stored"))
        graph.node.insert(0, helper.make_node(operator, ["stored"], ["w"], **attributes.get(operator, {})))
    onnx.save(model, path)


@pytest.mark.parametrize("how", ["constant", "half", "identity", "transposed"])
@pytest.mark.parametrize("name", ["conv", "transposed", "gemm", "gemm-in-out", "matmul"])
def test_finds_a_weight_however_it_is_stored(one_layer: Any, run_graph: Any, name: str, how: str) -> None:
    network = one_layer(name)
    stored = network.weight.T if network.case.reads_transposed else network.weight
    stored = np.ascontiguousarray(stored)
    rewrite(
        network.path,
        *{
            "constant": (stored, None),
            "half": (stored.astype(np.float16), "Cast"),
            "identity": (stored, "Identity"),
            "transposed": (np.ascontiguousarray(stored.T), "Transpose"),
        }[how],
    )
    layer = network.layer()
    (path,) = network.lower(layer)
    model = onnx.load(path)
    assert not [tensor for tensor in model.graph.initializer if tensor.name in ("w", "stored")]
    expected = network.expected(network.sample(), layer, 3)
    tolerance = 0.02 if how == "half" else 2e-5
    np.testing.assert_allclose(run_graph(path, network.sample(), [3]), expected, rtol=1e-4, atol=tolerance)


def test_names_the_layer_that_has_no_node(one_layer: Any, recipe_of: Any, tmp_path: Path) -> None:
    network = one_layer("conv")
    other = replace(network.layer(), name="mid_block.conv", fingerprint="f" * 64)
    with pytest.raises(ExportError, match=r"'mid_block\.conv'.*no node.*calibrated weight \[6, 4, 3, 3\]"):
        write_onnx(network.path, recipe_of(network.layer(), other), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_graph_that_was_rounded_to_bfloat16_is_told_so(
    one_layer: Any, recipe_of: Any, tmp_path: Path
) -> None:
    network = one_layer("conv")
    recipe = recipe_of(network.layer())
    weight = numpy_helper.to_array(
        next(t for t in onnx.load(network.path).graph.initializer if t.name == "w")
    )
    rounded = weight.astype(ml_dtypes.bfloat16).astype(np.float32)
    rewrite(network.path, rounded, "Identity")
    with pytest.raises(ExportError, match=r"'block\.layer'.*rounded to bfloat16.*float32 or float16"):
        write_onnx(network.path, recipe, tmp_path / "out.onnx")


def test_a_transposed_square_weight_is_another_layer(one_layer: Any, recipe_of: Any, tmp_path: Path) -> None:
    network = one_layer("gemm")
    layer = network.layer()
    square = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    rewrite(network.path, square, "Identity")
    from accuquant.qparams import fingerprint

    settings = {"weight_shape": (5, 5), "weight_scale": np.full(5, 0.02, np.float32)}
    for weight, found in ((square, True), (np.ascontiguousarray(square.T), False)):
        recipe = recipe_of(replace(layer, fingerprint=fingerprint(weight), **settings))
        if found:
            write_onnx(network.path, recipe, tmp_path / "out.onnx")
        else:
            with pytest.raises(ExportError, match="no node"):
                write_onnx(network.path, recipe, tmp_path / "out.onnx")


def twins(network: Any, path: Path, names: tuple[str, str]) -> Path:
    """Write sample -> conv -> conv with one shared weight; the nodes bear `names`."""
    weight = np.random.default_rng(0).normal(0, 0.2, (4, 4, 1, 1)).astype(np.float32)
    graph = onnx.load(network.path).graph
    nodes = [
        helper.make_node("Conv", ["sample", "w"], ["hidden"], names[0]),
        helper.make_node("Conv", ["hidden", "w"], ["out_sample"], names[1]),
    ]
    made = helper.make_graph(nodes, "unet", graph.input, graph.output, [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def twin_layers(network: Any) -> tuple[Any, Any]:
    from accuquant.qparams import fingerprint

    weight = np.random.default_rng(0).normal(0, 0.2, (4, 4, 1, 1)).astype(np.float32)
    layer = network.layer(
        name="a.conv",
        weight_shape=weight.shape,
        fingerprint=fingerprint(weight),
        weight_scale=np.full(4, 0.01, np.float32),
    )
    return layer, replace(layer, name="b.conv", activation_scale=np.array([0.5, 0.4, 0.3], np.float32))


@pytest.mark.parametrize("names", [("/a/conv/Conv", "/b/conv/Conv"), ("/b/conv/Conv", "/a/conv/Conv")])
def test_names_tell_layers_of_one_weight_apart(
    one_layer: Any, recipe_of: Any, tmp_path: Path, names: tuple[str, str]
) -> None:
    network = one_layer("pointwise")
    path = twins(network, tmp_path / "twins.onnx", names)
    first, second = twin_layers(network)
    (written,) = write_onnx(path, recipe_of(first, second), tmp_path / "out.onnx", lowering="rescale")
    layers = [
        {entry.key: entry.value for entry in node.metadata_props}["accuquant.layer"]
        for node in onnx.load(written).graph.node
        if node.op_type == "Conv"
    ]
    assert layers == [name.split("/")[1] + ".conv" for name in names]


def test_layers_of_one_weight_without_names_are_refused(
    one_layer: Any, recipe_of: Any, tmp_path: Path
) -> None:
    network = one_layer("pointwise")
    path = twins(network, tmp_path / "twins.onnx", ("Conv_0", "Conv_1"))
    first, second = twin_layers(network)
    with pytest.raises(ExportError, match=r"'Conv_0'.*2 layers share: a\.conv, b\.conv"):
        write_onnx(path, recipe_of(first, second), tmp_path / "out.onnx")


def test_a_layer_that_is_called_twice_is_quantized_twice(
    one_layer: Any, recipe_of: Any, run_graph: Any, tmp_path: Path
) -> None:
    network = one_layer("pointwise")
    path = twins(network, tmp_path / "twins.onnx", ("Conv_0", "Conv_1"))
    layer, _ = twin_layers(network)
    (written,) = write_onnx(path, recipe_of(layer), tmp_path / "out.onnx")
    operators = [node.op_type for node in onnx.load(written).graph.node]
    assert operators.count("QuantizeLinear") == 2
    assert operators.count("DequantizeLinear") == 3
    assert run_graph(written, network.sample(), [3]).shape == (2, 4, 5, 5)


def test_layers_that_read_one_tensor_share_its_pair(
    one_layer: Any, recipe_of: Any, run_graph: Any, tmp_path: Path
) -> None:
    network = one_layer("matmul")
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.3, (6, 5)).astype(np.float32) for name in ("to_q", "to_k", "to_v")}
    graph = onnx.load(network.path).graph
    nodes = [helper.make_node("MatMul", ["sample", name], [f"{name}.out"], name) for name in weights]
    nodes.append(helper.make_node("Sum", [f"{name}.out" for name in weights], ["out_sample"], "sum"))
    tensors = [numpy_helper.from_array(np.ascontiguousarray(w.T), name) for name, w in weights.items()]
    made = helper.make_graph(nodes, "unet", graph.input, graph.output, tensors)
    path = tmp_path / "attention.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)

    from accuquant.qparams import fingerprint

    layers = [replace(network.layer(), name=name, fingerprint=fingerprint(w)) for name, w in weights.items()]
    (shared,) = write_onnx(path, recipe_of(*layers), tmp_path / "shared.onnx")
    assert [node.op_type for node in onnx.load(shared).graph.node].count("QuantizeLinear") == 1
    layers[2] = layers[2].with_activation_scale(2 * layers[2].activation_scale)
    (apart,) = write_onnx(path, recipe_of(*layers), tmp_path / "apart.onnx")
    assert [node.op_type for node in onnx.load(apart).graph.node].count("QuantizeLinear") == 2
    for written in (shared, apart):
        assert run_graph(written, network.sample(), [3]).shape == (2, 3, 6)


@pytest.mark.parametrize("changes", [{}, {"zero_point": -100}, {"bias_correction": np.ones(4, np.float32)}])
@pytest.mark.parametrize("operator", ["Conv", "MatMul"])
def test_nodes_that_share_a_weight_keep_their_own_biases_and_padding(
    one_layer: Any, recipe_of: Any, run_graph: Any, tmp_path: Path, operator: str, changes: dict[str, Any]
) -> None:
    from accuquant.qparams import fingerprint

    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.2, (4, 4, 3, 3) if operator == "Conv" else (4, 4)).astype(np.float32)
    tensors = {"w": weight if operator == "Conv" else weight.T, "a": np.ones(4), "b": np.full(4, -7.0)}
    nodes = []
    for name, strides in (("a", [2, 2]), ("b", [1, 1])):
        source = "sample" if name == "a" else "a.out"
        if operator == "Conv":
            attributes: dict[str, Any] = {"pads": [1, 1, 1, 1], "strides": strides}
            nodes.append(helper.make_node("Conv", [source, "w", name], [f"{name}.out"], name, **attributes))
        else:
            nodes.append(helper.make_node("MatMul", [source, "w"], [f"{name}.product"], name))
            nodes.append(helper.make_node("Add", [f"{name}.product", name], [f"{name}.out"]))
    rank = [None, 4, None, None] if operator == "Conv" else [None, None, 4]
    graph = helper.make_graph(
        nodes,
        "unet",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, rank),
            helper.make_tensor_value_info("timestep", TensorProto.INT64, ["steps"]),
        ],
        [helper.make_tensor_value_info("b.out", TensorProto.FLOAT, [None] * len(rank))],
        [numpy_helper.from_array(np.ascontiguousarray(v, np.float32), k) for k, v in tensors.items()],
    )
    path = tmp_path / "shared.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    scales = np.array([0.06, 0.05, 0.07], np.float32)
    layer = one_layer("pointwise" if operator == "Conv" else "matmul").layer(
        weight_shape=weight.shape,
        fingerprint=fingerprint(weight),
        weight_scale=np.full(4, 0.005, np.float32),
        activation_scale=scales,
        **({"bias_correction": np.zeros(4, np.float32)} if "bias_correction" in changes else changes),
    )
    (written,) = write_onnx(path, recipe_of(layer), tmp_path / "out.onnx")
    sample = np.abs(rng.normal(0, 1, (2, 4, 6, 6) if operator == "Conv" else (2, 3, 4))).astype(np.float32)
    error = run_graph(written, sample, [3]) - run_graph(path, sample, [3])
    assert np.abs(error).max() < 1


def test_layers_that_are_alike_in_everything_need_no_node_each(
    one_layer: Any, recipe_of: Any, tmp_path: Path
) -> None:
    network = one_layer("pointwise")
    path = twins(network, tmp_path / "twins.onnx", ("Conv_0", "Conv_1"))
    first, _ = twin_layers(network)
    (written,) = write_onnx(path, recipe_of(first, replace(first, name="b.conv")), tmp_path / "out.onnx")
    assert [node.op_type for node in onnx.load(written).graph.node].count("QuantizeLinear") == 2
