"""Small QDQ graphs for the compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def build_conv(
    path: Path,
    *,
    scale: float = 0.05,
    batch: int | str = "batch",
    size: int | str = 8,
    dynamic_scale: bool = False,
) -> Path:
    """Write `x [batch, 4, size, size] -> QDQ -> int8 Conv -> y`, and return the path.

    `dynamic_scale` makes the activation scale a graph input.
    """
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(scale),
        "zero": np.int8(0),
        "levels": rng.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
        "weight_scale": np.full(4, 0.01, np.float32),
        "weight_zero": np.zeros(4, np.int8),
        "bias": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"], "quantize"),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_dq"], "dequantize"),
        helper.make_node(
            "DequantizeLinear", ["levels", "weight_scale", "weight_zero"], ["w"], "weight", axis=0
        ),
        helper.make_node("Conv", ["x_dq", "w", "bias"], ["y"], "conv", pads=[1, 1, 1, 1]),
    ]
    inputs: dict[str, list[int | str]] = {}
    if dynamic_scale:
        del constants["scale"]
        inputs["scale"] = []
    return save(path, nodes, constants, [batch, 4, size, size], inputs)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: list[int | str],
    inputs: dict[str, list[int | str]] | None = None,
) -> Path:
    """Write a graph from x (and further float `inputs`) to y."""
    values = {"x": shape, **(inputs or {})}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in values.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture
def make_conv(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the convolution into the test's folder."""

    def make(name: str = "conv.onnx", **changes: object) -> Path:
        return build_conv(tmp_path / name, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def save_graph() -> Callable[..., Path]:
    """Return `save`."""
    return save
