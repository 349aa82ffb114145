"""Graphs in bfloat16, evaluated by onnx's own reference, which rounds every value as the file says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import ShapeInferencePass

from accuquant.errors import EngineError, UsageError
from accuquant.export import check_model, write_onnx
from accuquant.export.export_options import choose_opset
from accuquant.export.passes.half_precision import HalfPrecisionPass
from accuquant.export.passes.single_precision import SinglePrecisionPass
from accuquant.runtime.open_runner import open_runner

LAYERS = ["conv", "strided", "same", "grouped", "pointwise", "transposed", "gemm", "gemm-in-out", "matmul"]
TIMESTEPS = (999, 400, 3)


def as_bfloat16(array: Any) -> np.ndarray:
    """Return the nearest values that bfloat16 holds, as float32."""
    return np.asarray(array, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def evaluate(path: Path, sample: np.ndarray, timestep: float) -> np.ndarray:
    feeds = {"sample": sample, "timestep": np.array([timestep], np.int64)}
    results: Any = ReferenceEvaluator(onnx.load(path)).run(None, feeds)
    return np.asarray(results[0])


def types_of(path: Path) -> dict[str, int]:
    """Return the element type of every value, after a strict check of all types."""
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    kinds |= {
        value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    }
    return kinds | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def half_layer(network: Any, zero_point: int) -> Any:
    """Qparams whose scales bfloat16 holds, so that no level depends on how they are stored.

    Weights have 7 bits: OpenVINO sums products of 8-bit ones exactly only on processors with VNNI.
    """
    layer = network.layer()
    return network.layer(
        zero_point=zero_point,
        activation_scale=as_bfloat16(layer.activation_scale),
        weight_scale=as_bfloat16(2.02 * layer.weight_scale),
        weight_bits=7,
    )


@pytest.mark.parametrize("zero_point", [0, -100])
@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_follows_the_recipe_up_to_the_rounding_of_what_it_stores(
    one_layer: Any, name: str, lowering: str, zero_point: int
) -> None:
    network = one_layer(name)
    layer = half_layer(network, zero_point)
    sample = as_bfloat16(network.sample())
    paths = network.lower(layer, lowering, precision="bf16")
    for path, timestep in zip(paths * 3, TIMESTEPS, strict=False):
        expected = network.expected(sample, layer, timestep)
        error = np.linalg.norm(evaluate(path, sample, timestep) - expected) / np.linalg.norm(expected)
        # the layer's own output, behind a shift larger than the result, and the result: 2^-9 of each
        assert error < 0.01


def test_what_stands_around_an_int8_layer_is_computed_in_float32(one_layer: Any) -> None:
    network = one_layer("conv")
    (path,) = network.lower(half_layer(network, -100), precision="bf16")
    kinds, model = types_of(path), onnx.load(path)
    by_name = {node.name: node for node in model.graph.node}
    computed = ("input/Div", "input/Add", "output/Mul", "output/Add")
    assert {kinds[by_name[f"block.layer/{name}"].output[0]] for name in computed} == {TensorProto.FLOAT}
    quantize = by_name["block.layer/input/QuantizeLinear"]
    assert kinds[quantize.input[0]] == kinds[quantize.input[1]] == TensorProto.FLOAT
    for name in ("input/DequantizeLinear", "weight/DequantizeLinear"):
        dequantize = by_name[f"block.layer/{name}"]
        assert kinds[dequantize.input[1]] == kinds[dequantize.output[0]] == TensorProto.BFLOAT16
    (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
    assert kinds[conv.output[0]] == TensorProto.BFLOAT16
    assert kinds["sample"] == kinds["out_sample"] == TensorProto.FLOAT, "the border stays float32"
    assert check_model(path) == []


def test_both_scales_of_a_pair_are_one_number(one_layer: Any) -> None:
    network = one_layer("conv")
    layer = network.layer(activation_scale=np.full(3, 0.0317, np.float32))
    (path,) = network.lower(layer, precision="bf16")
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    quantize = tensors["block.layer/input/scale"]
    assert quantize.dtype == np.float32
    assert float(quantize) == float(tensors["block.layer/input/stored_scale"]) == as_bfloat16(0.0317)


def test_a_float_graph_keeps_its_first_and_last_layer_and_its_timestep_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    model = ir.serde.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 22]>
        g (float[1,2,4,4] sample, float[1] timestep) => (float[1,2,4,4] out_sample)
        <float[2,2,1,1] a = {1, 2, 3, 4}, float[2,2,1,1] b = {1, 2, 3, 4}, float[2,2,1,1] c = {1, 2, 3, 4},
         float[2] bias = {1, 2}, int64[4] ones = {1, 1, 1, 1}, int64[4] size = {1, 2, 4, 4}> {
            first = Conv(sample, a)
            time = Reshape(timestep, ones)
            wave = Sin(time)
            middle = Add(first, wave)
            inner = Conv(middle, b, bias)
            last = Conv(inner, c)
            out_sample = Reshape(last, size)
        }"""
    )
    ShapeInferencePass()(model)
    HalfPrecisionPass(ir.DataType.BFLOAT16)(model)
    ir.save(model, path)
    stored = {t.name: t.data_type for t in onnx.load(path).graph.initializer}
    assert {name for name, kind in stored.items() if kind == TensorProto.FLOAT} == {"a", "c"}
    assert {name for name, kind in stored.items() if kind == TensorProto.BFLOAT16} == {"b_half", "bias_half"}
    kinds = types_of(path)
    assert kinds["time"] == kinds["wave"] == TensorProto.FLOAT, "the timestep reaches the sinusoid unrounded"
    assert kinds["middle"] == kinds["inner"] == TensorProto.BFLOAT16


