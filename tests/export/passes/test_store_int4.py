"""Weights of at most 4 bits are stored in 4 bits, and every reader sees the levels of int8 storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, numpy_helper

from accuquant.audit.audit_model import write_float_twin
from accuquant.errors import ExportError, UsageError
from accuquant.export.export_options import ExportOptions
from accuquant.export.lint.check_model import check_model


def stored(path: Path) -> dict[str, TensorProto]:
    return {t.name: t for t in onnx.load(path).graph.initializer}


def levels_by_hand(tensor: TensorProto) -> list[int]:
    """Unpack ONNX's INT4: two's complement, the first of two values in the low half of a byte."""
    halves = [half for byte in tensor.raw_data for half in (byte & 15, byte >> 4)]
    count = int(np.prod(tensor.dims))
    return [value - 16 if value > 7 else value for value in halves[:count]]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["conv", "transposed", "gemm", "matmul"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_packed_weights_have_the_levels_of_int8_storage(
    one_layer: Any, run_graph: Any, name: str, precision: str, bits: int
) -> None:
    network = one_layer(name, opset=22)
    layer = network.layer(weight_bits=bits)
    (plain,) = network.lower(layer, precision=precision)
    expected, wide = None, stored(plain)
    if precision != "bf16":  # ONNX Runtime has no Conv in bfloat16
        expected = run_graph(plain, network.sample(), [3])
    (path,) = network.lower(layer, precision=precision, weight_storage="int4")
    packed = stored(path)
    (key,) = [k for k in packed if k.endswith("levels_int4")]
    assert packed[key].data_type == TensorProto.INT4
    assert len(packed[key].raw_data) == -(-int(np.prod(packed[key].dims)) // 2)
    assert key.removesuffix("_int4") not in packed
    before = numpy_helper.to_array(wide[key.removesuffix("_int4")])
    assert levels_by_hand(packed[key]) == before.flatten().tolist()
    if expected is not None:
        # in float16, ONNX Runtime fuses the one and not the other
        tolerance = 0 if precision == "fp32" else 2e-3
        np.testing.assert_allclose(run_graph(path, network.sample(), [3]), expected, atol=tolerance, rtol=0)


def test_weights_of_more_bits_stay_int8(one_layer: Any) -> None:
    network = one_layer("conv")
    with pytest.raises(ExportError, match=r"weights of 5 bits.*Calibrate with --weight-bits 4"):
        network.lower(network.layer(weight_bits=5), weight_storage="int4")


def test_an_opset_without_int4_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--opset 20.*opset 21 or later"):
        ExportOptions(weight_storage="int4", opset=20)


def test_check_names_what_tensorrt_does_not_take(one_layer: Any) -> None:
    network = one_layer("conv")
    (path,) = network.lower(network.layer(weight_bits=4), weight_storage="int4")
    assert [(found.rule, found.node) for found in check_model(path)] == [
        ("packed-weight", "block.layer/weight/levels/Cast")
    ]


def test_step_groups_share_one_packed_tensor_in_their_data_file(one_layer: Any, run_graph: Any) -> None:
    network = one_layer("conv", gain=1)
    layer = network.layer(weight_bits=4)
    plain = network.lower(layer, lowering="per-group", external_data=True)
    expected = [run_graph(path, network.sample(), [3]) for path in plain]
    packed = network.lower(layer, lowering="per-group", external_data=True, weight_storage="int4")
    assert len(packed) == len(plain) > 1
    for path, before in zip(packed, expected, strict=True):
        np.testing.assert_array_equal(run_graph(path, network.sample(), [3]), before)


def test_the_float_twin_of_a_packed_graph_is_that_of_an_unpacked_one(
    one_layer: Any, run_graph: Any, tmp_path: Path
) -> None:
    network = one_layer("gemm")
    twins = []
    for storage in ("int8", "int4"):
        (path,) = network.lower(network.layer(weight_bits=4), weight_storage=storage)
        folder = tmp_path / storage
        folder.mkdir()
        twin = write_float_twin(path, folder)
        twins.append(run_graph(twin, network.sample(), [3]))
    np.testing.assert_array_equal(*twins)


@pytest.mark.parametrize("name", ["conv", "gemm"])
def test_openvino_runs_the_same_layers_in_the_same_precision(one_layer: Any, name: str) -> None:
    network, found = one_layer(name), []
    for storage in ("int8", "int4"):
        (path,) = network.lower(network.layer(weight_bits=4), weight_storage=storage)
        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
        kinds = [(fact["layerType"].astype(str), fact["runtimePrecision"].astype(str)) for fact in facts]
        output = compiled({"sample": network.sample(), "timestep": np.array([3])})[0]
        found.append(([kind for kind in kinds if kind[0] in ("Convolution", "FullyConnected")], output))
    assert found[0][0] == found[1][0] != []
    np.testing.assert_array_equal(found[0][1], found[1][1])
