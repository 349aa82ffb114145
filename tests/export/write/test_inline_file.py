"""Weights go into the .onnx one at a time, and what results is the file that onnx itself would write."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from accuquant.errors import ExportError
from accuquant.export.write.graph_files import save_graphs
from accuquant.export.write.inline_file import save_inline


def model_with(count: int, size: int, computed: list[int]) -> ir.Model:
    """A chain of additions of `count` lazy constants [size]."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([size]))
    nodes, initializers, last = [], [], x
    for number in range(count):

        def compute(number: int = number) -> ir.TensorProtocol:
            computed.append(number)
            return ir.tensor(np.full(size, number + 1, np.float32))

        lazy = ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=ir.Shape([size]), name=f"w{number}")
        weight = ir.Value(name=f"w{number}", type=x.type, shape=x.shape, const_value=lazy)
        node = ir.node("Add", [last, weight], name=f"add{number}")
        last = node.outputs[0]
        last.name, last.type, last.shape = f"y{number}", x.type, x.shape
        nodes.append(node)
        initializers.append(weight)
    graph = ir.Graph(
        [x], [last], nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="chain"
    )
    return ir.Model(graph, ir_version=10)


def large(model: ir.Model) -> list[Any]:
    return [value.const_value for value in model.graph.initializers.values()]


@pytest.mark.parametrize("size", [1, 127, 128, 20_000])
def test_the_file_holds_what_the_model_does(tmp_path: Path, size: int) -> None:
    model = model_with(3, size, [])
    names = [str(value.name) for value in model.graph.initializers.values()]
    save_inline(model, tmp_path / "m.onnx", large(model))
    loaded = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(loaded, full_check=True)
    expected = ir.to_proto(model)
    assert {t.name: onnx.numpy_helper.to_array(t).tolist() for t in loaded.graph.initializer} == {
        f"w{number}": [number + 1.0] * size for number in range(3)
    }
    for field in ("node", "input", "output"):
        assert list(getattr(loaded.graph, field)) == list(getattr(expected.graph, field))
    assert (loaded.ir_version, loaded.opset_import[0].version, loaded.graph.name) == (10, 21, "chain")
    # the model can be used on
    assert sorted(str(value.name) for value in model.graph.initializers.values()) == sorted(names)


def test_small_tensors_stay_where_the_message_has_them(tmp_path: Path) -> None:
    model = model_with(3, 4, [])
    save_inline(model, tmp_path / "m.onnx", large(model)[1:2])
    assert [t.name for t in onnx.load(tmp_path / "m.onnx").graph.initializer] == ["w0", "w2", "w1"]


def test_one_tensor_is_in_memory_at_a_time_and_each_is_computed_once(tmp_path: Path) -> None:
    computed: list[int] = []
    size = 1_000_000
    model = model_with(8, size, computed)
    tracemalloc.start()
    save_inline(model, tmp_path / "m.onnx", large(model))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert computed == list(range(8))
    assert peak < 3 * 4 * size
    assert (tmp_path / "m.onnx").stat().st_size > 8 * 4 * size


def test_an_invalid_graph_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = model_with(2, 4, [])
    model.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        save_inline(model, tmp_path / "m.onnx", large(model))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("external", [False, True])
def test_a_graph_whose_types_contradict_each_other_is_refused(tmp_path: Path, external: bool) -> None:
    """onnx.checker alone does not look at types."""
    model = model_with(2, 2000, [])
    half = ir.tensor(np.ones(2000, np.float16))
    weight = model.graph.initializers["w1"]
    weight.const_value, weight.type = half, ir.TensorType(ir.DataType.FLOAT16)
    with pytest.raises(ExportError, match=r"an invalid graph .*Add.*inconsistent type tensor\(float16\)"):
        save_graphs({"m.onnx": model}, tmp_path, "m.onnx_data", external_data=external)


def test_a_file_that_protobuf_cannot_read_is_not_written(tmp_path: Path) -> None:
    computed: list[int] = []
    model = model_with(8, 75_000_000, computed)
    with pytest.raises(ExportError, match=r"2\.4 GB with its weights inside.*--external-data"):
        save_graphs({"m.onnx": model}, tmp_path, "m.onnx_data", external_data=False)
    assert (list(tmp_path.iterdir()), computed) == ([], [])