def test_operators_for_which_onnx_has_no_bfloat16_stay_float32(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    model = ir.serde.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 22]>
        g (float[2,2] sample) => (float[2,2] out_sample)
        <float[2,2] w = {1, 2, 3, 4}> {
            first = MatMul(sample, w)
            turned = Einsum<equation: string = "ij->ji">(first)
            wave = Tanh(turned)
            out_sample = MatMul(wave, w)
        }"""
    )
    ShapeInferencePass()(model)
    HalfPrecisionPass(ir.DataType.BFLOAT16)(model)
    ir.save(model, path)
    kinds = types_of(path)
    assert kinds["turned"] == TensorProto.FLOAT
    assert kinds["first"] == kinds["wave"] == TensorProto.BFLOAT16


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_bfloat16_holds_what_float16_does_not(one_layer: Any) -> None:
    network = one_layer("gemm")
    layer = network.layer(activation_scale=np.full(3, 1024, np.float32))
    sample = as_bfloat16(1.2e5 * network.sample())
    expected = network.expected(sample, layer, 3)
    assert np.abs(expected).max() > np.finfo(np.float16).max
    (path,) = network.lower(layer, precision="fp16")
    assert not np.isfinite(evaluate(path, sample, 3)).all()
    (path,) = network.lower(layer, precision="bf16")
    assert np.linalg.norm(evaluate(path, sample, 3) - expected) / np.linalg.norm(expected) < 0.01


def test_an_older_graph_becomes_one_whose_opset_has_bfloat16(one_layer: Any) -> None:
    network = one_layer("conv", opset=17)
    (path,) = network.lower(half_layer(network, 0), precision="bf16")
    assert onnx.load(path).opset_import[0].version == 22
    types_of(path)


def test_an_opset_without_bfloat16_is_refused(one_layer: Any, recipe_of: Any) -> None:
    network = one_layer("conv")
    with pytest.raises(UsageError, match=r"--opset: got 21 with --precision bf16, expected 22 to 25"):
        write_onnx(network.path, recipe_of(network.layer()), network.path, precision="bf16", opset=21)
    assert [choose_opset(None, precision) for precision in ("fp32", "fp16", "bf16")] == [21, 21, 22]


def test_openvino_runs_it_and_onnxruntime_says_that_it_cannot(one_layer: Any) -> None:
    network = one_layer("conv")
    layer = half_layer(network, -100)
    (path,) = network.lower(layer, precision="bf16")
    sample = as_bfloat16(network.sample())
    feeds = {"sample": sample, "timestep": np.array([3], np.int64)}
    with open_runner(path, "openvino", num_threads=1) as runner:
        result = runner.infer(feeds)["out_sample"]
    assert result.dtype == np.float32
    expected = network.expected(sample, layer, 3)
    assert np.linalg.norm(result - expected) / np.linalg.norm(expected) < 0.01
    with pytest.raises(
        EngineError, match=r"no kernel for .*no bfloat16\. Run it with --engine openvino"
    ) as caught:
        open_runner(path, "onnxruntime")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["conv", "transposed", "matmul"])
def test_single_precision_computes_with_the_values_that_bfloat16_held(
    one_layer: Any, run_graph: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    network = one_layer(name)
    layer = half_layer(network, -100)
    (path,) = network.lower(layer, precision="bf16")
    model = ir.load(path)
    assert SinglePrecisionPass()(model).modified
    wide = tmp_path / "wide.onnx"
    ir.save(model, wide)
    assert TensorProto.BFLOAT16 not in types_of(wide).values()
    sample = as_bfloat16(network.sample())
    expected = network.expected(sample, layer, 3)
    error = np.linalg.norm(run_graph(wide, sample, [3]) - expected) / np.linalg.norm(expected)
    assert error < 2e-3, "only the bias was rounded"
