"""Weights of a float graph in int8: a quarter of the bytes; the products are those of rounded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.errors import UsageError
from accuquant.export.export_options import ExportOptions
from accuquant.export.passes.weight_only import WeightOnlyPass
from accuquant.export.write.graph_files import save_graphs
from accuquant.runtime.onnxruntime_runner import OnnxRuntimeRunner
from accuquant.runtime.openvino_runner import OpenVinoRunner

Array = npt.NDArray[np.float32]
ROWS, WIDTH, OUTPUTS = 300, 64, 96


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    spread = 10.0 ** rng.uniform(-2, 1, (ROWS, 1))
    return {
        "table": (rng.normal(size=(ROWS, WIDTH)) * spread).astype(np.float32),
        "first": rng.normal(size=(WIDTH, OUTPUTS)).astype(np.float32),
        "small": rng.normal(size=(OUTPUTS, 2)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def path(weights: dict[str, Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two gathers from one table, a product, and a product that is too small."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Gather", ["table", "ids"], ["again"], axis=0),
        helper.make_node("Sub", ["rows", "again"], ["zero"]),
        helper.make_node("MatMul", ["rows", "first"], ["wide"]),
        helper.make_node("MatMul", ["wide", "small"], ["out"]),
    ]
    shape = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [*shape, 2]),
         helper.make_tensor_value_info("zero", TensorProto.FLOAT, [*shape, WIDTH]),
         helper.make_tensor_value_info("rows", TensorProto.FLOAT, [*shape, WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )
    assert WeightOnlyPass()(model).modified
    folder = tmp_path_factory.mktemp("weights")
    save_graphs({"model.onnx": model}, folder, "data")
    return folder / "model.onnx"


def rounded(weight: Array, levels: Array, scale: Array) -> Array:
    assert np.abs(levels).max() <= 128
    error = np.abs(levels * scale - weight) / scale
    # what is clipped may err more: the scale with the least squared error clips a few
    assert np.mean(error > 0.5001) < 0.02
    return levels * scale


def by_hand(weights: dict[str, Array], path: Path, ids: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    stored = {t.name: numpy_helper.to_array(t).astype(np.float32) for t in onnx.load(path).graph.initializer}
    table = rounded(weights["table"], stored["table_levels"], stored["table_scale"])
    first = rounded(weights["first"], stored["first_levels"], stored["first_scale"])
    return table[ids], (table[ids] @ first @ weights["small"]).astype(np.float32)


IDS = np.random.default_rng(1).integers(0, ROWS, (2, 5))


def test_onnx_runtime_computes_what_numpy_computes_with_rounded_weights(
    path: Path, weights: dict[str, Array]
) -> None:
    with OnnxRuntimeRunner(path) as runner:
        out, zero, rows = (runner.infer({"ids": IDS})[name] for name in ("out", "zero", "rows"))
    expected_rows, expected = by_hand(weights, path, IDS)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)
    assert not zero.any()


def test_openvino_computes_the_same(path: Path, weights: dict[str, Array]) -> None:
    with OpenVinoRunner(path) as runner:
        found = runner.infer({"ids": IDS})["out"]
    np.testing.assert_allclose(found, by_hand(weights, path, IDS)[1], rtol=1e-4, atol=1e-3)


def test_what_is_stored_in_int8_is_what_is_large(path: Path) -> None:
    types = {t.name: t.data_type for t in onnx.load(path).graph.initializer}
    assert types["table_levels"] == types["first_levels"] == TensorProto.INT8
    assert types["small"] == TensorProto.FLOAT
    assert not {"table", "first"} & set(types)


def test_a_scale_belongs_to_a_row_of_a_table_and_to_an_output_of_a_product(path: Path) -> None:
    shapes = {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}
    assert shapes["table_scale"] == (ROWS, 1)
    assert shapes["first_scale"] == (OUTPUTS,)


def test_text_weights_need_text_encoders() -> None:
    with pytest.raises(
        UsageError, match=r"--text-weights int8: got an export of the network alone.*--whole-pip"
    ):
        ExportOptions(text_weights="int8")
