"""Small float .onnx files as other people export them, for the tests that share them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def tiny_network(
    middle: Sequence[onnx.NodeProto] | None = None,
    *,
    names: tuple[str, str] = ("sample", "timestep"),
    opset: int = 21,
    kind: int = TensorProto.FLOAT,
    constants: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    """Return sample [batch, 4, h, w] -> Conv -> `middle` (h to r; a convolution by default) -> Conv -> y.

    The last convolution's output is scaled by 1 + timestep / 1000.
    """
    rng = np.random.default_rng(0)
    node = helper.make_node
    weights = {
        "first.weight": rng.normal(0, 0.3, (8, 4, 3, 3)),
        "mid.weight": rng.normal(0, 0.15, (8, 8, 3, 3)),
        "last.weight": rng.normal(0, 0.1, (4, 8, 3, 3)),
        "thousand": np.array([1000.0]),
        "one": np.array([1.0]),
        **(constants or {}),
    }
    if middle is None:
        middle = [
            node("Tanh", ["h"], ["a"], "tanh"),
            node("Conv", ["a", "mid.weight"], ["r"], "mid", pads=[1] * 4),
        ]
    sample, timestep = names
    shape: list[str | int | None] = ["batch", 4, "height", "width"]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph = helper.make_graph(
        [
            node("Conv", [sample, "first.weight"], ["h"], "first", pads=[1] * 4),
            *middle,
            node("Conv", ["r", "last.weight"], ["p"], "last", pads=[1] * 4),
            node("Div", [timestep, "thousand"], ["share"], "divide"),
            node("Add", ["share", "one"], ["factor"], "add"),
            node("Mul", ["p", "factor"], ["y"], "scaled"),
        ],
        "g",
        [
            helper.make_tensor_value_info(sample, kind, shape),
            helper.make_tensor_value_info(timestep, kind, [1]),
        ],
        [helper.make_tensor_value_info("y", kind, ["batch", 4, "y_height", "y_width"])],
        [numpy_helper.from_array(np.asarray(array).astype(dtype), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write `model`, valid or not."""
    path.write_bytes(model.SerializeToString())
    return path
