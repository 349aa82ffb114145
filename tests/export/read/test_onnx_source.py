"""A float .onnx is read only when it is whole and keeps to its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from accuquant.errors import ExportError, SourceError
from accuquant.export import write_onnx
from accuquant.export.read.onnx_source import read_model, read_proto


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read_model(tmp_path / "no.onnx")


def test_refuses_a_file_that_ends_early(one_layer: Any) -> None:
    path = one_layer("conv").path
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(SourceError, match=r"expected a complete ONNX file\. The file is damaged"):
        read_model(path)


@pytest.mark.parametrize("content", [b"", b"not protobuf at all", b"\x00" * 64, b"version https://git-lfs"])
def test_refuses_a_file_that_is_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="expected a complete ONNX file"):
        read_model(path)


def test_refuses_a_graph_that_reads_what_nothing_writes(one_layer: Any) -> None:
    path = one_layer("conv").path
    model = onnx.load(path)
    model.graph.node[0].input[0] = "nothing"
    onnx.save(model, path)
    with pytest.raises(SourceError, match="an invalid graph"):
        read_model(path)


def store_outside(path: Path, **info: str) -> None:
    """Declare the weight as external data at any location."""
    model = onnx.load(path)
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "w"]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in info.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "C:\\secret.bin", ""]
)
def test_refuses_external_data_outside_its_folder_before_anything_opens_it(
    one_layer: Any, tmp_path: Path, location: str
) -> None:
    path = one_layer("conv").path
    store_outside(path, location=location)
    with pytest.raises(SourceError, match=r"(outside the folder|empty path).*Do not use these files"):
        read_proto(path)


def test_refuses_external_data_behind_a_link(one_layer: Any, tmp_path: Path) -> None:
    path = one_layer("conv").path
    outside = tmp_path.parent / f"{tmp_path.name}-outside.bin"
    outside.write_bytes(bytes(4096))
    (path.parent / "link.bin").symlink_to(outside)
    store_outside(path, location="link.bin")
    with pytest.raises(SourceError, match="outside the folder"):
        read_proto(path)


def test_names_external_data_that_was_left_behind(one_layer: Any) -> None:
    path = one_layer("conv").path
    store_outside(path, location="weights.bin")
    with pytest.raises(SourceError, match=r"no file 'weights\.bin' beside it.*Copy 'weights\.bin'"):
        read_model(path)


def test_refuses_external_data_that_is_too_short(one_layer: Any) -> None:
    path = one_layer("conv").path
    (path.parent / "weights.bin").write_bytes(bytes(100))
    store_outside(path, location="weights.bin", offset="0", length="864")
    with pytest.raises(SourceError, match="100 bytes where tensor 'w' ends at 864"):
        read_model(path)


@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
@pytest.mark.parametrize("stored", [False, True])
def test_reads_external_data_and_writes_its_own(
    one_layer: Any, run_graph: Any, lowering: str, stored: bool
) -> None:
    network = one_layer("conv")
    onnx.save(onnx.load(network.path), network.path, save_as_external_data=True, size_threshold=0)
    layer = network.layer(zero_point=-100)
    paths = network.lower(layer, lowering, external_data=stored)
    for data in network.path.parent.iterdir():
        if data not in paths and not data.name.startswith(f"{network.path.stem}-int8"):
            data.unlink()
    expected = network.expected(network.sample(), layer, 999)
    np.testing.assert_allclose(run_graph(paths[0], network.sample(), [999]), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("opset", [13, 17])
def test_converts_an_older_opset(one_layer: Any, run_graph: Any, opset: int) -> None:
    for name in ("conv", "matmul", "transposed"):
        network = one_layer(name, opset=opset)
        layer = network.layer(zero_point=-100)
        (path,) = network.lower(layer, precision="fp32")
        assert onnx.load(path).opset_import[0].version == 21
        expected = network.expected(network.sample(), layer, 3)
        np.testing.assert_allclose(run_graph(path, network.sample(), [3]), expected, rtol=1e-4, atol=2e-5)


def test_a_graph_without_timestep_cannot_rescale_but_can_be_split(one_layer: Any) -> None:
    network = one_layer("conv")
    model = onnx.load(network.path)
    model.graph.input[1].name = "guidance"
    onnx.save(model, network.path)
    with pytest.raises(ExportError, match=r"got sample, guidance, expected an input named 'timestep'"):
        network.lower(network.layer())
    assert len(network.lower(network.layer(), "per-group")) == 3


def test_inlines_local_functions(one_layer: Any, run_graph: Any) -> None:
    network = one_layer("conv")
    model = onnx.load(network.path)
    (conv,) = model.graph.node
    inner = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])
    function = helper.make_function(
        "local", "Layer", ["x", "w", "b"], ["y"], [inner], [helper.make_opsetid("", 21)]
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    conv.op_type, conv.domain = "Layer", "local"
    del conv.attribute[:]
    onnx.save(model, network.path)
    layer = network.layer()
    (path,) = network.lower(layer)
    expected = network.expected(network.sample(), layer, 3)
    np.testing.assert_allclose(run_graph(path, network.sample(), [3]), expected, rtol=1e-4, atol=2e-5)


def test_a_bias_that_the_graph_computes_is_refused_only_where_it_must_move(one_layer: Any) -> None:
    network = one_layer("conv")
    model = onnx.load(network.path)
    model.graph.node.insert(0, helper.make_node("Abs", ["b"], ["computed"], "abs"))
    model.graph.node[1].input[2] = "computed"
    onnx.save(model, network.path)
    constant = network.layer(activation_scale=np.full(3, 0.02, np.float32))
    assert len(network.lower(constant)) == 1
    with pytest.raises(ExportError, match=r"block\.layer.*a bias that the graph computes"):
        network.lower(network.layer())


def test_an_older_graph_keeps_its_external_data_when_it_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.arange(4096, dtype=np.float32).reshape(64, 64)
    tensor = onnx.numpy_helper.from_array(weight, "w")
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["w"], name="constant", value=tensor),
            helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
        ],
        "older",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 64])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(
        model,
        folder / "older.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
        convert_attribute=True,
    )
    monkeypatch.chdir(tmp_path)
    read = read_model(Path("model/older.onnx"), min_opset=21)
    assert read.opset_imports[""] == 21
    (constant,) = [v.const_value for v in read.graph.initializers.values() if v.const_value is not None]
    assert np.array_equal(constant.numpy(), weight)


@pytest.mark.parametrize("data", ["out.onnx_data", "out.onnx", "out_group_00.onnx"])
def test_an_export_never_overwrites_the_weights_of_its_source(
    one_layer: Any, recipe_of: Any, data: str
) -> None:
    network = one_layer("conv")
    onnx.save(
        onnx.load(network.path), network.path, save_as_external_data=True, location=data, size_threshold=0
    )
    weights = (network.path.parent / data).read_bytes()
    for output in (network.path, network.path.parent / "out.onnx"):
        with pytest.raises(ExportError, match="the source itself" if output == network.path else data):
            write_onnx(network.path, recipe_of(network.layer()), output, external_data=True)
    assert (network.path.parent / data).read_bytes() == weights


def test_weights_that_are_graph_inputs_too_are_constants(one_layer: Any, run_graph: Any) -> None:
    """keep_initializers_as_inputs, which IR version 3 demands."""
    network = one_layer("conv", opset=9)
    model = onnx.load(network.path)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, network.path)
    assert [value.name for value in read_model(network.path).graph.inputs] == ["sample", "timestep"]
    (path,) = network.lower(network.layer())
    assert [value.name for value in onnx.load(path).graph.input] == ["sample", "timestep"]
    expected = network.expected(network.sample(), network.layer(), 3)
    np.testing.assert_allclose(run_graph(path, network.sample(), [3]), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("how", ["initializer", "constant"])
def test_weights_of_a_branch_come_along(
    one_layer: Any, recipe_of: Any, run_graph: Any, tmp_path: Path, how: str, stored: bool
) -> None:
    """The body of an If may have external data too."""
    network = one_layer("conv")
    model = onnx.load(network.path)
    factor = onnx.numpy_helper.from_array(np.full((1, 4, 1, 1), 2, np.float32), "factor")
    factor.ClearField("raw_data")
    factor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in {"location": "factor.bin", "offset": "0", "length": "16"}.items():
        factor.external_data.add(key=key, value=text)
    (network.path.parent / "factor.bin").write_bytes(np.full(4, 2, np.float32).tobytes())
    output = helper.make_tensor_value_info("scaled", onnx.TensorProto.FLOAT, [None, 4, None, None])
    nodes = [helper.make_node("Mul", ["sample", "factor"], ["scaled"])]
    if how == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["factor"], value=factor))
    body = helper.make_graph(nodes, "then", [], [output], [factor] if how == "initializer" else [])
    other = helper.make_graph([helper.make_node("Identity", ["sample"], ["scaled"])], "else", [], [output])
    true = onnx.numpy_helper.from_array(np.array(True), "true")
    model.graph.initializer.append(true)
    model.graph.node.insert(
        0, helper.make_node("If", ["true"], ["x"], "branch", then_branch=body, else_branch=other)
    )
    model.graph.node[1].input[0] = "x"
    onnx.save(model, network.path)
    layer = network.layer(activation_scale=np.full(3, 0.04, np.float32))
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "int8.onnx"
    write_onnx(network.path, recipe_of(layer), path, external_data=stored)
    expected = network.expected(2 * network.sample(), layer, 3)
    np.testing.assert_allclose(run_graph(path, network.sample(), [3]), expected, rtol=1e-4, atol=2e-5)
