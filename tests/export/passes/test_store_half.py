"""Float layers' weights are stored in half, and compute in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from accuquant.export.passes.store_half import StoreHalfPass


def stored(path: Path) -> dict[str, int]:
    return {t.name: t.data_type for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("half", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("name", ["conv", "transposed", "gemm", "matmul"])
def test_a_float_layer_computes_with_rounded_weights_in_float32(
    one_layer: Any, run_graph: Any, tmp_path: Path, name: str, half: ir.DataType
) -> None:
    network = one_layer(name)
    model = ir.load(network.path)
    assert StoreHalfPass(half)(model).modified
    path = tmp_path / "half.onnx"
    ir.save(model, path)
    assert stored(path)["w_half"] == half
    assert "w" not in stored(path)
    rounded = onnx.load(network.path)
    for tensor in rounded.graph.initializer:
        if tensor.name == "w":
            values = onnx.numpy_helper.to_array(tensor).astype(half.numpy()).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    reference = tmp_path / "rounded.onnx"
    onnx.save(rounded, reference)
    expected = run_graph(reference, network.sample(), [3])
    np.testing.assert_array_equal(run_graph(path, network.sample(), [3]), expected)
    exact = run_graph(network.path, network.sample(), [3])
    assert 0 < np.abs(expected - exact).max() < (1e-2 if half == ir.DataType.FLOAT16 else 1e-1)


def test_quantized_layers_and_small_files_are_left_alone(one_layer: Any) -> None:
    network = one_layer("conv")
    (path,) = network.lower(network.layer())
    assert TensorProto.FLOAT16 not in stored(path).values()
    (path,) = network.lower(network.layer(), float_weights="fp16")
    assert TensorProto.FLOAT16 not in stored(path).values()
    model = ir.load(network.path)
    assert not StoreHalfPass(above=864)(model).modified  # 6 x 4 x 3 x 3 float32
    assert StoreHalfPass(above=863)(model).modified


def test_a_weight_that_half_cannot_hold_stays(one_layer: Any) -> None:
    network = one_layer("conv")
    model = ir.load(network.path)
    weight = network.weight.copy()
    weight[0, 0, 0, 0] = 7e4
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    assert not StoreHalfPass()(model).modified
    assert StoreHalfPass(ir.DataType.BFLOAT16)(model).modified


def test_the_largest_bfloat16_is_held_and_the_largest_float32_is_not(one_layer: Any) -> None:
    network = one_layer("conv")
    for value, held in ((float.fromhex("0x1.fep127"), True), (float(np.finfo(np.float32).max), False)):
        model = ir.load(network.path)
        weight = network.weight.copy()
        weight[0, 0, 0, 0] = value
        model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
        assert StoreHalfPass(ir.DataType.BFLOAT16)(model).modified == held
