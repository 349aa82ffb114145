"""The pair of a layer behind a concatenation moves to the parts, and no level changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.export import check_model, write_onnx
from accuquant.export.passes.quantize_before_concat import QuantizeBeforeConcatPass
from accuquant.export.passes.remove_pairs import RemovePairsPass
from accuquant.qparams import LayerQParams, fingerprint

WEIGHT = np.random.default_rng(0).normal(0, 0.3, (6, 8, 1, 1)).astype(np.float32)


def write_shortcut(path: Path, *, readers: int = 1) -> None:
    """Write sample -> Concat(sample, Relu(sample)) -> Conv 1x1, or the sum of several that read it."""
    nodes = [
        helper.make_node("Relu", ["sample"], ["positive"], "relu"),
        helper.make_node("Concat", ["sample", "positive"], ["both"], "concat", axis=1),
        helper.make_node("Conv", ["both", "w0"], ["out_sample"], "shortcut"),
    ]
    weights = [numpy_helper.from_array(WEIGHT * (number + 1), f"w{number}") for number in range(readers)]
    if readers > 1:
        parts = [f"y{number}" for number in range(readers)]
        nodes[-1:] = [
            helper.make_node("Conv", ["both", f"w{number}"], [part], f"shortcut{number}")
            for number, part in enumerate(parts)
        ]
        nodes.append(helper.make_node("Sum", parts, ["out_sample"], "sum"))
    graph = helper.make_graph(
        nodes,
        "unet",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, [2, 4, 5, 5]),
            helper.make_tensor_value_info("timestep", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, [2, 6, 5, 5])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def shortcut(**changes: Any) -> LayerQParams:
    scale = (np.abs(WEIGHT).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    activation = np.array([0.031, 0.017, 0.011], np.float32)
    weight = fingerprint(WEIGHT)
    return LayerQParams("conv_shortcut", "conv2d", WEIGHT.shape, weight, scale, activation, **changes)


@pytest.fixture
def exported(tmp_path: Path, recipe_of: Any) -> Callable[..., Path]:
    def export(layer: LayerQParams, **options: Any) -> Path:
        write_shortcut(tmp_path / "float.onnx")
        return write_onnx(tmp_path / "float.onnx", recipe_of(layer), tmp_path / "int8.onnx", **options)[0]

    return export


@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
@pytest.mark.parametrize("changes", [{}, {"zero_point": -60}, {"activation_bits": 6, "zero_point": 5}])
def test_the_layer_computes_the_same_bits(
    exported: Callable[..., Path], run_graph: Any, lowering: str, changes: dict[str, int]
) -> None:
    path = exported(shortcut(**changes), lowering=lowering)
    sample = np.random.default_rng(1).normal(0, 1, (2, 4, 5, 5)).astype(np.float32)
    expected = run_graph(path, sample, [999])
    model = ir.load(path)
    assert QuantizeBeforeConcatPass()(model).modified
    ir.save(model, path)
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 3
    np.testing.assert_array_equal(run_graph(path, sample, [999]), expected)
    assert check_model(path) == []


def test_half_precision_exports_are_written_that_way_and_others_are_not(
    exported: Callable[..., Path],
) -> None:
    for precision, pairs in (("fp16", 3), ("fp32", 1)):
        path = exported(shortcut(), precision=precision)
        operators = [node.op_type for node in onnx.load(path).graph.node]
        assert operators.count("QuantizeLinear") == pairs
        assert check_model(path) == []


@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
def test_without_pairs_there_is_one_concatenation(exported: Callable[..., Path], lowering: str) -> None:
    path = exported(shortcut(activation_bits=6, zero_point=5), precision="fp16", lowering=lowering)
    model = ir.load(path)
    assert [node.op_type for node in model.graph].count("Clip") == 2
    RemovePairsPass()(model)
    operators = [node.op_type for node in model.graph if node.op_type not in ("Cast", "Add")]
    assert sorted(operators) == ["Concat", "Conv", "Relu"]


def test_without_pairs_all_readers_have_the_one_concatenation(tmp_path: Path, recipe_of: Any) -> None:
    """Two layers with scales of their own, and one that stays float."""
    write_shortcut(tmp_path / "float.onnx", readers=3)
    other = replace(
        shortcut(zero_point=5),
        name="other",
        fingerprint=fingerprint(2 * WEIGHT),
        activation_scale=np.array([0.03, 0.02, 0.01], np.float32),
    )
    output = tmp_path / "int8.onnx"
    model = ir.load(
        write_onnx(tmp_path / "float.onnx", recipe_of(shortcut(), other), output, precision="fp16")[0]
    )
    assert [node.op_type for node in model.graph].count("Concat") == 3
    RemovePairsPass()(model)
    ir.save(model, output)
    onnx.checker.check_model(output, full_check=True)
    assert [node.op_type for node in model.graph].count("Concat") == 1
