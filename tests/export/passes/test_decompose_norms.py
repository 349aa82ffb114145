"""A GroupNorm without SiLU, written out, computes what ONNX Runtime's own GroupNormalization does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.export import check_model
from accuquant.export.passes.decompose_norms import DecomposeNormsPass

CHANNELS, GROUPS = 6, 3


def write_norm(
    path: Path,
    extents: list[Any],
    *,
    silu: bool = False,
    computed_scale: bool = False,
    groups: int = GROUPS,
) -> None:
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(rng.normal(1, 0.3, CHANNELS).astype(np.float32), "scale"),
        numpy_helper.from_array(rng.normal(0, 0.3, CHANNELS).astype(np.float32), "bias"),
    ]
    last = "normed" if silu else "out_sample"
    scale = "computed" if computed_scale else "scale"
    nodes = [helper.make_node("Neg", ["scale"], ["computed"], "negate")] if computed_scale else []
    nodes.append(
        helper.make_node(
            "GroupNormalization", ["sample", scale, "bias"], [last], "norm", num_groups=groups, epsilon=1e-3
        )
    )
    if silu:
        nodes.append(helper.make_node("Sigmoid", ["normed"], ["gate"], "sigmoid"))
        nodes.append(helper.make_node("Mul", ["normed", "gate"], ["out_sample"], "silu"))
    graph = helper.make_graph(
        nodes,
        "unet",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, extents)],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, extents)],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def decompose(path: Path, **options: bool) -> list[str]:
    """Apply the pass to the file -> the operators that it holds then."""
    model = ir.load(path)
    DecomposeNormsPass(**options)(model)
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    "extents", [[2, CHANNELS, 5, 7], [2, CHANNELS, 35], ["batch", CHANNELS, "height", "width"]]
)
def test_the_parts_compute_what_the_norm_does(tmp_path: Path, run_graph: Any, extents: list[Any]) -> None:
    path = tmp_path / "norm.onnx"
    write_norm(path, extents)
    shape = [extent if isinstance(extent, int) else 4 for extent in extents]
    sample = np.random.default_rng(1).normal(0.7, 3, shape).astype(np.float32)
    expected = run_graph(path, sample, [0])
    operators = decompose(path)
    assert "GroupNormalization" not in operators
    assert "InstanceNormalization" in operators
    np.testing.assert_allclose(run_graph(path, sample, [0]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"silu": True}, {"computed_scale": True}])
def test_norms_before_silu_or_with_a_computed_scale_stay_whole(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    path = tmp_path / "norm.onnx"
    write_norm(path, [2, CHANNELS, 5, 7], **options)
    assert "GroupNormalization" in decompose(path)


@pytest.mark.parametrize("wrong_only", [False, True])
@pytest.mark.parametrize("options", [{}, {"silu": True}, {"computed_scale": True}])
@pytest.mark.parametrize("extents", [[2, CHANNELS, 5, 7], ["batch", CHANNELS, "height", "width"]])
def test_a_norm_of_one_group_is_always_written_out(
    tmp_path: Path, run_graph: Any, extents: list[Any], options: dict[str, bool], wrong_only: bool
) -> None:
    """TensorRT computes GroupNormalization with num_groups=1 as if each channel were a group."""
    path = tmp_path / "norm.onnx"
    write_norm(path, extents, groups=1, **options)
    shape = [extent if isinstance(extent, int) else 4 for extent in extents]
    offset = np.arange(CHANNELS, dtype=np.float32).reshape(1, -1, 1, 1)  # tells channels from one another
    sample = np.random.default_rng(1).normal(0.7, 3, shape).astype(np.float32) + 5 * offset
    expected = run_graph(path, sample, [0])
    assert "GroupNormalization" not in decompose(path, wrong_only=wrong_only)
    np.testing.assert_allclose(run_graph(path, sample, [0]), expected, rtol=1e-5, atol=1e-5)


def test_of_more_groups_none_is_written_out_where_they_are_computed_right(tmp_path: Path) -> None:
    path = tmp_path / "norm.onnx"
    write_norm(path, [2, CHANNELS, 5, 7])
    assert "GroupNormalization" in decompose(path, wrong_only=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_no_export_holds_a_norm_of_one_group(one_layer: Any, recipe_of: Any, precision: str) -> None:
    network = one_layer("conv")
    model = onnx.load(network.path)
    model.graph.node[0].output[0] = "product"
    norm = helper.make_node(
        "GroupNormalization", ["product", "scale", "shift"], ["out_sample"], "norm", num_groups=1
    )
    model.graph.node.append(norm)
    for name in norm.input[1:]:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(6, np.float32), name))
    onnx.save(model, network.path)
    assert [rule for rule in rules(network.path) if rule == "one-group-norm"]
    path = network.lower(network.layer(), precision=precision)[0]
    assert "GroupNormalization" not in [node.op_type for node in onnx.load(path).graph.node]
    assert rules(path) == []


def rules(path: Path) -> list[str]:
    return [violation.rule for violation in check_model(path)]
