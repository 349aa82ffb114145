"""A GroupNorm without SiLU, written out, computes what ONNX Runtime's own GroupNormalization does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.export.passes.decompose_norms import DecomposeNormsPass

CHANNELS, GROUPS = 6, 3


def write_norm(path: Path, extents: list[Any], *, silu: bool = False, computed_scale: bool = False) -> None:
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
            "GroupNormalization", ["sample", scale, "bias"], [last], "norm", num_groups=GROUPS, epsilon=1e-3
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


def decompose(path: Path) -> list[str]:
    """Apply the pass to the file -> the operators that it holds then."""
    model = ir.load(path)
    DecomposeNormsPass()(model)
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
